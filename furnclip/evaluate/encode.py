"""One model on one split: its vectors, made once and kept.

Out: `work/cache/eval/KEY.npz`, where KEY is made of the model's fingerprint, its arithmetic, the data
hash and the requests. A killed evaluation finds the models it has finished with.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from furnclip import console
from furnclip.catalogue import content_hash
from furnclip.config import Config
from furnclip.errors import InputError, ModelError
from furnclip.evaluate.split import Split
from furnclip.evaluate.tasks import Request, Side
from furnclip.journal import open_regular, replacing
from furnclip.model import Clip, load_clip

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """A model and its unit vectors of a split."""

    label: str
    clip: Clip
    vectors: dict[Side, Floats]  # each (N, D); `requests` (R, D)

    @property
    def name(self) -> str:
        return self.clip.name

    @property
    def fingerprint(self) -> str:
        return self.clip.fingerprint

    @property
    def precision(self) -> str:
        return self.clip.precision.precision


def encode_model(
    name: str, split: Split, requests: Sequence[Request], *, label: str, config: Config
) -> Encoded:
    """Vectors of every picture, caption and request; from the cache when they are there."""
    clip = load_clip(name, config.model, runs=config.paths.runs)
    texts = [request.text for request in requests]
    key = content_hash(clip.fingerprint, clip.precision.precision, split.data_hash, split.name, *texts)
    path = config.paths.cache / "eval" / f"{key}.npz"
    counts = {"images": len(split), "captions": len(split), "requests": len(texts)}
    vectors = _read(path, {side: (count, clip.dimension) for side, count in counts.items()})
    if vectors is None:
        vectors = _encode(clip, split, texts, label=label, config=config)
        _write(path, vectors)
    return Encoded(label, clip, vectors)


def _encode(
    clip: Clip, split: Split, texts: Sequence[str], *, label: str, config: Config
) -> dict[Side, Floats]:
    vectors: dict[Side, Floats] = {
        "images": _encode_images(clip, split, config.eval.batch_size, label=label),
        "captions": clip.encode_texts(list(split.captions)),
        "requests": clip.encode_texts(list(texts)) if texts else np.empty((0, clip.dimension), np.float32),
    }
    for side, rows in vectors.items():
        if not np.isfinite(rows).all():
            raise ModelError(
                f"the model `{clip.name}` gives vectors of {side} that are not finite",
                hint='try `precision = "fp32"` in the [model] section, or train again',
            )
    return vectors


def _encode_images(clip: Clip, split: Split, batch_size: int, *, label: str) -> Floats:
    vectors = np.empty((len(split), clip.dimension), dtype=np.float32)
    with console.progress(f"{label}: pictures", total=len(split)) as meter:
        for start in range(0, len(split), batch_size):
            batch = range(start, min(start + batch_size, len(split)))
            vectors[batch.start : batch.stop] = clip.encode_images(list(split.pictures(batch)))
            meter.advance(len(batch))
    return vectors


def _read(path: Path, shapes: Mapping[str, tuple[int, int]]) -> dict[Side, Floats] | None:
    sides: tuple[Side, ...] = ("images", "captions", "requests")
    try:
        with open_regular(path, what="the cache") as file, np.load(file, allow_pickle=False) as arrays:
            vectors: dict[Side, Floats] = {side: arrays[side] for side in sides}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, InputError, AttributeError):
        vectors = {}
    for side in sides:
        found = vectors.get(side)
        if found is None or found.shape != shapes[side] or found.dtype != np.float32:
            console.warn(f"`{path}` is damaged and is made again")
            return None
    return vectors


def _write(path: Path, vectors: dict[Side, Floats]) -> None:
    with replacing(path) as file:
        np.savez(file, images=vectors["images"], captions=vectors["captions"], requests=vectors["requests"])
