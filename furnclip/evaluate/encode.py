"""One model on one split: its vectors, from the cache of features where they were made before.

A killed evaluation finds the models it has finished with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from furnclip import console
from furnclip.catalogue import content_hash
from furnclip.config import Config
from furnclip.errors import ModelError
from furnclip.evaluate.split import Split
from furnclip.evaluate.tasks import Side
from furnclip.features import FeatureStore, Floats
from furnclip.model import Clip, load_clip
from furnclip.relevance import AttributeQuery

_TEXTS_AT_ONCE = 4096  # sorted by length inside `Clip`, so that little is padding


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
    name: str, split: Split, requests: Sequence[AttributeQuery], *, label: str, config: Config
) -> Encoded:
    """Vectors of every image, caption and request; from the cache when they are there."""
    clip = load_clip(name, config.model, runs=config.paths.runs)
    texts = [request.text for request in requests]
    described = _encode_texts(clip, [*split.captions, *texts], config)
    vectors: dict[Side, Floats] = {
        "images": _encode_images(clip, split, label=label, config=config),
        "captions": described[: len(split)],
        "requests": described[len(split) :],
    }
    return Encoded(label, clip, vectors)


def _store(clip: Clip, kind: str, config: Config) -> FeatureStore:
    return FeatureStore(config.paths.cache / "features", clip.fingerprint, kind, clip.precision.precision)


def _encode_texts(clip: Clip, texts: Sequence[str], config: Config) -> Floats:
    keys = [content_hash(text) for text in texts]
    store = _store(clip, "text-vectors", config)

    def encode(positions: list[int]) -> Floats:
        return _finite(clip.encode_texts([texts[position] for position in positions]), "texts", clip)

    store.fill(keys, encode, chunk_size=_TEXTS_AT_ONCE)
    return store.rows(keys)


def _encode_images(clip: Clip, split: Split, *, label: str, config: Config) -> Floats:
    store = _store(clip, "image-vectors", config)
    with console.progress(f"{label}: images", total=len(split)) as meter:

        def encode(positions: list[int]) -> Floats:
            vectors = clip.encode_images(list(split.images(positions)))
            meter.advance(len(positions))
            return _finite(vectors, "images", clip)

        store.fill(split.image_keys, encode, chunk_size=config.eval.batch_size)
    return store.rows(split.image_keys)


def _finite(vectors: Floats, what: str, clip: Clip) -> Floats:
    if not np.isfinite(vectors).all():
        raise ModelError(
            f"the model `{clip.name}` gives vectors of {what} that are not finite",
            hint='try `precision = "fp32"` in the [model] section, or train again',
        )
    return vectors
