"""Intervals and the paired test: known answers, and coverage counted over simulated catalogues."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import pytest

from furnclip.metrics.bootstrap import bootstrap_interval, paired_test

FULL = os.environ.get("FURNCLIP_FULL") == "1"
Floats = npt.NDArray[np.floating]


def catalogue(
    random: np.random.Generator, *, groups: int, difficulty: tuple[float, float]
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Hits (0 or 1) of queries whose group shares one chance of success, drawn from a beta law.

    Groups hold one to five queries, so the queries are far from independent.
    """
    sizes = random.integers(1, 6, groups)
    chances = random.beta(*difficulty, size=groups)
    labels = np.repeat(np.arange(groups), sizes)
    return (random.random(len(labels)) < chances[labels]).astype(np.float64), labels


def coverage(*, groups: int, difficulty: tuple[float, float], repeats: int, grouped: bool = True) -> float:
    random = np.random.default_rng(7)
    truth = difficulty[0] / sum(difficulty)
    covered = 0
    for repeat in range(repeats):
        hits, labels = catalogue(random, groups=groups, difficulty=difficulty)
        units = labels if grouped else np.arange(len(hits))
        interval = bootstrap_interval(hits, units, samples=400, seed=repeat)
        covered += interval.low <= truth <= interval.high
    return covered / repeats


@pytest.mark.parametrize(
    ("groups", "difficulty"), [(15, (1.0, 1.0)), (60, (0.5, 1.5)), (200, (0.5, 0.5)), (60, (3.0, 0.3))]
)
def test_intervals_hold_the_truth_as_often_as_they_say(groups: int, difficulty: tuple[float, float]) -> None:
    repeats = 4000 if FULL else 400
    share = coverage(groups=groups, difficulty=difficulty, repeats=repeats)
    noise = 3 * (0.95 * 0.05 / repeats) ** 0.5
    print(f"coverage of 95 % intervals with {groups} groups, beta{difficulty}: {share:.4f} of {repeats}")
    assert 0.925 - noise <= share <= 0.99


def test_drawing_single_queries_would_promise_too_much() -> None:
    grouped = coverage(groups=60, difficulty=(0.3, 0.3), repeats=300)
    ungrouped = coverage(groups=60, difficulty=(0.3, 0.3), repeats=300, grouped=False)
    assert ungrouped < 0.85 < 0.90 < grouped


def test_the_mean_is_over_queries_and_not_over_groups() -> None:
    interval = bootstrap_interval(np.asarray([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"])
    assert interval.value == 0.75
    assert interval.groups == 2
    assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0


def test_all_hits_leave_room_for_an_unseen_miss() -> None:
    interval = bootstrap_interval(np.ones(20), range(20))
    assert (interval.value, interval.high) == (1.0, 1.0)
    assert interval.low == pytest.approx(0.025 ** (1 / 20))  # Clopper and Pearson, 20 of 20


def test_one_group_says_nothing() -> None:
    interval = bootstrap_interval(np.asarray([1.0, 0.0]), ["same", "same"])
    assert (interval.low, interval.value, interval.high) == (0.0, 0.5, 1.0)


def test_more_groups_give_a_narrower_interval_and_a_seed_gives_the_same() -> None:
    few = bootstrap_interval(np.tile([0.0, 1.0], 10), range(20))
    many = bootstrap_interval(np.tile([0.0, 1.0], 200), range(400))
    assert many.high - many.low < (few.high - few.low) / 3
    assert few == bootstrap_interval(np.tile([0.0, 1.0], 10), range(20))


def test_a_clear_gain_is_told_from_chance() -> None:
    random = np.random.default_rng(3)
    base = (random.random(200) < 0.3).astype(np.float64)
    better = np.maximum(base, (random.random(200) < 0.3).astype(np.float64))
    test = paired_test(base, better, range(200))
    assert test.difference == pytest.approx(float(np.mean(better - base)))
    assert 0 < test.low < test.difference < test.high
    assert test.p_value < 0.001


def test_the_same_answers_are_no_gain() -> None:
    hits = np.asarray([0.0, 1.0] * 10)
    test = paired_test(hits, hits, range(20))
    assert (test.difference, test.p_value) == (0.0, 1.0)
    assert test.low < 0 < test.high


def test_a_small_sample_matches_the_exact_sign_flip() -> None:
    # three groups that all gained: of the eight sign patterns two are as extreme, p = 1/4
    test = paired_test(np.zeros(3), np.ones(3), range(3), samples=20_000)
    assert test.p_value == pytest.approx(0.25, abs=0.01)


def test_the_p_value_is_fair_when_nothing_changed() -> None:
    random = np.random.default_rng(5)
    repeats = 2000 if FULL else 200
    small = 0
    for repeat in range(repeats):
        first, labels = catalogue(random, groups=40, difficulty=(1.0, 1.0))
        second = np.random.default_rng(repeat).permutation(first)
        small += paired_test(first, second, labels, samples=400, seed=repeat).p_value <= 0.05
    noise = 3 * (0.95 * 0.05 / repeats) ** 0.5
    assert small / repeats <= 0.05 + noise


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="different queries"):
        paired_test(np.zeros(3), np.zeros(4), range(3))
    with pytest.raises(ValueError, match="3 values and 2 groups"):
        bootstrap_interval(np.zeros(3), range(2))
