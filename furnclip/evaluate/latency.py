"""How long models take, warm, for one item and for 32 at once.

The models take turns, call by call, so that a busy minute of the machine hits all of them. Wall time
of the public encode call: tokenizing or resizing, the tower, and the copy back, which also waits for a
GPU. Decoding the JPEG is not in it. On a machine with other work to do trust the median only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from furnclip.evaluate.split import Split
from furnclip.model import Clip
from furnclip.vectors import Floats, top_k

Call = Callable[[Clip, Floats], object]
_BATCHES = (1, 32)
_WARM_UP, _FEWEST, _MOST = 2, 5, 200


def measure_latency(
    models: Mapping[str, tuple[Clip, Floats]], split: Split, *, seconds: float
) -> dict[str, dict[str, Any]]:
    """Milliseconds by label, for texts, images, and a search of one text in the model's images (N, D).

    `seconds`: to spend on each figure of each model; for 0 there are no figures.
    """
    figures: dict[str, dict[str, Any]] = {label: {} for label in models}
    if seconds <= 0:
        return figures
    for name, size, call in _calls(split):
        work = {label: partial(call, clip, images) for label, (clip, images) in models.items()}
        for label, found in _in_turn(work, seconds).items():
            if size is None:
                figures[label][name] = found
            else:
                figures[label].setdefault(name, {})[str(size)] = found
    return figures


def _calls(split: Split) -> Iterator[tuple[str, int | None, Call]]:
    """What is timed: its name, how many items at once, and the call."""
    for size in _BATCHES:
        rows = [index % len(split) for index in range(size)]
        yield "texts", size, partial(_encode_texts, [split.captions[row] for row in rows])
        yield "images", size, partial(_encode_images, list(split.images(rows)))
    yield "search", None, partial(_search, split.captions[0])


def _encode_texts(captions: list[str], clip: Clip, _: Floats) -> object:
    return clip.encode_texts(captions)


def _encode_images(images: list[Image.Image], clip: Clip, _: Floats) -> object:
    return clip.encode_images(images)


def _search(caption: str, clip: Clip, gallery: Floats) -> object:
    return top_k(clip.encode_texts([caption]), gallery, 10)


def _in_turn(work: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, dict[str, float | int]]:
    """p50 and p95 of repeated calls, in milliseconds, and how many were timed, by label."""
    for call in [*work.values()] * _WARM_UP:
        call()
    taken: dict[str, list[float]] = {label: [] for label in work}
    stop = time.perf_counter() + seconds * len(work)
    for turn in range(_MOST):
        if turn >= _FEWEST and time.perf_counter() >= stop:
            break
        for label, call in work.items():
            start = time.perf_counter()
            call()
            taken[label].append((time.perf_counter() - start) * 1000)
    return {label: _percentiles(times) for label, times in taken.items()}


def _percentiles(times_ms: list[float]) -> dict[str, float | int]:
    p50, p95 = np.percentile(times_ms, [50, 95])
    return {"p50_ms": float(p50), "p95_ms": float(p95), "calls": len(times_ms)}
