"""Retrieval metrics against matrices small enough to check by eye and a slow, obvious oracle.

A score matrix is handed in as queries with the identity as gallery: the scores are its entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furnclip.metrics.retrieval import (
    average_precision,
    every_rank,
    mean_reciprocal_rank,
    ndcg_at_k,
    ranks,
    recall_at_k,
)
from furnclip.relevance import positives

Floats = npt.NDArray[np.floating]


def identity(scores: Floats) -> Floats:
    return np.eye(scores.shape[1], dtype=np.float32)


def matrix(*rows: Sequence[float]) -> Floats:
    return np.asarray(rows, dtype=np.float32)


def answers(*rows: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    return [np.asarray(row, dtype=np.int64) for row in rows]


def test_one_right_answer_each() -> None:
    scores = matrix(
        [0.9, 0.5, 0.1],  # first is right: rank 1
        [0.9, 0.5, 0.1],  # second is right: rank 2
        [0.9, 0.5, 0.1],  # third is right: rank 3
    )
    found = ranks(scores, identity(scores), answers([0], [1], [2]))
    assert found.tolist() == [1, 2, 3]
    assert recall_at_k(found, 1) == pytest.approx(1 / 3)
    assert recall_at_k(found, 2) == pytest.approx(2 / 3)
    assert mean_reciprocal_rank(found) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_a_tie_counts_against_the_model() -> None:
    scores = matrix([0.5, 0.5, 0.5, 0.1])
    assert ranks(scores, identity(scores), answers([1])).tolist() == [3]
    constant = np.zeros((1, 100), dtype=np.float32)
    assert ranks(constant, identity(constant), answers([0])).tolist() == [100]


def test_scores_that_float32_cannot_tell_apart_are_tied() -> None:
    scores = matrix([0.5 + 3e-8, 0.5])
    assert ranks(scores, identity(scores), answers([0])).tolist() == [2]


def test_right_answers_never_stand_in_each_others_way() -> None:
    scores = matrix([0.9, 0.8, 0.8, 0.1])
    found = every_rank(scores, identity(scores), answers([1, 2]))
    assert found[0].tolist() == [2, 3]
    # precision is 1/2 at the first relevant item and 2/3 at the second
    assert average_precision(found) == pytest.approx([(1 / 2 + 2 / 3) / 2])


def test_tied_right_and_wrong_answers_put_the_wrong_first() -> None:
    scores = matrix([0.5, 0.5, 0.5, 0.5])
    found = every_rank(scores, identity(scores), answers([0, 2]))
    assert found[0].tolist() == [3, 4]


def test_fewer_items_than_k() -> None:
    scores = matrix([0.1, 0.9])
    gallery = identity(scores)
    found = ranks(scores, gallery, answers([0]))
    assert recall_at_k(found, 10) == 1.0
    gains = matrix([3, 1])
    value = ndcg_at_k(scores, gallery, lambda rows: gains[rows].copy(), k=10)
    reached = 1 / math.log2(2) + 3 / math.log2(3)
    ideal = 3 / math.log2(2) + 1 / math.log2(3)
    assert value == pytest.approx([reached / ideal])


def test_graded_gains_and_ties_in_ndcg() -> None:
    scores = matrix([0.9, 0.5, 0.5, 0.1])
    gains = matrix([1, 0, 7, 3])  # the tie at 0.5 puts the gain of 0 first
    value = ndcg_at_k(scores, identity(scores), lambda rows: gains[rows].copy(), k=3)
    reached = 1 / math.log2(2) + 0 / math.log2(3) + 7 / math.log2(4)
    ideal = 7 / math.log2(2) + 3 / math.log2(3) + 1 / math.log2(4)
    assert value == pytest.approx([reached / ideal])


def test_the_query_itself_is_left_out() -> None:
    vectors = matrix([1, 0], [0.9, 0.1], [0, 1])
    keys = ["chair", "chair", "chair"]
    relevant = positives(keys, exclude_self=True)
    assert [found.tolist() for found in relevant] == [[1, 2], [0, 2], [0, 1]]
    found = every_rank(vectors, vectors, relevant, exclude=np.arange(3))
    assert [row.tolist() for row in found] == [[1, 2]] * 3


def test_right_answers_by_key() -> None:
    found = positives(["a", "b", "c", "b"])
    assert [row.tolist() for row in found] == [[0], [1, 3], [2], [1, 3]]


@pytest.mark.parametrize(
    ("queries", "gallery", "relevant", "exclude", "message"),
    [
        (np.ones((1, 2)), np.ones((1, 3)), answers([0]), None, "must be"),
        (np.ones((2, 2)), np.ones((1, 2)), answers([0]), None, "one entry"),
        (np.ones((1, 2)), np.ones((1, 2)), answers([]), None, "query 0 has no relevant item"),
        (np.full((1, 2), np.nan), np.ones((1, 2)), answers([0]), None, "not finite"),
        (np.ones((1, 2)), np.ones((1, 2)), answers([0]), np.asarray([0]), "relevant to itself"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    queries: Floats,
    gallery: Floats,
    relevant: list[npt.NDArray[np.int64]],
    exclude: npt.NDArray[np.int64] | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        every_rank(queries, gallery, relevant, exclude=exclude)


def test_ndcg_without_any_gain_is_refused() -> None:
    scores = matrix([0.5, 0.4])
    with pytest.raises(ValueError, match="gain above zero"):
        ndcg_at_k(scores, identity(scores), lambda rows: np.zeros((1, 2)), k=2)


# --- the oracle: no vectors, no chunks, plain Python ---


def oracle_order(scores: Sequence[float], worth: Sequence[float], hidden: int | None) -> list[int]:
    """Gallery indices as an adversary breaks the ties: best score first, least worth first."""
    items = [index for index in range(len(scores)) if index != hidden]
    return sorted(items, key=lambda index: (-scores[index], worth[index]))


def oracle_ranks(scores: Sequence[float], right: Sequence[int], hidden: int | None) -> list[int]:
    worth = [1.0 if index in right else 0.0 for index in range(len(scores))]
    order = oracle_order(scores, worth, hidden)
    return [place for place, index in enumerate(order, start=1) if index in right]


def oracle_average_precision(found: Sequence[int]) -> float:
    return sum(sum(other <= rank for other in found) / rank for rank in found) / len(found)


def oracle_ndcg(scores: Sequence[float], gains: Sequence[float], k: int, hidden: int | None) -> float:
    order = oracle_order(scores, gains, hidden)
    best = sorted((gains[index] for index in order), reverse=True)
    reached = sum(gains[index] / math.log2(place + 2) for place, index in enumerate(order[:k]))
    return reached / sum(gain / math.log2(place + 2) for place, gain in enumerate(best[:k]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Floats, Floats, list[list[int]], Floats, bool]:
    """Small integer vectors (so ties are common and scores exact), answers, gains, self-exclusion."""
    gallery_size = draw(st.integers(2, 12))
    exclude_self = draw(st.booleans())
    query_count = gallery_size if exclude_self else draw(st.integers(1, 8))
    cell = st.integers(-2, 2)
    gallery = np.asarray(
        draw(st.lists(st.tuples(cell, cell, cell), min_size=gallery_size, max_size=gallery_size)), np.float32
    )
    queries = gallery
    if not exclude_self:
        rows = st.lists(st.tuples(cell, cell, cell), min_size=query_count, max_size=query_count)
        queries = np.asarray(draw(rows), np.float32)
    right = []
    for row in range(query_count):
        allowed = [index for index in range(gallery_size) if not (exclude_self and index == row)]
        right.append(sorted(draw(st.sets(st.sampled_from(allowed), min_size=1))))
    seed = draw(st.integers(0, 2**32 - 1))
    gains = np.random.default_rng(seed).integers(0, 4, (query_count, gallery_size)).astype(np.float64)
    for row, found in enumerate(right):
        gains[row, found] = 7.0
    return queries, gallery, right, gains, exclude_self


@settings(max_examples=300, deadline=None)
@given(case=cases(), k=st.integers(1, 15), held=st.integers(1, 40))
def test_metrics_equal_the_oracle(
    case: tuple[Floats, Floats, list[list[int]], Floats, bool], k: int, held: int
) -> None:
    queries, gallery, right, gains, exclude_self = case
    exclude = np.arange(len(queries)) if exclude_self else None
    found = every_rank(queries, gallery, answers(*right), exclude=exclude, scores_held=held)
    first = np.asarray([row[0] for row in found])
    ndcg = ndcg_at_k(
        queries, gallery, lambda rows: gains[rows].copy(), k=k, exclude=exclude, scores_held=held
    )
    scores = (queries @ gallery.T).tolist()
    expected = [
        oracle_ranks(scores[row], right[row], row if exclude_self else None) for row in range(len(queries))
    ]
    assert [row.tolist() for row in found] == expected
    if exclude is None:
        assert ranks(queries, gallery, answers(*right)).tolist() == [row[0] for row in expected]
    assert recall_at_k(first, k) == pytest.approx(sum(row[0] <= k for row in expected) / len(expected))
    assert mean_reciprocal_rank(first) == pytest.approx(sum(1 / row[0] for row in expected) / len(expected))
    assert average_precision(found) == pytest.approx([oracle_average_precision(row) for row in expected])
    assert ndcg == pytest.approx(
        [
            oracle_ndcg(scores[row], gains[row].tolist(), k, row if exclude_self else None)
            for row in range(len(queries))
        ]
    )


def test_real_vectors_equal_the_oracle() -> None:
    random = np.random.default_rng(1)
    gallery = random.normal(size=(400, 32)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    queries = gallery[:50] + 0.3 * random.normal(size=(50, 32)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    keys = random.integers(0, 60, 400).tolist()
    relevant = positives(keys)[:50]
    found = every_rank(queries, gallery, relevant)
    scores = (queries.astype(np.float64) @ gallery.astype(np.float64).T).tolist()
    expected = [oracle_ranks(scores[row], relevant[row].tolist(), None) for row in range(50)]
    assert [row.tolist() for row in found] == expected
