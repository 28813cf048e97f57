"""The search for near-duplicates among millions of fingerprints, in time and memory that grow as n log n.

A forest of random projection trees (Dasgupta and Freund, 2008): each tree halves the fingerprints along the
line between two of them, again and again, so that a leaf is small whatever the images look like; only what
shares a leaf is compared. Near-duplicates part company in some trees, hardly ever in all of them.

An image and its mirror image are in the same half: their even parts (the image with its mirror image added)
agree, their odd parts differ in sign alone, so the size of the odd part's projection counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from furnclip.parallel import cores
from furnclip.prepare.fingerprint import LIGHT_PX, NEAR, distances, parts

_TREES = 10
_LEAF = 256
_CELLS = 6  # each way, of the light that trees look at
_EVEN = _CELLS * _CELLS // 2 + 4
_LEAST_CONTRAST = 10  # levels
_FAR = 0.8  # between vectors of a leaf; of copies made of photos, 999 in 1,000 are nearer than 0.73
_PROPOSED = 16  # neighbors of one fingerprint in a leaf
_ENOUGH = 48  # near-duplicates of a fingerprint; two that have as many are not compared
_CHUNK = 2**14
_MEASURED = 2**10  # pairs at once, which a core's cache holds
_ROWS_AT_ONCE = 64
VECTOR = np.dtype((np.float16, (_EVEN + _CELLS * _CELLS // 2,)))


def near_pairs(prints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (i, j), i < j, and distances of near-duplicates among distinct fingerprints: (P, 2), (P,)."""
    count, chance = len(prints), np.random.default_rng(0)
    vectors = np.concatenate([vectors_of(prints[:0]), *map(vectors_of, _chunks(prints))])
    compared = near = np.empty(0, dtype=np.int64)  # i * N + j
    apart = np.empty(0, dtype=np.float32)
    with ThreadPoolExecutor(cores()) as pool:  # numpy lets them run at once
        for _ in range(_TREES if count > _LEAF else 1):
            degree = np.bincount(np.concatenate([near // count, near % count]), minlength=count)
            propose = partial(_proposed, vectors, degree < _ENOUGH)
            fresh = _distinct(np.concatenate([compared[:0], *pool.map(propose, _leaves(vectors, chance))]))
            fresh = fresh[~_among(fresh, compared)]
            compared = np.sort(np.concatenate([compared, fresh]), kind="stable")  # two sorted runs: merged
            measure = partial(_measured, prints, vectors)
            found = np.concatenate([apart[:0], *pool.map(measure, _chunks(fresh, _MEASURED))])
            near = np.concatenate([near, fresh[found <= NEAR]])
            apart = np.concatenate([apart, found[found <= NEAR]])
    order = np.argsort(near)
    return np.stack(np.divmod(near[order], max(1, count)), axis=1), apart[order]


def pairs_with(
    prints: np.ndarray, vectors: np.ndarray, places: np.ndarray, new: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that the `new` (M,) of N distinct fingerprints are in; these are at `places` of `prints`."""
    pairs, apart = [np.empty((0, 2), dtype=np.int64)], [np.empty(0, dtype=np.float32)]
    for start in range(0, len(new), _ROWS_AT_ONCE):
        rows = new[start : start + _ROWS_AT_ONCE]
        wanted = vectors[places[rows]].astype(np.float32)
        near = [_apart(wanted, vectors[some].astype(np.float32)) <= _FAR**2 for some in _chunks(places)]
        left, right = np.nonzero(np.concatenate(near, axis=1)) if near else (rows[:0], rows[:0])
        left = rows[left]
        # of two new ones the pair is found twice
        once = (left != right) & ~(np.isin(right, new) & (right < left))
        left, right = np.minimum(left, right)[once], np.maximum(left, right)[once]
        for some in _chunks(np.stack([left, right], axis=1), _MEASURED):
            first, second = places[some].T
            mirrored = _mirrored(vectors[first], vectors[second])
            found = distances(prints[first], prints[second], mirrored, most=NEAR)
            pairs.append(some[found <= NEAR])
            apart.append(found[found <= NEAR])
    return np.concatenate(pairs), np.concatenate(apart)


def _chunks(values: np.ndarray, size: int = _CHUNK) -> Iterator[np.ndarray]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _proposed(vectors: np.ndarray, wanted: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    """The pairs of a leaf to measure, i * N + j: (P,). wanted: (N,) who has too few near-duplicates."""
    left, right = leaf[_close(vectors[leaf].astype(np.float32))]  # (2, P)
    pairs = np.minimum(left, right) * len(vectors) + np.maximum(left, right)
    return np.asarray(pairs[wanted[left] | wanted[right]])


def _distinct(values: np.ndarray) -> np.ndarray:
    """Sorted, each once: what `np.unique` does with tables of hashes, here in the memory of the values."""
    values.sort()
    first = np.ones(len(values), dtype=bool)
    first[1:] = values[1:] != values[:-1]
    return np.asarray(values[first])


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each value is in a sorted array: (N,)."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    return np.asarray(known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values)


def vectors_of(prints: np.ndarray) -> np.ndarray:
    """Even parts (P, 22) and odd parts (P, 18) of what trees look at."""
    light, colors, aspect = parts(prints)
    cell = LIGHT_PX // _CELLS
    light = light.reshape(-1, _CELLS, cell, _CELLS, cell).mean(axis=(2, 4))
    exposure = light.mean(axis=(1, 2))
    light -= exposure[:, None, None]
    contrast = np.sqrt((light**2).mean(axis=(1, 2), keepdims=True))
    light /= np.maximum(contrast, _LEAST_CONTRAST) * _CELLS * 2**0.5
    left, right = light[:, :, : _CELLS // 2], light[:, :, : _CELLS // 2 - 1 : -1]
    whole = [(exposure / 60)[:, None], colors.mean(axis=(2, 3)) / 8, (aspect / 0.4)[:, None]]
    sides = [side.reshape(len(prints), _CELLS * _CELLS // 2) for side in (left + right, left - right)]
    return np.concatenate([sides[0], *whole, sides[1]], axis=1).astype(np.float16)


def _leaves(vectors: np.ndarray, chance: np.random.Generator) -> Iterator[np.ndarray]:
    """The rows of vectors (N, 40) in sets of at most `_LEAF` that lie close together."""
    left = [np.arange(len(vectors))]
    while left:
        rows = left.pop()
        if len(rows) <= _LEAF:
            yield rows
            continue
        first, second = vectors[chance.choice(rows, 2, replace=False)].astype(np.float32)
        direction, some = first - second, vectors[rows].astype(np.float32)
        places = some[:, :_EVEN] @ direction[:_EVEN] + np.abs(some[:, _EVEN:] @ direction[_EVEN:])
        left += np.split(rows[np.argpartition(places, len(rows) // 2)], [len(rows) // 2])


def _apart(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squares of the distances of vectors (M, 40) to others (N, 40), as they are or mirrored: (M, N)."""
    squares = (vectors**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    alike = vectors[:, :_EVEN] @ others[:, :_EVEN].T + np.abs(vectors[:, _EVEN:] @ others[:, _EVEN:].T)
    return np.asarray(squares - 2 * alike)


def _close(vectors: np.ndarray) -> np.ndarray:
    """Pairs of vectors (M, 40) closest to each other, as they are or mirrored: (2, P)."""
    apart = _apart(vectors, vectors)
    np.fill_diagonal(apart, np.inf)
    is_close = apart <= _FAR**2
    crowded = np.flatnonzero(is_close.sum(axis=1) > _PROPOSED)
    nearest = np.argpartition(apart[crowded], min(_PROPOSED, len(vectors)) - 1, axis=1)[:, :_PROPOSED]
    is_close[crowded] = False
    is_close[crowded[:, None], nearest] = True
    return np.stack(np.nonzero(is_close))


def _measured(prints: np.ndarray, vectors: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The distances of pairs i * N + j: (P,)."""
    left, right = np.divmod(pairs, len(prints))
    mirrored = _mirrored(vectors[left], vectors[right])
    return distances(prints[left], prints[right], mirrored, most=NEAR)


def _mirrored(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Which pairs of vectors (P, 40) are closer to each other when one is mirrored: (P,)."""
    return np.asarray(np.einsum("pd,pd->p", left[:, _EVEN:], right[:, _EVEN:], dtype=np.float32) < 0)
