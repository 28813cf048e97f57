"""Near-duplicate pictures: a fingerprint of what a picture shows, and the search for close ones.

Input: an opened picture. Output: 16 bytes of gradient signs and 192 bytes of colour thumbnail; two
pictures are near-duplicates when at most `MAX_BITS` signs differ and the thumbnails are at most
`MAX_LEVELS` grey levels apart on average.

A shop photographs everything on white, so a fingerprint of the whole frame calls all of it alike.
The plain border is therefore cut off first, and the colour has to agree as well as the shape: a
mirror, a crop into the product or a recoloured variant is not found. Search: multi-index hashing
(Norouzi et al., 2012), exact for the definition above.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageChops

HASH_BYTES = 16
THUMB_SIDE_PX = 8
THUMB_BYTES = THUMB_SIDE_PX * THUMB_SIDE_PX * 3
MAX_BITS = 8
MAX_LEVELS = 8.0

_BORDER_LEVELS = 16
_CHUNK_PAIRS = 2**18
_ONES = np.array([number.bit_count() for number in range(2**16)], dtype=np.uint8)


def fingerprint(image: Image.Image) -> tuple[bytes, bytes]:
    """(gradient signs, colour thumbnail) of an RGB picture."""
    subject = _without_border(image)
    grid = np.asarray(subject.convert("L").resize((9, 9), Image.Resampling.BOX), dtype=np.int16)  # (9, 9)
    across = grid[:8, 1:] > grid[:8, :-1] + 1  # (8, 8)
    down = grid[1:, :8] > grid[:-1, :8] + 1  # (8, 8)
    signs = np.packbits(np.concatenate([across.ravel(), down.ravel()]))  # (16,)
    thumb = subject.resize((THUMB_SIDE_PX, THUMB_SIDE_PX), Image.Resampling.BOX)
    return signs.tobytes(), thumb.tobytes()


def _without_border(image: Image.Image) -> Image.Image:
    """The picture without a border of one colour; unchanged where the corners disagree."""
    width_px, height_px = image.size
    corners = [image.getpixel((x, y)) for x in (0, width_px - 1) for y in (0, height_px - 1)]
    first = np.array(corners[0], dtype=np.int16)
    if any(np.abs(np.array(corner, dtype=np.int16) - first).max() > _BORDER_LEVELS for corner in corners[1:]):
        return image
    plain = Image.new("RGB", image.size, corners[0])
    difference = ImageChops.difference(image, plain).convert("L")
    box = difference.point([0] * _BORDER_LEVELS + [255] * (256 - _BORDER_LEVELS)).getbbox()
    return image.crop(box) if box else image


def near_pairs(hashes: np.ndarray, thumbs: np.ndarray) -> np.ndarray:
    """Pairs (i, j), i < j, of near-duplicates among distinct fingerprints: (P, 2).

    hashes: (N, 16) uint8, thumbs: (N, 192) uint8. Two hashes that differ in at most `MAX_BITS` bits
    agree exactly in one of `MAX_BITS + 1` bands, so only rows that share a band are compared.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    bits = np.unpackbits(hashes, axis=1)  # (N, 128)
    words = np.ascontiguousarray(hashes).view(np.uint16)  # (N, 8)
    for band in np.array_split(np.arange(bits.shape[1]), MAX_BITS + 1):
        values = bits[:, band] @ (1 << np.arange(len(band), dtype=np.int64))  # (N,)
        for left, right in _pairs_of_equals(values):
            found.append(_verified(left, right, words, thumbs))
    return np.unique(np.concatenate(found), axis=0)


def _pairs_of_equals(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of positions with the same value, in blocks of about `_CHUNK_PAIRS`."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, int)
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


def _verified(left: np.ndarray, right: np.ndarray, words: np.ndarray, thumbs: np.ndarray) -> np.ndarray:
    """The pairs that are near-duplicates, smaller index first: (P, 2)."""
    apart = _ONES[words[left] ^ words[right]].sum(axis=1)  # (P,)
    close = apart <= MAX_BITS
    left, right = left[close], right[close]
    levels = np.abs(thumbs[left].astype(np.int16) - thumbs[right]).mean(axis=1)  # (P,)
    same = levels <= MAX_LEVELS
    pairs = np.stack([left[same], right[same]], axis=1)
    return np.sort(pairs, axis=1)
