"""The models that are compared: their vectors of a split, and how long they take.

Vectors are those that `embed` wrote, so that what is measured is what is served. Where it has not run, they
come from the cache of features, so that a killed evaluation finds the models it has finished with.

Latency is wall time of the public encode call, warm: tokenizing or resizing, the tower, and the copy
back, which also waits for a GPU. Decoding the JPEG is not in it. The models take turns, call by call,
so that a busy minute of the machine hits all of them; on a machine with other work to do trust the
median only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from furnclip import console
from furnclip.catalogue import content_hash
from furnclip.config import Config
from furnclip.errors import ModelError
from furnclip.evaluate.tasks import Side, Split
from furnclip.features import Encode, FeatureStore, Floats, StoredVectors
from furnclip.model.clip import Clip
from furnclip.model.loading import load_clip
from furnclip.relevance import AttributeQuery
from furnclip.shards import read_manifest
from furnclip.vectors import top_k, unit_mean
from furnclip.vectors.parquet import matrix_of

_SERVED: dict[Side, str] = {"images": "image", "captions": "text"}  # columns of the vector file
_TEXTS_AT_ONCE = 4096  # sorted by length inside `Clip`, so that little is padding
_LATENCY_BATCHES = (1, 32)
_WARM_UP_CALLS, _FEWEST_CALLS, _MOST_CALLS = 2, 5, 200


@dataclass(frozen=True)
class ModelVectors:
    """A model and its unit vectors of a split."""

    label: str
    clip: Clip
    vectors: dict[Side, Floats]  # each (N, D); `requests` (R, D), `queries` (Q, D)
    served: int = 0
    """products whose vectors are those that `embed` wrote"""


def encode_model(
    name: str, split: Split, requests: Sequence[AttributeQuery], *, label: str, config: Config
) -> ModelVectors:
    """Vectors of every product and request: those that `embed` wrote, else from the cache, else encoded."""
    clip = load_clip(name, config.model, runs=config.paths.runs)
    read_manifest(config.paths.shards).require_side(clip.image_px, model=clip.name)
    files = [config.paths.vectors, *sorted(config.paths.embeddings.glob("*.parquet"))]
    is_served, served = StoredVectors(files, clip.fingerprint).look_up(split.seen)
    left = np.flatnonzero(~is_served).tolist()
    texts = [*(split.captions[row] for row in left), *(request.text for request in requests), *split.queries]
    owners = [(row, view) for row in left for view in range(len(split.image_keys[row]))]

    def encode_texts(positions: list[int]) -> Floats:
        return clip.encode_texts([texts[position] for position in positions])

    text_keys = [content_hash(text) for text in texts]
    described = _cached("text", clip, text_keys, encode_texts, chunk_size=_TEXTS_AT_ONCE, config=config)
    with console.progress(f"{label}: images", total=len(owners)) as meter:

        def encode_images(positions: list[int]) -> Floats:
            chosen = [owners[position] for position in positions]
            vectors = clip.encode_images([split.images(row)[view] for row, view in chosen])
            meter.advance(len(positions))
            return vectors

        chunk_size, keys = config.eval.batch_size, [split.image_keys[row][view] for row, view in owners]
        views = _cached("image", clip, keys, encode_images, chunk_size=chunk_size, config=config)
    captions, asked, queries = np.split(described, np.cumsum([len(left), len(requests)]))
    counts = np.array([len(split.image_keys[row]) for row in left], dtype=np.int64)
    new: dict[Side, Floats] = {"images": unit_mean(views, counts), "captions": captions}
    vectors: dict[Side, Floats] = {"requests": asked, "queries": queries}
    for side, column in _SERVED.items():
        vectors[side] = np.empty((len(split), clip.dimension), dtype=np.float32)
        vectors[side][left] = new[side]
        if is_served.any():
            vectors[side][is_served] = matrix_of(served[column])[0]
    return ModelVectors(label, clip, vectors, served=int(is_served.sum()))


def _cached(
    kind: str, clip: Clip, keys: Sequence[str], encode: Encode, *, chunk_size: int, config: Config
) -> Floats:
    """Vectors in the order of the keys; those that are not in the cache yet are encoded and kept."""

    def encode_finite(positions: list[int]) -> Floats:
        vectors = encode(positions)
        if not np.isfinite(vectors).all():
            raise ModelError(
                f"the model `{clip.name}` gives vectors of {kind}s that are not finite",
                hint='try `precision = "fp32"` in the [model] section, or train again',
            )
        return vectors

    folder = config.paths.features
    store = FeatureStore(folder, clip.fingerprint, f"{kind}-vectors", clip.precision.precision)
    store.fill(keys, encode_finite, chunk_size=chunk_size)
    return store.rows(keys) if keys else np.empty((0, clip.dimension), dtype=np.float32)


def measure_latency(models: Sequence[ModelVectors], split: Split, *, seconds: float) -> dict[str, Any]:
    """Milliseconds by label, for texts, images, and a search of one text in the split's images.

    `seconds`: to spend on each figure of each model; for 0 there are no figures.
    """
    figures: dict[str, dict[str, Any]] = {model.label: {} for model in models}
    if seconds <= 0:
        return figures
    for size in _LATENCY_BATCHES:
        rows = [index % len(split) for index in range(size)]
        captions, images = [split.captions[row] for row in rows], [split.image(row) for row in rows]
        work = {
            "texts": {model.label: partial(model.clip.encode_texts, captions) for model in models},
            "images": {model.label: partial(model.clip.encode_images, images) for model in models},
        }
        for name, calls in work.items():
            for label, times in _time_in_turn(calls, seconds).items():
                figures[label].setdefault(name, {})[str(size)] = times
    searches = {model.label: partial(_search, model, split.captions[0]) for model in models}
    for label, times in _time_in_turn(searches, seconds).items():
        figures[label]["search"] = times
    return figures


def _search(model: ModelVectors, caption: str) -> object:
    return top_k(model.clip.encode_texts([caption]), model.vectors["images"], 10)


def _time_in_turn(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Any]:
    """p50 and p95 of repeated calls, in milliseconds, and how many were timed, by label."""
    for call in [*calls.values()] * _WARM_UP_CALLS:
        call()
    times_ms: dict[str, list[float]] = {label: [] for label in calls}
    stop = time.perf_counter() + seconds * len(calls)
    for turn in range(_MOST_CALLS):
        if turn >= _FEWEST_CALLS and time.perf_counter() >= stop:
            break
        for label, call in calls.items():
            start = time.perf_counter()
            call()
            times_ms[label].append((time.perf_counter() - start) * 1000)
    figures = {}
    for label, taken in times_ms.items():
        p50, p95 = np.percentile(taken, [50, 95])
        figures[label] = {"p50_ms": float(p50), "p95_ms": float(p95), "calls": len(taken)}
    return figures
