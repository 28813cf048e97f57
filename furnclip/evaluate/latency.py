"""How long a model takes, warm, for one item and for 32 at once.

Wall time of the public encode call: tokenizing or resizing, the tower, and the copy back, which also
waits for a GPU. Decoding the JPEG is not in it. On a machine with other work to do trust the median
only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from furnclip.evaluate.split import Split
from furnclip.model import Clip
from furnclip.vectors import top_k

_BATCHES = (1, 32)
_WARM_UP, _FEWEST, _MOST = 2, 5, 200


def measure_latency(
    clip: Clip, split: Split, gallery: npt.NDArray[np.float32], *, seconds: float
) -> dict[str, Any]:
    """Milliseconds for texts, pictures, and a search of one text in `gallery` (N, D); {} for 0 seconds."""
    if seconds <= 0:
        return {}
    figures: dict[str, Any] = {"texts": {}, "images": {}}
    for size in _BATCHES:
        captions = [split.captions[index % len(split)] for index in range(size)]
        pictures = list(split.pictures([index % len(split) for index in range(size)]))
        figures["texts"][str(size)] = _percentiles(partial(clip.encode_texts, captions), seconds)
        figures["images"][str(size)] = _percentiles(partial(clip.encode_images, pictures), seconds)
    caption = [split.captions[0]]
    figures["search"] = _percentiles(lambda: top_k(clip.encode_texts(caption), gallery, 10), seconds)
    return figures


def _percentiles(work: Callable[[], object], seconds: float) -> dict[str, float | int]:
    """p50 and p95 of repeated calls, in milliseconds, and how many were timed."""
    for _ in range(_WARM_UP):
        work()
    taken: list[float] = []
    stop = time.perf_counter() + seconds
    while len(taken) < _FEWEST or (len(taken) < _MOST and time.perf_counter() < stop):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1000)
    p50, p95 = np.percentile(taken, [50, 95])
    return {"p50_ms": float(p50), "p95_ms": float(p95), "calls": len(taken)}
