"""How far a measured mean can be trusted: grouped bootstrap intervals and a paired test.

In: one value a query (Q,) and the group of each query (Q,). Queries of one group (variants of a product, a
shared caption) succeed and fail together, so groups are drawn, never single queries.

The interval is the percentile bootstrap, expanded for few groups (Hesterberg, "What Teachers Should Know
about the Bootstrap", 2014); where all groups agree, the exact bound for an unseen outcome (Clopper and
Pearson). The test flips the sign of each group's difference (Fisher's randomization test). With fewer than
about ten groups trust neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Groups = Sequence[object] | npt.NDArray[np.generic]
_CELLS_AT_ONCE = 4_000_000  # draws held in memory: 32 MB


@dataclass(frozen=True)
class MeanInterval:
    """A mean over queries and its interval; `groups` is the number of independent groups."""

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
    groups: Groups,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> MeanInterval:
    """Interval for the mean of `values` (Q,) when whole groups are drawn again.

    `samples`: number of draws; `bounds`: the smallest and largest mean that is possible.
    """
    sums, counts = _group_sums(values, groups)
    total = len(sums)
    mean = float(sums.sum() / counts.sum())
    tail = (1.0 - confidence) / 2.0
    if total == 1:
        low, high = bounds
    elif np.ptp(sums / counts) < 1e-12:
        unseen = 1.0 - tail ** (1.0 / total)  # largest share of another outcome that hides from G draws
        low, high = mean - unseen * (mean - bounds[0]), mean + unseen * (bounds[1] - mean)
    else:
        random = np.random.default_rng(seed)
        draws = []
        for size in _chunk_shapes(samples, total):
            chosen = random.integers(0, total, size=size)
            draws.append(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1))
        z = -NormalDist().inv_cdf(tail)
        freedom = total - 1
        # Cornish-Fisher expansion of Student's t quantile; off by less than 1 % from four degrees on
        t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        expanded = NormalDist().cdf(-math.sqrt(total / freedom) * t)
        low, high = np.quantile(np.concatenate(draws), [expanded, 1.0 - expanded]).tolist()
    return MeanInterval(mean, max(low, bounds[0]), min(high, bounds[1]), total)


def paired_test(
    first: Floats,
    second: Floats,
    groups: Groups,
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
    observed = abs(float(sums.sum())) - 1e-12
    random = np.random.default_rng(seed)
    at_least = 0
    for size in _chunk_shapes(samples, len(sums)):
        flipped = random.choice(np.asarray([-1.0, 1.0]), size=size) @ sums  # (S,)
        at_least += int(np.count_nonzero(np.abs(flipped) >= observed))
    p_value = (at_least + 1) / (samples + 1)
    return PairedTest(interval.value, interval.low, interval.high, p_value, interval.groups)


def _group_sums(values: Floats, groups: Groups) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Sum of values (G,) and number of queries (G,) of each group."""
    if len(values) == 0 or len(values) != len(groups):
        raise ValueError(f"{len(values)} values and {len(groups)} groups: both must be the same, above zero")
    _, places = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    sums: Floats = np.bincount(places, weights=values).astype(np.float64)
    return sums, np.bincount(places).astype(np.int64)


def _chunk_shapes(samples: int, total: int) -> Iterator[tuple[int, int]]:
    """Shapes (S, G) that make up `samples` draws of all groups, each small enough for memory."""
    step = max(1, _CELLS_AT_ONCE // total)
    for start in range(0, samples, step):
        yield min(step, samples - start), total
