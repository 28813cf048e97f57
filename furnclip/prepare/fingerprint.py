"""Near-duplicate images: a fingerprint of what an image shows, and the search for close ones.

Input: an opened image. Output: 16 bytes of gradient signs, and 195 bytes of colors: a thumbnail
against the background, and the background. Two images are near-duplicates when at most `MAX_BITS`
signs differ, the thumbnails differ by at most `MAX_DIFFERENCE` of what is on them, and the backgrounds
by at most `MAX_LEVELS`.

A shop photographs everything on white, so a fingerprint of the whole frame calls all of it alike, and
one of the tight frame jumps with every speck. Two measures against that: the frame is where 96 % of
the ink is, not where the first pixel is; and colors are taken against the background, their difference
in proportion to the ink, so that a fork is not a knife because both are mostly white. Another size,
another quality (JPEG 30), a wider white border, a crop of 2 % are found in 99 of 100 cases; a mirror, a
crop into the product and a recolored variant are not.

Search: multi-index hashing (Norouzi et al., "Fast search in Hamming space", 2012), exact for the
definition above: of ten bands of the signs, eight differing bits leave two untouched, so rows are
compared that agree in two bands. Among a million fingerprints of chance that is half a million pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from PIL import Image, ImageChops, ImageStat

HASH_BYTES = 16
THUMB_SIDE_PX = 8
COLOR_BYTES = THUMB_SIDE_PX * THUMB_SIDE_PX * 3 + 3
MAX_BITS = 8
MAX_DIFFERENCE = 0.15
MAX_LEVELS = 24

_ENOUGH_PX = 72  # for a frame to within a pixel and a grid of 9
_GRID_PX = 9  # 8 gradients each way
_FLAT_LEVELS = 2  # a gradient of JPEG noise is none
_PLAIN_LEVELS = 24  # corners closer than this are one background
_INK_LEVELS = 8  # closer to the background than this is no ink
_OUTER_INK = 0.02  # share of the ink outside the frame on each side
_LEAST_INK = 2  # mean ink of a thumbnail under which difference is not put in proportion
_NEUTRAL = 128
_BANDS = MAX_BITS + 2
_CHUNK_PAIRS = 2**18
_ONES = np.array([number.bit_count() for number in range(2**16)], dtype=np.uint8)


def fingerprint(image: Image.Image) -> tuple[bytes, bytes]:
    """(gradient signs, colors) of an RGB image."""
    if min(image.size) >= _ENOUGH_PX:
        image = image.reduce(min(image.size) // _ENOUGH_PX)
    background, box = _framed(image)
    grid_image = image.resize((_GRID_PX, _GRID_PX), Image.Resampling.BILINEAR, box=box)
    grid = np.asarray(grid_image.convert("L"), dtype=np.int16)  # (9, 9)
    across = grid[:8, 1:] > grid[:8, :-1] + _FLAT_LEVELS  # (8, 8)
    down = grid[1:, :8] > grid[:-1, :8] + _FLAT_LEVELS  # (8, 8)
    signs = np.packbits(np.concatenate([across.ravel(), down.ravel()]))  # (16,)
    small = image.resize((THUMB_SIDE_PX, THUMB_SIDE_PX), Image.Resampling.BILINEAR, box=box)
    against = (np.asarray(small, dtype=np.float32) - background) / 2 + _NEUTRAL  # (8, 8, 3)
    colors = np.concatenate([against.ravel(), background])  # (195,)
    return signs.tobytes(), np.clip(np.rint(colors), 0, 255).astype(np.uint8).tobytes()


def _framed(image: Image.Image) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """(background color (3,), box around nearly all ink) of an image."""
    corner_px = [image.getpixel((x, y)) for x in (0, image.width - 1) for y in (0, image.height - 1)]
    corners = np.array(corner_px, dtype=np.int16)  # (4, 3)
    background = np.median(corners, axis=0)
    whole = (0.0, 0.0, float(image.width), float(image.height))
    if np.abs(corners - background).max() > _PLAIN_LEVELS:  # a photograph of a room
        return np.array(ImageStat.Stat(image).mean), whole
    plain = Image.new("RGB", image.size, tuple(background.astype(int).tolist()))
    red, green, blue = ImageChops.difference(image, plain).split()
    away = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    ink = np.maximum(np.asarray(away, dtype=np.int16) - _INK_LEVELS, 0)  # (H, W)
    if not ink.any():
        return background, whole
    left, right = _range(ink.sum(axis=0))
    top, bottom = _range(ink.sum(axis=1))
    return background, (left, top, right, bottom)


def _range(ink: np.ndarray) -> tuple[float, float]:
    """From where to where most of the ink along one side is, in pixels, a little widened."""
    share = np.concatenate([[0.0], np.cumsum(ink)]) / ink.sum()
    first, last = np.interp([_OUTER_INK, 1 - _OUTER_INK], share, np.arange(len(share))).tolist()
    margin = (last - first) * 2 * _OUTER_INK
    first, last = max(0.0, first - margin), min(float(len(ink)), last + margin)
    return (first, last) if last - first >= 1 else (0.0, float(len(ink)))


def near_pairs(hashes: np.ndarray, colors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Pairs (i, j), i < j, of near-duplicates among distinct fingerprints: (P, 2).

    hashes: (N, 16) uint8. colors: (M, 195) uint8, perhaps on disk; rows: (N,) which are of which hash.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    words = np.ascontiguousarray(hashes).view(np.uint16)  # (N, 8)
    for first, second in combinations(_bands(hashes), 2):
        for left, right in _pairs_of_equals(first << np.uint32(16) | second):
            close = _ONES[words[left] ^ words[right]].sum(axis=1) <= MAX_BITS
            left, right = left[close], right[close]
            same = colors_agree(colors[rows[left]], colors[rows[right]])
            found.append(np.sort(np.stack([left[same], right[same]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _bands(hashes: np.ndarray) -> list[np.ndarray]:
    """The 128 bits cut into `_BANDS` runs of 12 or 13, each as numbers: (N,) uint32."""
    padded = np.pad(hashes, ((0, 0), (0, 2))).astype(np.uint32)  # (N, 18)
    edges = np.linspace(0, 8 * HASH_BYTES, _BANDS + 1).round().astype(int).tolist()
    bands = []
    for start, end in pairwise(edges):
        byte = start // 8
        three = padded[:, byte] << 16 | padded[:, byte + 1] << 8 | padded[:, byte + 2]
        bands.append(three >> np.uint32(24 - (end - 8 * byte)) & np.uint32(2 ** (end - start) - 1))
    return bands


def _pairs_of_equals(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of positions with the same value, in blocks of about `_CHUNK_PAIRS`."""
    if not len(values):
        return
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(ordered)]
    end_of = np.repeat(ends, ends - starts)  # (N,) where the run of each position ends
    partners = end_of - np.arange(len(ordered)) - 1  # (N,) later positions in the same run
    totals = np.cumsum(partners)
    first = 0
    while first < len(ordered):
        done = totals[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(totals, done + _CHUNK_PAIRS, side="right")))
        counts = partners[first:last]
        left = np.repeat(np.arange(first, last), counts)
        offsets = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield order[left], order[left + 1 + offsets]
        first = last


def colors_agree(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether thumbnails and backgrounds (P, 195) are close enough: (P,)."""
    first, second = first.astype(np.int16), second.astype(np.int16)
    apart = np.abs(first - second)
    ink = np.abs(first[:, :-3] - _NEUTRAL).mean(axis=1) + np.abs(second[:, :-3] - _NEUTRAL).mean(axis=1)
    thumbnails = apart[:, :-3].mean(axis=1) <= MAX_DIFFERENCE * np.maximum(ink / 2, _LEAST_INK)
    backgrounds = apart[:, -3:].max(axis=1, initial=0) <= MAX_LEVELS
    return np.asarray(thumbnails & backgrounds)
