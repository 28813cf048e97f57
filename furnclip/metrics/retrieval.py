"""Retrieval metrics over a whole gallery, with several right answers to a query.

In: unit vectors of queries (Q, D) and of the gallery (N, D), and for each query the gallery indices
of every right answer. Out: ranks from 1, and from them recall@k, reciprocal rank and average
precision; nDCG (Järvelin and Kekäläinen, 2002) with graded gains. Nothing is ever Q x N in memory.

Ties are counted against the model: a wrong item that scores as high as a right one comes first, so
a model that gives everything the same score finds nothing. Right answers to the same query never
stand in each other's way for the first rank. Scores closer than `TIE` are tied, because float32
cannot tell them apart.

`recall@k` is the share of queries with at least one right answer among the first k, as the CLIP
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
Relevant = Sequence[Integers]
Gains = Callable[[slice, slice], Floats]
"""Gains of gallery items (second slice) for queries (first slice): an array (B, C), not negative."""

TIE = 1e-6
CHUNK = (256, 65536)
"""Queries and gallery items looked at together: 64 MB of scores in float32."""


def right_answers(
    query_keys: Sequence[Hashable], gallery_keys: Sequence[Hashable], *, exclude_self: bool = False
) -> list[Integers]:
    """Gallery indices that carry the query's key, ascending, for each query.

    `exclude_self`: query i is gallery item i and not an answer to itself.
    """
    places: dict[Hashable, list[int]] = {}
    for index, key in enumerate(gallery_keys):
        places.setdefault(key, []).append(index)
    arrays = {key: np.asarray(found, dtype=np.int64) for key, found in places.items()}
    none = np.empty(0, dtype=np.int64)
    answers = [arrays.get(key, none) for key in query_keys]
    if exclude_self:
        return [found[found != index] for index, found in enumerate(answers)]
    return answers


def ranks(
    queries: Floats,
    gallery: Floats,
    relevant: Relevant,
    *,
    exclude: Integers | None = None,
    chunk: tuple[int, int] = CHUNK,
) -> Integers:
    """Rank of the first right answer to each query, from 1: (Q,).

    `exclude`: the gallery item that is the query itself and is left out, one a query: (Q,).
    """
    found = every_rank(queries, gallery, relevant, exclude=exclude, chunk=chunk)
    return np.asarray([query_ranks[0] for query_ranks in found], dtype=np.int64)


def every_rank(
    queries: Floats,
    gallery: Floats,
    relevant: Relevant,
    *,
    exclude: Integers | None = None,
    chunk: tuple[int, int] = CHUNK,
) -> list[Integers]:
    """Ranks of all right answers to each query, ascending, from 1: Q arrays.

    Raises `ValueError` when shapes do not fit, a vector is not finite, or a query has no answer.
    """
    _check(queries, gallery, relevant, exclude)
    found: list[Integers] = []
    for rows in _slices(len(queries), chunk[0]):
        hidden = _hidden(rows, relevant, exclude)
        columns = _slices(len(gallery), chunk[1])
        found.extend(_ranks_of_block(queries[rows], gallery, relevant[rows], hidden=hidden, columns=columns))
    return found


def recall_at_k(first_ranks: Integers, k: int) -> float:
    """Share of queries with a right answer among the first k; 0 to 1."""
    return float(np.mean(first_ranks <= k))


def chance_recall_at_k(right_counts: Sequence[int], gallery_size: int, k: int) -> float:
    """recall@k of a gallery in random order, for queries with so many right answers each."""
    misses = 0.0
    for right, queries in Counter(right_counts).items():
        wrong = gallery_size - right
        drawn = range(min(k, gallery_size))
        misses += queries * math.prod(max(0, wrong - place) / (gallery_size - place) for place in drawn)
    return 1.0 - misses / len(right_counts)


def mean_reciprocal_rank(first_ranks: Integers) -> float:
    """Mean of 1 / rank of the first right answer; 0 to 1."""
    return float(np.mean(1.0 / first_ranks))


def average_precision(found: Sequence[Integers]) -> Floats:
    """Average precision of each query from the ranks of all its right answers: (Q,), 0 to 1."""
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
    """Normalised discounted cumulative gain of each query's first k items: (Q,), 0 to 1.

    Among tied scores (to six decimals) the smaller gain comes first. With fewer than k items the
    ideal order has only those.
    """
    values: list[Floats] = []
    for rows in _slices(len(queries), chunk[0]):
        blocks = (
            _scored(queries, gallery, gains, rows=rows, columns=columns, exclude=exclude)
            for columns in _slices(len(gallery), chunk[1])
        )
        reached, ideal = _top_gains(blocks, rows.stop - rows.start, k)
        best = ideal @ _discounts(ideal.shape[1])
        if not np.all(best > 0):
            raise ValueError("a query has no gallery item with a gain above zero")
        values.append(reached @ _discounts(reached.shape[1]) / best)
    return np.concatenate(values)


def _discounts(k: int) -> Floats:
    return np.asarray(1.0 / np.log2(np.arange(2, k + 2)), dtype=np.float64)


def _slices(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def _check(queries: Floats, gallery: Floats, relevant: Relevant, exclude: Integers | None) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {queries.shape} and gallery {gallery.shape} must be (Q, D) and (N, D)")
    if len(relevant) != len(queries) or (exclude is not None and len(exclude) != len(queries)):
        raise ValueError("there must be one entry of right answers and exclusions for each query")
    if not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
        raise ValueError("a vector is not finite")
    for row, answers in enumerate(relevant):
        if len(answers) == 0:
            raise ValueError(f"query {row} has no right answer in the gallery")
        if exclude is not None and exclude[row] in answers:
            raise ValueError(f"query {row} is an answer to itself")


def _hidden(rows: slice, relevant: Relevant, exclude: Integers | None) -> list[Integers]:
    """Gallery items that cannot be wrong answers: the right ones, and the query itself."""
    if exclude is None:
        return list(relevant[rows])
    return [np.append(relevant[row], exclude[row]) for row in range(rows.start, rows.stop)]


def _ranks_of_block(
    block: Floats,
    gallery: Floats,
    relevant: Relevant,
    *,
    hidden: Sequence[Integers],
    columns: Iterable[slice],
) -> list[Integers]:
    right_scores = [
        np.sort(gallery[answers] @ query)[::-1] for query, answers in zip(block, relevant, strict=True)
    ]
    wrong_ahead = [np.zeros(len(scores), dtype=np.int64) for scores in right_scores]
    for chunk in columns:
        scores = block @ gallery[chunk].T  # (B, C)
        _hide(scores, chunk, hidden)
        scores.sort(axis=1)
        for row, right in enumerate(right_scores):
            wrong_ahead[row] += scores.shape[1] - np.searchsorted(scores[row], right - TIE, side="left")
    return [ahead + np.arange(1, len(ahead) + 1) for ahead in wrong_ahead]


def _hide(scores: Floats, columns: slice, hidden: Sequence[Integers]) -> None:
    """Set the hidden items of this chunk of the gallery to minus infinity, in place."""
    for row, items in enumerate(hidden):
        inside = items[(items >= columns.start) & (items < columns.stop)]
        scores[row, inside - columns.start] = -np.inf


def _scored(
    queries: Floats,
    gallery: Floats,
    gains: Gains,
    *,
    rows: slice,
    columns: slice,
    exclude: Integers | None,
) -> tuple[Floats, Floats]:
    """Scores and gains of one chunk, both (B, C); the query itself is worth nothing and comes last."""
    scores = queries[rows] @ gallery[columns].T
    worth = np.array(gains(rows, columns), dtype=np.float32)  # a copy: it is changed below
    if exclude is not None:
        _hide(scores, columns, [exclude[row : row + 1] for row in range(rows.start, rows.stop)])
        worth[np.isneginf(scores)] = 0.0
    return scores, worth


def _top_gains(blocks: Iterable[tuple[Floats, Floats]], queries: int, k: int) -> tuple[Floats, Floats]:
    """Gains of the first k items as the model orders them, and as the ideal order does: (B, k) twice."""
    nothing: Floats = np.zeros((queries, 0), dtype=np.float32)
    best_scores, best_gains, ideal = nothing, nothing, nothing  # (B, up to k): the best so far
    for scores, gains in blocks:
        chunk_scores, chunk_gains = _first_k(scores, gains, k)
        best_scores, best_gains = _first_k(
            np.hstack([best_scores, chunk_scores]), np.hstack([best_gains, chunk_gains]), k
        )
        ideal = _largest(np.hstack([ideal, _largest(gains, k)]), k)
    return best_gains, ideal


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
