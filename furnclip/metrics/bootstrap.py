"""How far a measured mean can be trusted: grouped bootstrap intervals and a paired test.

In: one value a query (Q,) and the group of each query (Q,). Queries of one group (variants of a
product, a shared caption) succeed and fail together, so groups are drawn, never single queries.
Out: an interval for the mean; for two models on the same queries, an interval for the difference
and a p-value.

The interval is the percentile bootstrap, expanded for few groups (Hesterberg, "What Teachers Should
Know about the Bootstrap", 2014). Where all groups agree there is nothing to resample, and the exact
bound for an unseen outcome takes its place (Clopper and Pearson). The test flips the sign of each
group's difference (Fisher's randomisation test). With fewer than about ten groups trust neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
_CELLS_AT_ONCE = 4_000_000  # draws held in memory: 32 MB


@dataclass(frozen=True)
class Interval:
    """A mean over queries and where it may lie; `groups` is the number of independent groups."""

    value: float
    low: float
    high: float
    groups: int


@dataclass(frozen=True)
class PairedTest:
    """Second model minus first on the same queries, its interval, and the two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float
    groups: int


def bootstrap_interval(
    values: Floats,
    groups: Sequence[object] | npt.NDArray[np.generic],
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Interval for the mean of `values` (Q,) when whole groups are drawn again.

    `samples`: number of draws; `bounds`: the smallest and largest mean that is possible.
    """
    sums, counts = _group_sums(values, groups)
    mean = float(sums.sum() / counts.sum())
    low, high = _limits(sums, counts, samples=samples, confidence=confidence, seed=seed, bounds=bounds)
    return Interval(mean, max(low, bounds[0]), min(high, bounds[1]), len(sums))


def paired_test(
    first: Floats,
    second: Floats,
    groups: Sequence[object] | npt.NDArray[np.generic],
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedTest:
    """Is `second` better than `first` (both (Q,), same queries, values 0 to 1)?

    The p-value counts how often chance alone, a coin flipped for each group, moves the mean at
    least this far.
    """
    if first.shape != second.shape:
        raise ValueError(f"the two models answered different queries: {first.shape} and {second.shape}")
    change = second - first
    interval = bootstrap_interval(
        change, groups, samples=samples, confidence=confidence, seed=seed, bounds=(-1.0, 1.0)
    )
    sums, _ = _group_sums(change, groups)
    p_value = _sign_flip_p_value(sums, samples=samples, seed=seed)
    return PairedTest(interval.value, interval.low, interval.high, p_value, interval.groups)


def _group_sums(
    values: Floats, groups: Sequence[object] | npt.NDArray[np.generic]
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Sum of values (G,) and number of queries (G,) of each group."""
    if len(values) == 0 or len(values) != len(groups):
        raise ValueError(f"{len(values)} values and {len(groups)} groups: both must be the same, above zero")
    labels, places = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    sums: Floats = np.bincount(places, weights=values, minlength=len(labels)).astype(np.float64)
    return sums, np.bincount(places, minlength=len(labels)).astype(np.int64)


def _limits(
    sums: Floats,
    counts: npt.NDArray[np.int64],
    *,
    samples: int,
    confidence: float,
    seed: int,
    bounds: tuple[float, float],
) -> tuple[float, float]:
    tail = (1.0 - confidence) / 2.0
    total = len(sums)
    if total == 1:
        return bounds
    means = sums / counts
    if np.ptp(means) < 1e-12:
        unseen = 1.0 - tail ** (1.0 / total)  # largest share of another outcome that hides from G draws
        mean = float(means[0])
        return mean - unseen * (mean - bounds[0]), mean + unseen * (bounds[1] - mean)
    draws = np.concatenate(
        [
            sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
            for chosen in _draws(total, samples=samples, seed=seed)
        ]
    )
    expanded = _expanded_tail(tail, total)
    low, high = np.quantile(draws, [expanded, 1.0 - expanded])
    return float(low), float(high)


def _draws(total: int, *, samples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Groups drawn with replacement, `samples` times: chunks of (S, G)."""
    random = np.random.default_rng(seed)
    step = max(1, _CELLS_AT_ONCE // total)
    for start in range(0, samples, step):
        yield random.integers(0, total, size=(min(step, samples - start), total))


def _expanded_tail(tail: float, total: int) -> float:
    """The tail of the bootstrap distribution that Student's t leaves for so many groups."""
    normal = NormalDist()
    z = -normal.inv_cdf(tail)
    freedom = total - 1
    # Cornish-Fisher expansion of the t quantile; off by less than 1 % from four degrees on
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return normal.cdf(-math.sqrt(total / freedom) * t)


def _sign_flip_p_value(sums: Floats, *, samples: int, seed: int) -> float:
    random = np.random.default_rng(seed)
    observed = abs(float(sums.sum())) - 1e-12
    step = max(1, _CELLS_AT_ONCE // len(sums))
    at_least = 0
    for start in range(0, samples, step):
        size = (min(step, samples - start), len(sums))
        flipped = random.choice(np.asarray([-1.0, 1.0]), size=size) @ sums  # (S,)
        at_least += int(np.count_nonzero(np.abs(flipped) >= observed))
    return (at_least + 1) / (samples + 1)
