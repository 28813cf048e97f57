"""Retrieval metrics over a whole gallery, with several relevant items to a query.

In: unit vectors of queries (Q, D) and of the gallery (N, D), and for each query the gallery indices of every
relevant item. Out: ranks from 1, and from them recall@k (a relevant item among the first k), reciprocal rank
and average precision; nDCG (Järvelin and Kekäläinen, 2002) with graded gains. Nothing is ever Q x N in
memory.

Ties are counted against the model: an irrelevant item that scores as high as a relevant one comes first.
Scores closer than `TIE` are tied, because float32 cannot tell them apart. Relevant items of one query never
push each other back. All of it depends on the gallery's size: never quote one without the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]
Gains = Callable[[slice], Floats]
"""Gains of all gallery items for some of the queries: a new array (B, N), not negative."""

TIE = 1e-6
SCORES = 1 << 24
"""Scores held at a time: 64 MB in float32."""


def ranks(queries: Floats, gallery: Floats, relevant: Sequence[Integers]) -> Integers:
    """Rank of the first relevant item of each query, from 1: (Q,)."""
    return np.asarray([found[0] for found in every_rank(queries, gallery, relevant)], dtype=np.int64)


def every_rank(
    queries: Floats,
    gallery: Floats,
    relevant: Sequence[Integers],
    *,
    exclude: Integers | None = None,
    scores_held: int = SCORES,
) -> list[Integers]:
    """Ranks of all relevant items of each query, ascending, from 1: Q arrays.

    `exclude`: the gallery item that is the query itself and is left out, one a query: (Q,).
    Raises `ValueError` when shapes do not fit, a vector is not finite, or a query has nothing relevant.
    """
    _check(queries, gallery, relevant, exclude)
    found: list[Integers] = []
    for rows, scores in _scored(queries, gallery, exclude, scores_held):
        for others, items in zip(scores, relevant[rows], strict=True):
            own = np.sort(others[items])[::-1]
            others[items] = -np.inf  # relevant items do not stand before each other
            ahead = len(others) - np.searchsorted(np.sort(others), own - TIE, side="left")
            found.append(ahead + np.arange(1, len(own) + 1))
    return found


def recall_at_k(first_ranks: Integers, k: int) -> float:
    """Share of queries with a relevant item among the first k; 0 to 1."""
    return float(np.mean(first_ranks <= k))


def chance_recall_at_k(relevant_counts: Sequence[int], gallery_size: int, k: int) -> float:
    """recall@k of a gallery in random order, for queries with this many relevant items each."""
    misses = 0.0
    for relevant, queries in Counter(relevant_counts).items():
        others = gallery_size - relevant
        drawn = range(min(k, gallery_size))
        misses += queries * math.prod(max(0, others - place) / (gallery_size - place) for place in drawn)
    return 1.0 - misses / len(relevant_counts)


def mean_reciprocal_rank(first_ranks: Integers) -> float:
    """Mean of 1 / rank of the first relevant item; 0 to 1."""
    return float(np.mean(1.0 / first_ranks))


def average_precision(found: Sequence[Integers]) -> Floats:
    """Average precision of each query from the ranks of all its relevant items: (Q,), 0 to 1."""
    return np.asarray([np.mean(np.arange(1, len(row) + 1) / row) for row in found], dtype=np.float64)


def ndcg_at_k(
    queries: Floats,
    gallery: Floats,
    gains: Gains,
    *,
    k: int,
    exclude: Integers | None = None,
    scores_held: int = SCORES,
) -> Floats:
    """Normalized discounted cumulative gain of each query's first k items: (Q,), 0 to 1.

    Among tied scores (to six decimals) the smaller gain comes first. With fewer than k items the
    ideal order has only those.
    """
    count = min(k, len(gallery))
    discounts = 1.0 / np.log2(np.arange(2, count + 2))
    values: list[Floats] = []
    for rows, scores in _scored(queries, gallery, exclude, scores_held):
        worth = gains(rows)
        worth[np.isneginf(scores)] = 0.0  # the query itself
        best = np.sort(np.partition(worth, -count, axis=1)[:, -count:], axis=1)[:, ::-1] @ discounts
        if not np.all(best > 0):
            raise ValueError("a query has no gallery item with a gain above zero")
        values.append(_first_gains(scores, worth, count) @ discounts / best)
    return np.concatenate(values)


def _scored(
    queries: Floats, gallery: Floats, exclude: Integers | None, scores_held: int
) -> Iterator[tuple[slice, Floats]]:
    """Some queries at a time, and their scores (B, N): minus infinity for the item that is excluded."""
    step = max(1, scores_held // len(gallery))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        scores = queries[rows] @ gallery.T
        if exclude is not None:
            scores[np.arange(len(scores)), exclude[rows]] = -np.inf
        yield rows, scores


def _check(queries: Floats, gallery: Floats, relevant: Sequence[Integers], exclude: Integers | None) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {queries.shape} and gallery {gallery.shape} must be (Q, D) and (N, D)")
    if len(relevant) != len(queries) or (exclude is not None and len(exclude) != len(queries)):
        raise ValueError("there must be one entry of relevant items and exclusions for each query")
    if not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
        raise ValueError("a vector is not finite")
    for row, items in enumerate(relevant):
        if len(items) == 0:
            raise ValueError(f"query {row} has no relevant item in the gallery")
        if exclude is not None and exclude[row] in items:
            raise ValueError(f"query {row} is relevant to itself")


def _first_gains(scores: Floats, gains: Floats, count: int) -> Floats:
    """The gains of the best scores of each row, the smaller gain first among equals: (B, count)."""
    thresholds = np.partition(scores, -count, axis=1)[:, -count] - TIE  # (B,)
    first = np.empty((len(scores), count), dtype=gains.dtype)
    for row, threshold in enumerate(thresholds):
        candidates = np.flatnonzero(scores[row] >= threshold)
        by_score = np.lexsort((gains[row, candidates], -np.round(scores[row, candidates], 6)))
        first[row] = gains[row, candidates[by_score[:count]]]
    return first
