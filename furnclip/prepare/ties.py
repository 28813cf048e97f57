"""Which products belong together: they share a group, a title or an image, or have near-duplicate images.

One image for many products that have nothing else in common is a placeholder, the shop's "no image". It
says nothing about any of them, so it must neither tie them into one giant group nor be trained on.
Variants share an image as well, but the words of their titles too: "Oslo sofa red", "Oslo sofa blue".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from furnclip.prepare.fingerprint import COPIED, SAME, parts
from furnclip.prepare.store import Records

NO_NODE = -1
LOOK = np.dtype([("source", "<u8"), ("look", "<u8"), ("flat", "?")])
"""what ties an image to others: hashes of its file and its fingerprint, whether it is a plain surface"""
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
    pairs: np.ndarray  # (P, 2) fingerprint nodes that are near-duplicates of each other
    apart: np.ndarray  # (P,) by how much
    node_count: int
    counts: dict[str, int]  # of tied rows and images, by what they share

    def without(self, images: Collection[int]) -> Ties:
        """The same without some of the images."""
        kept = np.ones(len(self.rows), dtype=bool)
        kept[list(images)] = False
        left = {name: getattr(self, name)[kept] for name in ("rows", "file", "look", "middle", "flat")}
        return replace(self, **left)


def looks_of(images: Records) -> np.ndarray:
    """What ties each image to others."""
    light, colors, _ = parts(images["fingerprint"])  # without the edge:
    flat = (np.ptp(light[:, 1:-1, 1:-1], axis=(1, 2)) <= _FLAT_LEVELS) & (
        np.ptp(colors[:, :, 1:-1, 1:-1], axis=(2, 3)).max(axis=1) <= _FLAT_LEVELS
    )
    looks = np.empty(len(images), dtype=LOOK)
    looks["source"] = np.ascontiguousarray(images["source"][:, :8]).view("<u8").ravel()
    looks["look"], looks["flat"] = images["look"], flat
    return looks


Nearby = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def find_ties(records: Records, images: Records, rows: np.ndarray, near: Nearby, *, by_column: bool) -> Ties:
    """Shared group or title, shared image bytes, shared or close fingerprints.

    images, rows: (V,) and the row of each. near: the distinct looks (N,), and an image of each, to pairs of
    near-duplicates (P, 2) and how far they are apart (P,).
    """
    label = "group" if by_column else "title"
    with ThreadPoolExecutor(1) as aside:
        numbered = aside.submit(_shared, records[label], ignore_zero=True)
        more = aside.submit(_shared, images["source"], ignore_zero=False)
        looks, look, counted = np.unique(images["look"], return_inverse=True, return_counts=True)
        first = np.zeros(len(looks), dtype=np.int64)
        first[look[::-1]] = np.arange(len(look))[::-1]
        pairs, apart = near(looks, first)
        middle = middles(pairs[apart <= SAME], len(first))
    (labels, label_count, same_label), (files, file_count, same_image) = numbered.result(), more.result()
    files[files != NO_NODE] += label_count
    first_free = label_count + file_count
    count = (counted * (counted - 1) // 2).sum() + (counted[pairs[:, 0]] * counted[pairs[:, 1]]).sum()
    counts = {f"same_{label}": same_label, "same_picture": same_image, "near_duplicate_pairs": int(count)}
    nodes = labels, rows, files, look + first_free, middle[look] + first_free, images["flat"]
    return Ties(*nodes, pairs + first_free, apart, max(1, first_free + len(first)), counts)


def middles(pairs: np.ndarray, count: int) -> np.ndarray:
    """The middle of each fingerprint's group: (N,). Whatever has most neighbors takes those still free.

    So all of a group are close to its middle: a chain falls into several groups.
    """
    ends = np.concatenate([pairs, pairs[:, ::-1]])
    ends = ends[np.argsort(ends[:, 0], kind="stable")]
    degrees = np.bincount(ends[:, 0], minlength=count)
    starts = np.cumsum(degrees) - degrees
    middles = np.where(degrees, NO_NODE, np.arange(count))
    near_any = np.flatnonzero(degrees)
    for look in near_any[np.argsort(-degrees[near_any], kind="stable")].tolist():
        if middles[look] == NO_NODE:
            near = ends[starts[look] : starts[look] + degrees[look], 1]
            middles[near[middles[near] == NO_NODE]] = look
            middles[look] = look
    return middles


def _shared(values: np.ndarray, *, ignore_zero: bool) -> tuple[np.ndarray, int, int]:
    """(number of each row's value or `NO_NODE`, how many there are, rows whose value an earlier row has)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared = counts > 1
    if ignore_zero:
        shared[inverse[values == 0]] = False
    numbers = np.full(len(counts), NO_NODE)
    numbers[shared] = np.arange(shared.sum())
    return numbers[inverse], int(shared.sum()), int((counts[shared] - 1).sum())


class NearGroups(NamedTuple):
    """Two or more products that show one photograph: those that mix types first, then the largest."""

    members: np.ndarray  # (M,) rows, group by group
    starts: np.ndarray  # (G,) where each group begins among the members
    sizes: np.ndarray  # (G,)
    has_types: np.ndarray  # (G,) whether several object types are in each
    has_titles: np.ndarray  # (G,) or titles

    @property
    def counts(self) -> dict[str, int]:
        """What the manifest says of them."""
        return {
            "near_duplicate_groups": len(self.sizes),
            "largest_near_duplicate_group": int(self.sizes.max(initial=0)),
            "near_duplicate_groups_of_several_types": int(self.has_types.sum()),
            "near_duplicate_groups_of_several_titles": int(self.has_titles.sum()),
        }


def near_groups(records: Records, ties: Ties) -> NearGroups:
    """The groups, told by the images alone."""
    in_catalogue = records["row"]
    last = int(in_catalogue.max(initial=0))
    order = np.argsort(ties.middle * (last + 1) + in_catalogue[ties.rows].astype(np.int64))
    middle, rows = ties.middle[order], ties.rows[order]
    once = np.ones(len(rows), dtype=bool)
    once[1:] = (middle[1:] != middle[:-1]) | (rows[1:] != rows[:-1])
    middle, rows = middle[once], rows[once]
    several = np.bincount(middle, minlength=1)[middle] > 1
    middle, rows = middle[several], rows[several]
    starts = np.flatnonzero(np.diff(middle, prepend=NO_NODE))
    sizes = np.diff(np.append(starts, len(middle)))
    types, titles = (_are_several(records[name][rows], starts) for name in ("stratum", "title"))
    ranks = np.lexsort((in_catalogue[rows[starts]], -sizes, ~types))
    return NearGroups(rows, *(values[ranks] for values in (starts, sizes, types, titles)))


def _are_several(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Whether the values of groups, which begin at `starts`, differ: (G,)."""
    if not len(starts):
        return np.zeros(0, dtype=bool)
    return np.asarray(np.minimum.reduceat(values, starts) != np.maximum.reduceat(values, starts))


def _distinct(values: np.ndarray, groups: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """How many values differ in each group of the sorted `groups` (M,), which begin at `starts`: (G,)."""
    values = values[np.lexsort((values, groups))]
    is_new = np.ones(len(values), dtype=np.int64)
    is_new[1:] = values[1:] != values[:-1]
    is_new[starts] = 1
    return np.add.reduceat(is_new, starts) if len(starts) else starts


def placeholder_images(
    records: Records, ties: Ties, titles_of: Callable[[Sequence[int]], list[str]]
) -> dict[int, int]:
    """Image -> number of products that have it or a copy of it, where that is a placeholder.

    titles_of: the titles of some rows. A plain surface looks like many others: it has to be one file.
    """
    found: dict[int, int] = {}
    for alike in _sharing_an_image(records, ties):
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


def _sharing_an_image(records: Records, ties: Ties) -> Iterator[np.ndarray]:
    """Images of several products that are copies of one, the largest sets first; none has an image twice."""
    counts = np.bincount(ties.look, minlength=ties.node_count)
    copies = ties.pairs[ties.apart <= COPIED]
    copies = np.concatenate([copies, copies[:, ::-1]])
    sizes = counts.copy()
    np.add.at(sizes, copies[:, 0], counts[copies[:, 1]])
    is_large = sizes >= MIN_PRODUCTS  # other sets cannot be of so many products
    is_large[copies[is_large[copies[:, 0]], 1]] = True
    order = np.flatnonzero(is_large[ties.look])
    order = order[np.argsort(ties.look[order], kind="stable")]
    looks = ties.look[order]
    ends = np.cumsum(np.where(is_large, counts, 0))
    group = records["group"][ties.rows[order]]  # variants of one group count once
    owners = np.where(group > 0, group, ties.rows[order].astype(np.uint64))
    starts = np.flatnonzero(np.diff(looks, prepend=NO_NODE))
    products = np.zeros(ties.node_count, dtype=np.int64)
    products[looks[starts]] = _distinct(owners, looks, starts)
    most = products.copy()
    np.add.at(most, copies[:, 0], products[copies[:, 1]])
    copies = copies[np.argsort(copies[:, 0], kind="stable")]
    shared = np.flatnonzero(most >= MIN_PRODUCTS)
    taken = np.zeros(ties.node_count, dtype=bool)
    for look in shared[np.argsort(-sizes[shared], kind="stable")].tolist():
        first, last = np.searchsorted(copies[:, 0], [look, look + 1])
        near = np.append(copies[first:last, 1], look)
        left = near[~taken[near]]
        images = np.sort(np.concatenate([order[:0], *(order[ends[n] - counts[n] : ends[n]] for n in left)]))
        if len(np.unique(ties.rows[images])) >= MIN_PRODUCTS:
            taken[near] = True
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
