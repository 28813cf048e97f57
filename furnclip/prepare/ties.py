"""Which products belong together: they share a group, a title or an image, or have near-duplicate images.

One image for many products that have nothing else in common is a placeholder, the shop's "no image". It
says nothing about any of them, so it must neither tie them into one giant group nor be trained on.
Variants share an image as well, but the words of their titles too: "Oslo sofa red", "Oslo sofa blue".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from furnclip.prepare.fingerprint import COPIED, SAME, parts
from furnclip.prepare.nearby import near_pairs
from furnclip.prepare.store import Records

NO_NODE = -1
MIN_PRODUCTS = 5  # fewer with one image are a small group, whatever it shows
_MAX_SHARED_WORDS = 0.34  # of the words of two titles, for half of the pairs
_TITLES_COMPARED = 64
_FLAT_LEVELS = 4
_WORD = re.compile(r"[^\W\d_]+")
_FIRST_IDEOGRAPH = "\u2e80"


@dataclass(frozen=True)
class Ties:
    """What ties rows together: nodes that rows and their images hang on, and edges between near-duplicates.

    Images are in the order of their rows.
    """

    label: np.ndarray  # (N,) the number of the row's group or title, `NO_NODE` where not shared
    rows: np.ndarray  # (V,) the row of each image
    file: np.ndarray  # (V,) the number of the image's bytes, `NO_NODE` where not shared
    look: np.ndarray  # (V,) the number of the image's fingerprint node
    middle: np.ndarray  # (V,) the fingerprint node in the middle of the image's near-duplicate group
    flat: np.ndarray  # (V,) whether the fingerprint says no more than its colors: a plain surface
    neighbors: dict[int, list[int]]  # fingerprint node -> near-duplicate fingerprint nodes
    copies: dict[int, list[int]]  # fingerprint node -> those of the same image in another quality
    node_count: int
    counts: dict[str, int]  # of tied rows and images, by what they share

    def without(self, images: Collection[int]) -> Ties:
        """The same without some of the images."""
        kept = np.ones(len(self.rows), dtype=bool)
        kept[list(images)] = False
        left = {name: getattr(self, name)[kept] for name in ("rows", "file", "look", "middle", "flat")}
        return replace(self, **left)


def find_ties(records: Records, images: Records, rows: np.ndarray, *, by_column: bool) -> Ties:
    """Shared group or title, shared image bytes, shared or close fingerprints. rows: (V,) of the images."""
    label = "group" if by_column else "title"
    labels, first_free, same_label = _shared(records[label], 0, ignore_zero=True)
    sources = np.ascontiguousarray(images["source"]).view("V16").ravel()
    files, first_free, same_image = _shared(sources, first_free, ignore_zero=False)
    _, first, look, counted = np.unique(
        images["look"], return_index=True, return_inverse=True, return_counts=True
    )
    prints = np.ascontiguousarray(images["fingerprint"][first])
    pairs, apart = near_pairs(prints)  # (P, 2), (P,)
    middle = middles(pairs[apart <= SAME], len(first))
    near = (counted * (counted - 1) // 2).sum() + (counted[pairs[:, 0]] * counted[pairs[:, 1]]).sum()
    counts = {f"same_{label}": same_label, "same_picture": same_image, "near_duplicate_pairs": int(near)}
    light, colors, _ = parts(prints)  # without the edge:
    flat = (np.ptp(light[:, 1:-1, 1:-1], axis=(1, 2)) <= _FLAT_LEVELS) & (
        np.ptp(colors[:, :, 1:-1, 1:-1], axis=(2, 3)).max(axis=1) <= _FLAT_LEVELS
    )
    return Ties(
        labels,
        rows,
        files,
        look + first_free,
        middle[look] + first_free,
        flat[look],
        _neighbors(pairs + first_free),
        _neighbors(pairs[apart <= COPIED] + first_free),
        first_free + len(first),
        counts,
    )


def _neighbors(pairs: np.ndarray) -> dict[int, list[int]]:
    """The other ends of the pairs (P, 2) of each node."""
    found: dict[int, list[int]] = defaultdict(list)
    for left, right in pairs.tolist():
        found[left].append(right)
        found[right].append(left)
    return dict(found)


def middles(pairs: np.ndarray, count: int) -> np.ndarray:
    """The middle of each fingerprint's group: (N,). Whatever has most neighbors takes those still free.

    So all of a group are close to its middle: a chain falls into several groups.
    """
    ends = np.concatenate([pairs, pairs[:, ::-1]])
    ends = ends[np.argsort(ends[:, 0], kind="stable")]
    degrees = np.bincount(ends[:, 0], minlength=count)
    starts = np.cumsum(degrees) - degrees
    middles = np.full(count, NO_NODE)
    for look in np.argsort(-degrees, kind="stable").tolist():
        if middles[look] == NO_NODE:
            near = ends[starts[look] : starts[look] + degrees[look], 1]
            middles[near[middles[near] == NO_NODE]] = look
            middles[look] = look
    return middles


def _shared(values: np.ndarray, first_node: int, *, ignore_zero: bool) -> tuple[np.ndarray, int, int]:
    """(node of each row or `NO_NODE`, next free node number, rows whose value an earlier row has)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared = counts > 1
    if ignore_zero:
        shared[inverse[values == 0]] = False
    numbers = np.full(len(counts), NO_NODE)
    numbers[shared] = first_node + np.arange(shared.sum())
    return numbers[inverse], first_node + int(shared.sum()), int((counts[shared] - 1).sum())


@dataclass(frozen=True)
class NearGroup:
    """Products that show one photograph, and how many object types and titles they have."""

    rows: np.ndarray
    types: int
    titles: int


def near_groups(records: Records, ties: Ties) -> list[NearGroup]:
    """Groups of two products or more by their images alone: those that mix types first, then the largest."""
    order = np.lexsort((ties.rows, ties.middle))
    middle, rows = ties.middle[order], ties.rows[order]
    once = np.ones(len(rows), dtype=bool)
    once[1:] = (middle[1:] != middle[:-1]) | (rows[1:] != rows[:-1])
    middle, rows = middle[once], rows[once]
    several = np.bincount(middle, minlength=1)[middle] > 1
    middle, rows = middle[several], rows[several]
    found = []
    for group in np.split(rows, np.flatnonzero(np.diff(middle)) + 1) if len(rows) else ():
        types, titles = (len(np.unique(records[name][group])) for name in ("stratum", "title"))
        found.append(NearGroup(group, types, titles))
    return sorted(found, key=lambda group: (group.types == 1, -len(group.rows), int(group.rows[0])))


def placeholder_images(
    records: Records, ties: Ties, titles_of: Callable[[Sequence[int]], list[str]]
) -> dict[int, int]:
    """Image -> number of products that have it or a copy of it, where that is a placeholder.

    titles_of: the titles of some rows. A plain surface looks like many others: it has to be one file.
    """
    found: dict[int, int] = {}
    for alike in _sharing_an_image(ties):
        images = alike
        if ties.flat[alike].mean() > 0.5:
            files, counts = np.unique(ties.file[alike], return_counts=True)
            images = alike[ties.file[alike] == files[np.argmax(counts * (files != NO_NODE))]]
            if ties.file[images[0]] == NO_NODE:  # no two of them are one file
                continue
        rows = np.unique(ties.rows[images])
        groups = records["group"][rows]
        _, first = np.unique(groups, return_index=True)
        others = np.union1d(first, np.flatnonzero(groups == 0))  # variants of one group count once
        if len(others) < MIN_PRODUCTS:
            continue
        titles = titles_of(rows[others][:_TITLES_COMPARED].tolist())
        words = [present for title in titles if (present := _words(title))]
        common = [len(first & second) / len(first | second) for first, second in combinations(words, 2)]
        if len(words) >= MIN_PRODUCTS and np.median(common) <= _MAX_SHARED_WORDS:
            found.update(dict.fromkeys(images.tolist(), len(rows)))
    return found


def _sharing_an_image(ties: Ties) -> Iterator[np.ndarray]:
    """Images of several products that are copies of one, the largest sets first; none has an image twice."""
    order = np.argsort(ties.look, kind="stable")
    first_look = int(ties.look[order[0]]) if len(order) else 0
    counts = np.bincount(ties.look - first_look)
    ends = np.cumsum(counts)
    shared = {*(np.flatnonzero(counts >= MIN_PRODUCTS) + first_look).tolist(), *ties.copies}
    near = {look: [look, *ties.copies.get(look, ())] for look in shared}
    sizes = {look: int(counts[np.array(looks) - first_look].sum()) for look, looks in near.items()}
    taken: set[int] = set()
    for look in sorted(shared, key=lambda look: (-sizes[look], look)):
        left = [other - first_look for other in near[look] if other not in taken]
        images = np.sort(np.concatenate([order[:0], *(order[ends[n] - counts[n] : ends[n]] for n in left)]))
        if len(np.unique(ties.rows[images])) >= MIN_PRODUCTS:
            taken.update(near[look])
            yield images


def _words(title: str) -> frozenset[str]:
    """Words without numbers; pairs of characters where a script has no spaces."""
    found: set[str] = set()
    for word in _WORD.findall(title.lower()):
        if word >= _FIRST_IDEOGRAPH:
            found.update(word[start : start + 2] for start in range(max(1, len(word) - 1)))
        else:
            found.add(word)
    return frozenset(found)
