"""Exact nearest neighbors and late fusion of unit vectors, in numpy.

Nothing here holds more than `_SCORES` scores, so a million products need little more memory than
their own vectors. For less than some ten thousand products this is faster than any index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_SCORES = 1 << 22  # 16 MB


def unit(vectors: npt.NDArray[Any]) -> Floats:
    """`vectors` (N, D) scaled to length 1 as float32; a zero row stays zero."""
    rows: Floats = np.array(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(lengths > 0, lengths, 1)
    return rows


def unit_mean(vectors: Floats, counts: Integers) -> Floats:
    """The mean direction of each product's views, (N, D); one view stays as it is, none is zero.

    vectors: (V, D) unit vectors, product by product. counts: (N,) views of each product.
    """
    there = counts > 0
    means = np.zeros((len(counts), vectors.shape[1]), dtype=np.float32)
    if there.any():
        means[there] = np.add.reduceat(vectors, (np.cumsum(counts) - counts)[there], axis=0)
    means[counts > 1] = unit(means[counts > 1])
    return means


def fuse(image: Floats, text: Floats, image_weight: float) -> Floats:
    """The late fusion of unit vectors, unit length again: `w * image + (1 - w) * text`, (N, D)."""
    return unit(image_weight * image + (1 - image_weight) * text)


def top_k(
    queries: Floats, gallery: Floats, k: int, *, present: Mask | None = None
) -> tuple[Floats, Integers]:
    """The `k` best gallery rows by dot product for each query: scores and row numbers, both (Q, k).

    Best first; of equal scores the lower row number comes first. `queries` (Q, D), `gallery` (N, D);
    rows that are not `present` (N,) are left out. With fewer than `k` rows there are fewer columns.
    """
    rows = np.arange(len(gallery)) if present is None else np.flatnonzero(present)
    width = max(0, min(k, len(rows)))
    scores = np.empty((len(queries), width), dtype=np.float32)
    indices = np.empty((len(queries), width), dtype=np.int64)
    step = max(1, _SCORES // max(1, len(gallery)))
    for start in range(0, len(queries) if width else 0, step):
        for number, every in enumerate(queries[start : start + step] @ gallery.T, start=start):
            found = every[rows]
            likely = np.flatnonzero(found >= np.partition(found, -width)[-width])
            # Stable: of equal ones those that come first.
            best = likely[np.argsort(-found[likely], kind="stable")[:width]]
            scores[number], indices[number] = found[best], rows[best]
    return scores, indices
