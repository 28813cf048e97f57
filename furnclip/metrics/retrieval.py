"""Retrieval metrics over a whole gallery, with several relevant items to a query.

In: unit vectors of queries (Q, D) and of the gallery (N, D), and for each query the gallery indices
of every relevant item. Out: ranks from 1, and from them recall@k, reciprocal rank and average
precision; nDCG (Järvelin and Kekäläinen, 2002) with graded gains. Nothing is ever Q x N in memory.

Ties are counted against the model: an irrelevant item that scores as high as a relevant one comes
first, so a model that gives everything the same score finds nothing. Relevant items of one query
never push each other back. Scores closer than `TIE` are tied, because float32 cannot tell them apart.

`recall@k` is the share of queries with at least one relevant item among the first k, as the CLIP
papers use the word. It depends on the gallery's size: never quote one without the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]
Gains = Callable[[slice, slice], Floats]
"""Gains of gallery items (second slice) for queries (first slice): an array (B, C), not negative."""

TIE = 1e-6
CHUNK = (256, 65536)
"""Queries and gallery items scored together: 64 MB of scores in float32."""


def relevant_by_key(query_keys: Sequence[Hashable], gallery_keys: Sequence[Hashable]) -> list[Integers]:
    """Gallery indices that carry the query's key, ascending, for each query."""
    places: dict[Hashable, list[int]] = {}
    for index, key in enumerate(gallery_keys):
        places.setdefault(key, []).append(index)
    arrays = {key: np.asarray(found, dtype=np.int64) for key, found in places.items()}
    none = np.empty(0, dtype=np.int64)
    return [arrays.get(key, none) for key in query_keys]


def ranks(queries: Floats, gallery: Floats, relevant: Sequence[Integers]) -> Integers:
    """Rank of the first relevant item of each query, from 1: (Q,)."""
    return np.asarray([found[0] for found in every_rank(queries, gallery, relevant)], dtype=np.int64)


def every_rank(
    queries: Floats,
    gallery: Floats,
    relevant: Sequence[Integers],
    *,
    exclude: Integers | None = None,
    chunk: tuple[int, int] = CHUNK,
) -> list[Integers]:
    """Ranks of all relevant items of each query, ascending, from 1: Q arrays.

    `exclude`: the gallery item that is the query itself and is left out, one a query: (Q,).
    Raises `ValueError` when shapes do not fit, a vector is not finite, or a query has nothing relevant.
    """
    _check(queries, gallery, relevant, exclude)
    found: list[Integers] = []
    for rows in _slices(len(queries), chunk[0]):
        hidden = relevant[rows]  # what cannot stand before a relevant item
        if exclude is not None:
            hidden = [np.append(items, own) for items, own in zip(hidden, exclude[rows], strict=True)]
        relevant_scores = [
            np.sort(gallery[items] @ query)[::-1]
            for query, items in zip(queries[rows], relevant[rows], strict=True)
        ]
        ahead = [np.zeros(len(scores), dtype=np.int64) for scores in relevant_scores]
        for columns in _slices(len(gallery), chunk[1]):
            scores = queries[rows] @ gallery[columns].T  # (B, C)
            _hide(scores, columns, hidden)
            scores.sort(axis=1)
            for row, own in enumerate(relevant_scores):
                ahead[row] += scores.shape[1] - np.searchsorted(scores[row], own - TIE, side="left")
        found += [counts + np.arange(1, len(counts) + 1) for counts in ahead]
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
    chunk: tuple[int, int] = CHUNK,
) -> Floats:
    """Normalized discounted cumulative gain of each query's first k items: (Q,), 0 to 1.

    Among tied scores (to six decimals) the smaller gain comes first. With fewer than k items the
    ideal order has only those.
    """
    discounts = 1.0 / np.log2(np.arange(2, min(k, len(gallery)) + 2))
    values: list[Floats] = []
    for rows in _slices(len(queries), chunk[0]):
        top_scores, top_gains, ideal = [], [], []  # of each chunk: (B, up to k)
        for columns in _slices(len(gallery), chunk[1]):
            scores = queries[rows] @ gallery[columns].T  # (B, C)
            worth = np.array(gains(rows, columns), dtype=np.float32)  # a copy: it is changed below
            if exclude is not None:  # the query itself is worth nothing and comes last
                _hide(scores, columns, exclude[rows, None])
                worth[np.isneginf(scores)] = 0.0
            chunk_scores, chunk_gains = _first_k(scores, worth, k)
            top_scores.append(chunk_scores)
            top_gains.append(chunk_gains)
            ideal.append(_largest(worth, k))
        best = _largest(np.hstack(ideal), k) @ discounts
        if not np.all(best > 0):
            raise ValueError("a query has no gallery item with a gain above zero")
        _, reached = _first_k(np.hstack(top_scores), np.hstack(top_gains), k)
        values.append(reached @ discounts / best)
    return np.concatenate(values)


def _slices(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


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


def _hide(scores: Floats, columns: slice, hidden: Iterable[Integers]) -> None:
    """Set the hidden items of this chunk of the gallery to minus infinity, in place."""
    for row, items in enumerate(hidden):
        inside = items[(items >= columns.start) & (items < columns.stop)]
        scores[row, inside - columns.start] = -np.inf


def _first_k(scores: Floats, gains: Floats, k: int) -> tuple[Floats, Floats]:
    """The k best scores of each row in order, the smaller gain first among equals, and their gains."""
    count = min(k, scores.shape[1])
    thresholds = np.partition(scores, -count, axis=1)[:, -count] - TIE  # (B,)
    order = np.empty((len(scores), count), dtype=np.int64)
    for row, threshold in enumerate(thresholds):
        candidates = np.flatnonzero(scores[row] >= threshold)
        by_score = np.lexsort((gains[row, candidates], -np.round(scores[row, candidates], 6)))
        order[row] = candidates[by_score[:count]]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(gains, order, axis=1)


def _largest(values: Floats, k: int) -> Floats:
    """The k largest values of each row, descending: (B, min(k, C))."""
    count = min(k, values.shape[1])
    top: Floats = np.partition(values, -count, axis=1)[:, -count:]
    return np.sort(top, axis=1)[:, ::-1]
