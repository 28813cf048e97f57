"""Exact nearest neighbours and late fusion of unit vectors, in numpy.

Nothing here holds more than one block of scores, so a million products need no more memory than
their own vectors. For less than some ten thousand products this is faster than any index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_BLOCK_ROWS = 16384  # x 64 queries x 4 bytes = 4 MB of scores, which stay in the cache
_BLOCK_QUERIES = 64


def unit(vectors: npt.NDArray[Any]) -> Floats:
    """`vectors` (N, D) scaled to length 1 as float32; a zero row stays zero."""
    rows: Floats = np.array(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(lengths > 0, lengths, 1)
    return rows


def fuse(image: Floats, text: Floats, image_weight: float) -> Floats:
    """The late fusion of unit vectors, unit length again: `w * image + (1 - w) * text`, (N, D)."""
    return unit(image_weight * image + (1 - image_weight) * text)


def top_k(
    queries: Floats, gallery: Floats, k: int, *, present: npt.NDArray[np.bool_] | None = None
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The `k` best gallery rows by dot product for each query: scores and row numbers, both (Q, k).

    Best first; of equal scores the lower row number comes first. `queries` (Q, D), `gallery` (N, D);
    rows that are not `present` (N,) are left out. With fewer than `k` rows there are fewer columns.
    """
    rows = np.arange(len(gallery)) if present is None else np.flatnonzero(present)
    width = max(0, min(k, len(rows)))
    scores = np.empty((len(queries), width), dtype=np.float32)
    indices = np.empty((len(queries), width), dtype=np.int64)
    for start in range(0, len(queries) if width else 0, _BLOCK_QUERIES):
        stop = start + _BLOCK_QUERIES
        block = queries[start:stop]
        scores[start:stop], indices[start:stop] = _top_k_block(block, gallery, rows, width)
    return scores, indices


def _top_k_block(
    queries: Floats, gallery: Floats, rows: npt.NDArray[np.int64], width: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    best_scores = [np.empty(0, dtype=np.float32) for _ in queries]
    best_rows = [np.empty(0, dtype=np.int64) for _ in queries]
    for start in range(0, len(rows), _BLOCK_ROWS):
        chunk = rows[start : start + _BLOCK_ROWS]
        scores = queries @ gallery[_as_slice(chunk)].T  # (Q, block)
        for number, row_scores in enumerate(scores):
            found = _promising(row_scores, best_scores[number], width)
            merged = np.concatenate([best_scores[number], row_scores[found]])
            merged_rows = np.concatenate([best_rows[number], chunk[found]])
            # Stable, and earlier rows stand first: ties go to the lower row number.
            order = np.argsort(-merged, kind="stable")[:width]
            best_scores[number], best_rows[number] = merged[order], merged_rows[order]
    return np.stack(best_scores), np.stack(best_rows)


def _promising(scores: Floats, best: Floats, width: int) -> npt.NDArray[np.int64]:
    """Places in `scores` that can still be among the best `width`, ascending."""
    if len(best) == width:
        return np.flatnonzero(scores > best[-1])
    if len(scores) <= width:
        return np.arange(len(scores))
    threshold = np.partition(scores, len(scores) - width)[len(scores) - width]
    return np.flatnonzero(scores >= threshold)


def _as_slice(rows: npt.NDArray[np.int64]) -> slice | npt.NDArray[np.int64]:
    """A slice where the row numbers have no gap, so that the gallery is not copied."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows
