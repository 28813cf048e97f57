"""One model on one split: its vectors and its speed, measured once and kept.

Out: `work/cache/eval/KEY.npz`, where KEY is made of the model's fingerprint, its arithmetic, the data
hash and the requests. A killed evaluation finds the models it has finished with.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from furnclip import console
from furnclip.catalogue import content_hash
from furnclip.config import Config
from furnclip.errors import ModelError
from furnclip.evaluate.latency import measure_latency
from furnclip.evaluate.split import Split
from furnclip.evaluate.tasks import Request, Side
from furnclip.journal import replacing
from furnclip.model import Clip, load_clip

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """Unit vectors of a split by one model, and how long the model takes."""

    label: str
    name: str
    fingerprint: str
    precision: str
    vectors: dict[Side, Floats]  # each (N, D); `requests` (R, D)
    latency: dict[str, Any]


def encode_model(
    name: str, split: Split, requests: Sequence[Request], *, label: str, config: Config
) -> Encoded:
    """Vectors of every picture, caption and request; from the cache when they are there."""
    clip = load_clip(name, config.model, runs=config.paths.runs)
    precision = clip.precision.precision
    texts = [request.text for request in requests]
    key = content_hash(
        clip.fingerprint, precision, split.data_hash, split.name, str(config.eval.latency_s), *texts
    )
    path = config.paths.cache / "eval" / f"{key}.npz"
    stored = _read(path)
    if stored is None:
        stored = _encode(clip, split, texts, label=label, config=config)
        _write(path, *stored)
    vectors, latency = stored
    return Encoded(label, name, clip.fingerprint, precision, vectors, latency)


def _encode(
    clip: Clip, split: Split, texts: Sequence[str], *, label: str, config: Config
) -> tuple[dict[Side, Floats], dict[str, Any]]:
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
    latency = measure_latency(clip, split, vectors["images"], seconds=config.eval.latency_s)
    return vectors, latency


def _encode_images(clip: Clip, split: Split, batch_size: int, *, label: str) -> Floats:
    vectors = np.empty((len(split), clip.dimension), dtype=np.float32)
    with console.progress(f"{label}: pictures", total=len(split)) as meter:
        for start in range(0, len(split), batch_size):
            batch = range(start, min(start + batch_size, len(split)))
            vectors[batch.start : batch.stop] = clip.encode_images(list(split.pictures(batch)))
            meter.advance(len(batch))
    return vectors


def _read(path: Path) -> tuple[dict[Side, Floats], dict[str, Any]] | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            sides: tuple[Side, ...] = ("images", "captions", "requests")
            return {side: arrays[side] for side in sides}, json.loads(str(arrays["latency"]))
    except (ValueError, KeyError, OSError, zipfile.BadZipFile):
        console.warn(f"`{path}` is damaged and is made again")
        return None


def _write(path: Path, vectors: dict[Side, Floats], latency: dict[str, Any]) -> None:
    with replacing(path) as file:
        np.savez(
            file,
            images=vectors["images"],
            captions=vectors["captions"],
            requests=vectors["requests"],
            latency=np.asarray(json.dumps(latency)),
        )
