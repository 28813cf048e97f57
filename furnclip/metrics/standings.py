"""Who is better, and how sure that is: the mathematics of votes between two or more models.

Sources: Wilson (1927) for intervals; the exact binomial for the sign test; Krippendorff, Content Analysis,
4th ed., ch. 12, for alpha; Bradley and Terry (1952) by Newton's method; Robbins (1970) for the confidence
sequence, with the Beta mixture of Howard et al. (2021), arXiv:1810.08240.

Not to be trusted: where votes are not independent (the same query judged by many) every interval here is too
narrow; collapse to one outcome a query first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]
CONFIDENCE, POWER = 0.95, 0.8
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def wilson_interval(wins: int, trials: int) -> Interval:
    """Wilson's score interval for a proportion; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    rate = wins / trials
    center = rate + _Z**2 / (2 * trials)
    spread = _Z * math.sqrt(rate * (1 - rate) / trials + _Z**2 / (4 * trials * trials))
    scale = 1 + _Z**2 / trials
    # At 0 and at `trials` wins the bound is 0 or 1 exactly; rounding would miss it.
    lower = 0.0 if wins == 0 else (center - spread) / scale
    upper = 1.0 if wins == trials else (center + spread) / scale
    return lower, upper


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value of a fair coin for `wins` against `losses`; ties are left out before."""
    trials = wins + losses
    term, tail = 1, 0
    for k in range(min(wins, losses) + 1):  # whole numbers: exact at any size
        tail += term
        term = term * (trials - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << trials))


def confidence_sequence(wins: int, trials: int) -> Interval:
    """An interval for a win rate that holds at all times at once, so that peeking is allowed.

    The mixture of all likelihoods under a uniform prior, divided by the likelihood at p, is a
    martingale if p is the truth; by Ville's inequality it ever exceeds 1 / (1 - CONFIDENCE) with
    probability 1 - CONFIDENCE at most. The interval is every p where it has not.
    """
    if trials == 0:
        return 0.0, 1.0
    losses = trials - wins
    log_mixture = math.lgamma(wins + 1) + math.lgamma(losses + 1) - math.lgamma(trials + 2)
    threshold = log_mixture + math.log(1 - CONFIDENCE)

    def boundary(outside: float) -> float:
        inside = wins / trials
        for _ in range(60):  # halving 60 times reaches the last bit of a float
            p = (outside + inside) / 2
            excluded = wins * math.log(p) + losses * math.log(1 - p) <= threshold
            outside, inside = (p, inside) if excluded else (outside, p)
        return outside

    return boundary(0.0) if wins else 0.0, boundary(1.0) if losses else 1.0


def votes_needed(win_rate: float) -> int | None:
    """Decisive votes after which a true `win_rate` is told from a coin with `POWER`.

    None for 0.5, which no number of votes can tell. The usual two-sided normal planning formula:
    783, 194, 85 and 47 votes for 55, 60, 65 and 70 %.
    """
    distance = abs(win_rate - 0.5)
    if distance == 0:
        return None
    spread = _Z * 0.5 + NormalDist().inv_cdf(POWER) * math.sqrt(win_rate * (1 - win_rate))
    return math.ceil((spread / distance) ** 2)


def krippendorff_alpha(ratings: Sequence[Mapping[str, str]]) -> float | None:
    """Krippendorff's alpha for nominal ratings: 1 agreement, 0 chance, below 0 contradiction.

    `ratings`: for each judged thing, rater -> category. Things with one rater say nothing about
    agreement and are left out. None when nothing was judged twice or only one category was used.
    """
    judged = [Counter(of_thing.values()) for of_thing in ratings if len(of_thing) > 1]
    categories = sorted({category for counts in judged for category in counts})
    if len(categories) < 2:
        return None
    counts = np.array([[of_thing[category] for category in categories] for of_thing in judged])  # (T, C)
    raters, used, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    agreements = ((counts * (counts - 1)).sum(axis=1) / (raters - 1)).sum()
    expected = total**2 - (used**2).sum()
    return float(1 - (total - 1) * (total - agreements) / expected)


@dataclass(frozen=True)
class Strengths:
    """A Bradley-Terry fit: log-odds that sum to zero, in the order of `models`."""

    models: tuple[str, ...]
    scores: tuple[float, ...]
    intervals: tuple[Interval, ...]
    covariance: Floats
    regularized: bool
    """half a win each way was added: a model never won or never lost, which has no finite fit"""


def bradley_terry(wins: npt.ArrayLike, models: Sequence[str]) -> Strengths:
    """Strengths of models from who beat whom.

    `wins` (M, M): row beat column so often; a tie is half a win for both. The intervals are Wald's,
    from the inverse of the information matrix.
    """
    counts = np.array(wins, dtype=np.float64)
    np.fill_diagonal(counts, 0)
    regularized = not _is_connected(counts)
    if regularized:
        met = counts + counts.T > 0
        alone = not met.any() or not _is_connected(met.astype(np.float64))
        counts = counts + 0.5 * (np.ones_like(counts) - np.eye(len(counts)) if alone else met)
    scores = _most_likely_scores(counts)
    covariance: Floats = np.asarray(np.linalg.pinv(_derivatives(counts, scores)[1]), dtype=np.float64)
    reach = _Z * np.sqrt(np.diag(covariance))
    intervals = zip((scores - reach).tolist(), (scores + reach).tolist(), strict=True)
    return Strengths(tuple(models), tuple(scores.tolist()), tuple(intervals), covariance, regularized)


def _is_connected(counts: Floats) -> bool:
    """Whether every model has, over others, beaten every other: the condition for a finite fit."""
    reach = (counts > 0) | np.eye(len(counts), dtype=bool)
    return bool(np.linalg.matrix_power(reach, len(counts)).all())


def _derivatives(counts: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """Of the log-likelihood: the gradient (M,) and the negative second derivative (M, M)."""
    played = counts + counts.T
    # the chance that row is preferred to column; tanh cannot overflow
    chances = 0.5 + 0.5 * np.tanh((scores[:, None] - scores[None, :]) / 2)
    weights = played * chances * (1 - chances)
    gradient: Floats = counts.sum(axis=1) - (played * chances).sum(axis=1)
    return gradient, np.diag(weights.sum(axis=1)) - weights


def _most_likely_scores(counts: Floats) -> Floats:
    """By Newton's method, sum zero; steps are halved until they do not overshoot."""

    def log_likelihood(scores: Floats) -> float:
        return float(-(counts * np.logaddexp(0, scores[None, :] - scores[:, None])).sum())

    scores = np.zeros(len(counts))
    for _ in range(100):
        gradient, information = _derivatives(counts, scores)
        step = np.linalg.pinv(information) @ gradient
        before = log_likelihood(scores)
        while log_likelihood(scores + step) < before and np.abs(step).max() > 1e-12:
            step = step / 2
        scores = scores + step
        if np.abs(step).max() < 1e-10:
            break
    centered: Floats = scores - scores.mean()
    return centered


def information_gain(strengths: Strengths, first: int, second: int) -> float:
    """How much one more vote between two models would tell, given what is known.

    The outcome's variance times the variance of the gap between the two: near zero for a pair that
    is settled, whether by a wide gap or by many votes.
    """
    chance = 1 / (1 + math.exp(strengths.scores[second] - strengths.scores[first]))
    covariance = strengths.covariance
    gap_variance = covariance[first, first] + covariance[second, second] - 2 * covariance[first, second]
    return float(chance * (1 - chance) * gap_variance)
