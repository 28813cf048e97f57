"""Exact nearest neighbors and late fusion of unit vectors, in numpy.

Nothing here holds more than one block of scores, so a million products need no more memory than
their own vectors. For less than some ten thousand products this is faster than any index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_BLOCK_ROWS = 16384  # x 64 queries x 4 bytes = 4 MB of scores, which stay in the cache
_BLOCK_QUERIES = 64


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
    scores = np.full((len(queries), width), -np.inf, dtype=np.float32)
    indices = np.zeros((len(queries), width), dtype=np.int64)
    for first in range(0, len(queries) if width else 0, _BLOCK_QUERIES):
        block = queries[first : first + _BLOCK_QUERIES]
        for start in range(0, len(rows), _BLOCK_ROWS):
            chunk = rows[start : start + _BLOCK_ROWS]
            without_gaps = chunk[-1] - chunk[0] + 1 == len(chunk)  # then the gallery is not copied
            part = gallery[chunk[0] : chunk[-1] + 1] if without_gaps else gallery[chunk]
            for number, found in enumerate(block @ part.T, start=first):
                _keep_best(scores[number], indices[number], found, chunk)
    return scores, indices


def _keep_best(scores: Floats, indices: Integers, found: Floats, rows: Integers) -> None:
    """Merge what these `rows` score into the best so far, in place; rows come in ascending order."""
    width = len(scores)
    promising = np.flatnonzero(found > scores[-1])
    if len(promising) > width:
        least = np.partition(found[promising], -width)[-width]
        promising = promising[found[promising] >= least]
    merged = np.concatenate([scores, found[promising]])
    merged_rows = np.concatenate([indices, rows[promising]])
    # Stable, and earlier rows stand first: ties go to the lower row number.
    order = np.argsort(-merged, kind="stable")[:width]
    scores[:], indices[:] = merged[order], merged_rows[order]
