"""The mathematics of votes against published examples, independent packages and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from furnclip.metrics.standings import (
    bradley_terry,
    confidence_sequence,
    information_gain,
    krippendorff_alpha,
    sign_test,
    votes_needed,
    wilson_interval,
)

counts = st.tuples(st.integers(0, 400), st.integers(0, 400))


@pytest.mark.parametrize(
    ("wins", "trials", "lower", "upper"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_newcombe_1998_table_1(wins: int, trials: int, lower: float, upper: float) -> None:
    assert wilson_interval(wins, trials) == pytest.approx((lower, upper), abs=6e-5)


@given(counts)
def test_wilson_equals_scipy(pair: tuple[int, int]) -> None:
    from scipy import stats

    wins, losses = pair
    if wins + losses == 0:
        assert wilson_interval(0, 0) == (0.0, 1.0)
        return
    theirs = stats.binomtest(wins, wins + losses).proportion_ci(0.95, method="wilson")
    assert wilson_interval(wins, wins + losses) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(counts)
def test_sign_test_equals_scipy(pair: tuple[int, int]) -> None:
    from scipy import stats

    wins, losses = pair
    theirs = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(theirs, rel=1e-9)


def test_sign_test_is_exact_far_out() -> None:
    assert sign_test(1000, 0) == 2.0**-999
    assert sign_test(5000, 5000) == 1.0


@pytest.mark.parametrize(("rate", "votes"), [(0.55, 783), (0.60, 194), (0.65, 85), (0.70, 47), (0.45, 783)])
def test_planner_reproduces_its_table(rate: float, votes: int) -> None:
    assert votes_needed(rate) == votes


def test_planner_has_no_number_for_a_coin() -> None:
    assert votes_needed(0.5) is None


def test_planner_promises_the_power_that_simulation_finds() -> None:
    votes = votes_needed(0.6)
    assert votes is not None
    wins = np.random.default_rng(0).binomial(votes, 0.6, 20_000)
    z = np.abs(wins / votes - 0.5) / np.sqrt(0.25 / votes)
    assert (z > 1.959964).mean() == pytest.approx(0.8, abs=0.02)


# Krippendorff's own example: four observers, twelve units.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def _by_thing(table: list[list[int | None]]) -> list[dict[str, str]]:
    columns = zip(*table, strict=True)
    return [
        {str(rater): str(value) for rater, value in enumerate(column) if value is not None}
        for column in columns
    ]


def test_alpha_equals_krippendorffs_example() -> None:
    assert krippendorff_alpha(_by_thing(KRIPPENDORFF)) == pytest.approx(0.743, abs=5e-4)


@pytest.mark.parametrize("seed", range(20))
def test_alpha_equals_the_krippendorff_package(seed: int) -> None:
    import krippendorff

    random = np.random.default_rng(seed)
    table = random.integers(0, 4, (4, 30)).tolist()
    for row in table:
        for column in range(30):
            if random.random() < 0.4:
                row[column] = None
    numbers = np.array([[np.nan if value is None else value for value in row] for row in table])
    theirs = krippendorff.alpha(reliability_data=numbers, level_of_measurement="nominal")
    assert krippendorff_alpha(_by_thing(table)) == pytest.approx(theirs, abs=1e-12)


def test_alpha_says_nothing_where_nothing_was_judged_twice() -> None:
    assert krippendorff_alpha([{"anna": "base"}, {"ben": "tuned"}]) is None
    assert krippendorff_alpha([{"anna": "base", "ben": "base"}]) is None
    assert krippendorff_alpha([]) is None


# Citations among four statistics journals (Stigler 1994), as fitted by R's BradleyTerry2.
JOURNALS = ("Biometrika", "Comm Statist", "JASA", "JRSS-B")
CITATIONS = [[714, 730, 498, 221], [33, 425, 68, 17], [320, 813, 1072, 142], [284, 276, 325, 188]]


def test_bradley_terry_equals_the_journals_example() -> None:
    fit = bradley_terry(CITATIONS, JOURNALS)
    scores = np.array(fit.scores) - fit.scores[0]
    assert scores == pytest.approx([0, -2.9491, -0.4796, 0.2690], abs=1e-4)
    covariance = fit.covariance
    errors = [
        np.sqrt(covariance[i, i] + covariance[0, 0] - 2 * covariance[0, i]) for i in range(1, len(JOURNALS))
    ]
    assert errors == pytest.approx([0.1025, 0.0606, 0.0708], abs=1e-4)
    assert not fit.regularized


@pytest.mark.parametrize("seed", range(10))
def test_bradley_terry_equals_choix(seed: int) -> None:
    import choix

    random = np.random.default_rng(seed)
    wins = random.integers(1, 30, (5, 5))
    np.fill_diagonal(wins, 0)
    games = [(i, j) for i in range(5) for j in range(5) for _ in range(wins[i, j])]
    fit = bradley_terry(wins, "abcde")
    assert fit.scores == pytest.approx(choix.ilsr_pairwise(5, games), abs=1e-6)
    assert all(low < score < high for score, (low, high) in zip(fit.scores, fit.intervals, strict=True))


def test_bradley_terry_stays_finite_for_a_model_that_never_lost() -> None:
    fit = bradley_terry([[0, 40, 40], [0, 0, 10], [0, 12, 0]], ("champion", "b", "c"))
    assert fit.regularized
    assert fit.scores[0] > 2.5
    assert np.isfinite(fit.intervals).all()


def test_bradley_terry_without_votes_knows_nothing() -> None:
    fit = bradley_terry(np.zeros((3, 3)), "abc")
    assert fit.regularized
    assert fit.scores == pytest.approx([0, 0, 0])


def test_bradley_terry_intervals_cover_the_truth() -> None:
    random = np.random.default_rng(1)
    truth = np.array([0.6, 0.1, -0.7])
    hits = 0
    for _ in range(300):
        wins = np.zeros((3, 3))
        for i, j in ((0, 1), (0, 2), (1, 2)):
            wins[i, j] = random.binomial(60, 1 / (1 + np.exp(truth[j] - truth[i])))
            wins[j, i] = 60 - wins[i, j]
        fit = bradley_terry(wins, "abc")
        hits += sum(low <= t <= high for t, (low, high) in zip(truth, fit.intervals, strict=True))
    assert hits / 900 == pytest.approx(0.95, abs=0.02)


def test_most_is_told_by_the_pair_that_is_least_known() -> None:
    wins = [[0, 200, 2], [200, 0, 3], [2, 3, 0]]
    fit = bradley_terry(wins, "abc")
    assert information_gain(fit, 0, 2) > information_gain(fit, 0, 1)


@given(st.integers(1, 300), st.floats(0, 1))
def test_the_sequence_is_wider_than_wilson_and_holds_the_rate(trials: int, share: float) -> None:
    wins = round(trials * share)
    lower, upper = confidence_sequence(wins, trials)
    assert 0 <= lower <= wins / trials <= upper <= 1
    assert upper - lower > np.subtract(*wilson_interval(wins, trials)[::-1])


@pytest.mark.parametrize("rate", [0.5, 0.6, 0.9])
def test_the_sequence_survives_a_look_after_every_vote(rate: float) -> None:
    """2,000 raters who look after each of 400 votes: 5 % at most ever see the truth excluded."""
    random = np.random.default_rng(7)
    votes = random.random((2000, 400)) < rate
    wins = votes.cumsum(axis=1)
    ever_wrong = np.zeros(2000, dtype=bool)
    for n in range(1, 401):
        low, high = _bounds(n)
        ever_wrong |= (rate < low[wins[:, n - 1]]) | (rate > high[wins[:, n - 1]])
    assert ever_wrong.mean() <= 0.05


def test_peeking_at_wilson_would_be_wrong_far_more_often() -> None:
    random = np.random.default_rng(7)
    wins = (random.random((500, 400)) < 0.5).cumsum(axis=1)
    wrong = np.zeros(500, dtype=bool)
    for n in range(10, 401):
        table = np.array([wilson_interval(w, n) for w in range(n + 1)])
        wrong |= (table[wins[:, n - 1], 0] > 0.5) | (table[wins[:, n - 1], 1] < 0.5)
    assert wrong.mean() > 0.2


_TABLES: dict[int, tuple[np.ndarray, np.ndarray]] = {}


def _bounds(trials: int) -> tuple[np.ndarray, np.ndarray]:
    if trials not in _TABLES:
        table = np.array([confidence_sequence(wins, trials) for wins in range(trials + 1)])
        _TABLES[trials] = (table[:, 0], table[:, 1])
    return _TABLES[trials]
