"""One image for many products that have nothing else in common: the shop's "no image" picture.

It says nothing about any of them, so it must neither tie them into one giant group nor be trained on.
Variants share an image as well, but the words of their titles too: "Oslo sofa red", "Oslo sofa blue".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np

from furnclip.prepare.groups import Ties
from furnclip.prepare.store import Records

MIN_PRODUCTS = 5  # fewer with one image are a small group, whatever it shows
_MAX_SHARED_WORDS = 0.34  # of the words of two titles, for half of the pairs
_TITLES_COMPARED = 64
_WORD = re.compile(r"[^\W\d_]+")
_FIRST_IDEOGRAPH = "\u2e80"


def placeholder_rows(
    records: Records, ties: Ties, titles_of: Callable[[Sequence[int]], list[str]]
) -> dict[int, int]:
    """Row -> number of products that have its image or a near-duplicate, where that is a placeholder.

    titles_of: the titles of some rows.
    """
    found: dict[int, int] = {}
    for rows in _sharing_an_image(ties):
        _, first = np.unique(records["group"][rows], return_index=True)
        has_group = records["group"][rows] != 0
        others = np.union1d(first, np.flatnonzero(~has_group))  # variants of one group count once
        if len(others) >= MIN_PRODUCTS and _unrelated(titles_of(rows[others][:_TITLES_COMPARED].tolist())):
            found.update(dict.fromkeys(rows.tolist(), len(rows)))
    return found


def _sharing_an_image(ties: Ties) -> Iterator[np.ndarray]:
    """Rows with one image or near-duplicates of it, the largest such sets first; none has a row twice."""
    order = np.argsort(ties.look, kind="stable")
    first_look = int(ties.look[order[0]])
    counts = np.bincount(ties.look - first_look)
    ends = np.cumsum(counts)
    shared = {*(np.flatnonzero(counts >= MIN_PRODUCTS) + first_look).tolist(), *ties.neighbours}
    near = {look: [look, *ties.neighbours.get(look, ())] for look in shared}
    sizes = {look: int(counts[np.array(looks) - first_look].sum()) for look, looks in near.items()}
    taken: set[int] = set()
    for look in sorted(shared, key=lambda look: (-sizes[look], look)):
        left = [other - first_look for other in near[look] if other not in taken]
        rows = np.sort(np.concatenate([order[:0], *(order[ends[n] - counts[n] : ends[n]] for n in left)]))
        if len(rows) >= MIN_PRODUCTS:
            taken.update(near[look])
            yield rows


def _unrelated(titles: Sequence[str]) -> bool:
    """Whether most pairs of titles share few words."""
    words = [found for title in titles if (found := _words(title))]
    if len(words) < MIN_PRODUCTS:
        return False
    shared = [len(first & second) / len(first | second) for first, second in combinations(words, 2)]
    return float(np.median(shared)) <= _MAX_SHARED_WORDS


def _words(title: str) -> frozenset[str]:
    """Words without numbers; pairs of characters where a script has no spaces."""
    found: set[str] = set()
    for word in _WORD.findall(title.lower()):
        if word >= _FIRST_IDEOGRAPH:
            found.update(word[start : start + 2] for start in range(max(1, len(word) - 1)))
        else:
            found.add(word)
    return frozenset(found)
