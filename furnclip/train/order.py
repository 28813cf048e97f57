"""In which order the samples come: every sample once an epoch, known from (seed, epoch) alone.

There is no shuffle buffer and no resampling, so resuming in the middle of an epoch needs nothing but
the position, and every random choice about a sample is a function of (seed, epoch, sample).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

DEFAULT_BATCH = 1024
_MIN_STEPS = 8
_MIN_BATCH = 32


def permutation(samples: int, *, seed: int, epoch: int) -> Indices:
    """Every index once, in the order of this epoch."""
    return random_stream(seed, epoch).permutation(samples)


def step_batches(samples: int, batch_size: int, *, seed: int, epoch: int) -> list[Indices]:
    """The epoch cut into steps of nearly equal size, none above `batch_size` and none left out.

    A short last batch would contrast against fewer wrong answers than the others.
    """
    steps = steps_per_epoch(samples, batch_size)
    return np.array_split(permutation(samples, seed=seed, epoch=epoch), steps)


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Optimiser steps in an epoch."""
    return max(1, -(-samples // batch_size))


def default_batch_size(samples: int) -> int:
    """1024, or what gives a small catalogue eight steps an epoch."""
    return max(min(_MIN_BATCH, samples), min(DEFAULT_BATCH, -(-samples // _MIN_STEPS)))


def random_stream(*key: int) -> np.random.Generator:
    """A stream of random numbers that belongs to the key, e.g. (seed, epoch, sample)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([part % 2**32 for part in key])))
