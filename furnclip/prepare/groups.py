"""Who belongs together, and which split each group is in. Nothing that belongs together is ever parted.

Products are tied by the group column (without one: by their title, normalised), by equal picture
bytes, and by near-duplicate pictures. A group's split follows from a hash of its id; what was decided
once is kept in `work/shards/assignments.parquet` and never changes. A row that ties products whose
splits were decided differently is rejected: moving either of them would be the leak.

Rows are taken in a fixed order (known and unchanged, known and changed, new; then by key), so the
outcome depends on the rows and the ledger, not on the order of the catalogue or the number of
processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from furnclip.catalogue import content_hash
from furnclip.prepare.fingerprint import near_pairs
from furnclip.prepare.ledger import UNDECIDED, Ledger
from furnclip.prepare.store import Records
from furnclip.shards.manifest import SPLITS

_FREE = -1
_NO_SHARE = 1e-9


@dataclass(frozen=True)
class Ties:
    """What ties rows together: nodes that rows hang on, and edges between near-duplicate pictures.

    nodes: per row the numbers of its nodes, `_FREE` where nobody shares them: (N, kinds).
    """

    nodes: np.ndarray
    look: np.ndarray  # (N,) the number of the row's fingerprint node
    neighbours: dict[int, list[int]]  # fingerprint node -> near-duplicate fingerprint nodes
    count: int
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Assignment:
    """Per row its group id and split (an index of `SPLITS`), `UNDECIDED` for a rejected row."""

    group: np.ndarray  # (N,) uint64
    split: np.ndarray  # (N,) int8


def find_ties(records: Records, *, by_column: bool) -> Ties:
    """Shared group or title, shared picture bytes, shared or close fingerprints."""
    label = "group" if by_column else "title"
    labels, first_free, same_label = _shared(records[label], 0, ignore_zero=True)
    sources = np.ascontiguousarray(records["source"]).view("V16").ravel()
    pictures, first_free, same_picture = _shared(sources, first_free, ignore_zero=False)
    looks, neighbours, look_count, pairs = _looks(records, first_free)
    counts = {f"same_{label}": same_label, "same_picture": same_picture, "near_duplicate_pairs": pairs}
    return Ties(np.stack([labels, pictures], axis=1), looks, neighbours, first_free + look_count, counts)


def _shared(values: np.ndarray, first_node: int, *, ignore_zero: bool) -> tuple[np.ndarray, int, int]:
    """(node of each row or `_FREE`, next free node number, rows whose value an earlier row has)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared = counts > 1
    if ignore_zero:
        shared[inverse[values == 0]] = False
    numbers = np.full(len(counts), _FREE)
    numbers[shared] = first_node + np.arange(shared.sum())
    return numbers[inverse], first_node + int(shared.sum()), int((counts[shared] - 1).sum())


def _looks(records: Records, first_node: int) -> tuple[np.ndarray, dict[int, list[int]], int, int]:
    """Each row's fingerprint node, near nodes of each, number of nodes, pairs of near-duplicate rows."""
    _, rows, inverse, counts = np.unique(
        records["look"], return_index=True, return_inverse=True, return_counts=True
    )
    pairs = near_pairs(records["hash"][rows], records["colours"], rows)  # (P, 2)
    neighbours: dict[int, list[int]] = defaultdict(list)
    for left, right in (pairs + first_node).tolist():
        neighbours[left].append(right)
        neighbours[right].append(left)
    pair_count = int((counts * (counts - 1) // 2).sum() + (counts[pairs[:, 0]] * counts[pairs[:, 1]]).sum())
    return inverse + first_node, dict(neighbours), len(rows), pair_count


class _Components:
    """Union-find over nodes; each component knows its split, its smallest key and its ledger group."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))
        self.split = [UNDECIDED] * count
        self.group: list[int | None] = [None] * count  # of the ledger, else the smallest key
        self.settled = [False] * count  # whether the group is one of the ledger

    def root(self, node: int) -> int:
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def join(self, roots: list[int], key: int, *, split: int, group: int | None) -> None:
        """One component of these and a row; groups of the ledger win over what is undecided."""
        into = roots[0]
        settled = [found for root in roots if self.settled[root] and (found := self.group[root]) is not None]
        settled += [group] if group is not None else []
        others = [
            found for root in roots if not self.settled[root] and (found := self.group[root]) is not None
        ]
        for root in roots[1:]:
            self.parent[root] = into
        self.split[into] = max([split, *(self.split[root] for root in roots)])
        self.settled[into] = bool(settled)
        self.group[into] = min(settled or [*others, key])


@dataclass(frozen=True)
class _Known:
    """What the ledger says of each row: split (`UNDECIDED`: nothing) and group."""

    split: np.ndarray  # (N,)
    group: np.ndarray  # (N,)


def assign(
    records: Records,
    ties: Ties,
    ledger: Ledger,
    *,
    changed: np.ndarray,
    left_out: Collection[int] = (),
    shares: tuple[float, float],
) -> Assignment:
    """A group and a split for each row, or none.

    changed: (N,) rows whose ties may differ from those that the ledger decided on.
    left_out: rows that get no split and tie nothing.
    shares: of groups for train and validation; the rest is test.
    """
    keys = records["key"]
    known = _Known(*ledger.lookup(keys))
    rank = np.where(known.split == UNDECIDED, 2, changed.astype(int))
    components = _Components(ties.count)
    order = np.lexsort((keys, rank))
    order = order[~np.isin(order, list(left_out))]
    placed = _place_rows(order, keys, ties=ties, components=components, known=known)
    assignment = _decide(placed, components, known, shares)
    _fill_empty_splits(assignment, known, shares)
    return assignment


def _place_rows(
    order: np.ndarray, keys: np.ndarray, *, ties: Ties, components: _Components, known: _Known
) -> np.ndarray:
    """Per row a node of its component, or `_FREE` for a row that would join different splits: (N,)."""
    placed = np.full(len(keys), _FREE)
    active: set[int] = set()  # fingerprints of rows that were placed
    for row in order.tolist():
        look = int(ties.look[row])
        nodes = [node for node in ties.nodes[row].tolist() if node != _FREE]
        nodes += [look, *(near for near in ties.neighbours.get(look, ()) if near in active)]
        roots = list(dict.fromkeys(components.root(node) for node in nodes))
        split = int(known.split[row])
        decided = {components.split[root] for root in roots} | {split}
        if len(decided - {UNDECIDED}) > 1:
            continue
        group = int(known.group[row]) if split != UNDECIDED else None
        components.join(roots, int(keys[row]), split=split, group=group)
        active.add(look)
        placed[row] = look
    return placed


def _decide(
    placed: np.ndarray, components: _Components, known: _Known, shares: tuple[float, float]
) -> Assignment:
    """Group and split of each row from the component it was placed in."""
    group = np.zeros(len(placed), dtype=np.uint64)
    split = np.full(len(placed), UNDECIDED, dtype=np.int8)
    for row, node in enumerate(placed.tolist()):
        if node == _FREE:
            continue
        root = components.root(node)
        found, decided = components.group[root], components.split[root]
        assert found is not None
        group[row] = known.group[row] if known.split[row] != UNDECIDED else found
        split[row] = drawn(found, shares) if decided == UNDECIDED else decided
    return Assignment(group, split)


def drawn(group: int, shares: tuple[float, float]) -> int:
    """The split that the hash of a group falls into."""
    return _split_at(_position(group), shares)


def _position(group: int) -> float:
    """Where a group lies between 0 and 1."""
    return int(content_hash("split", f"{group:016x}"), 16) / 2**64


def _split_at(position: float, shares: tuple[float, float]) -> int:
    train, validation = shares
    return 0 if position < train else 1 if position < train + validation else 2


def _fill_empty_splits(assignment: Assignment, known: _Known, shares: tuple[float, float]) -> None:
    """In a tiny catalogue chance may leave a split empty: it gets the group that came closest."""
    group, split = assignment.group, assignment.split
    ranges = ((0.0, shares[0]), (shares[0], sum(shares)), (sum(shares), 1.0))
    for wanted, (low, high) in enumerate(ranges):
        if high - low < _NO_SHARE or (split == wanted).any():
            continue
        spare = _spare_groups(assignment, known)
        if spare:
            distance = {found: max(low - _position(found), _position(found) - high) for found in spare}
            chosen = min(spare, key=lambda found: (distance[found], found))
            split[(group == np.uint64(chosen)) & (split != UNDECIDED)] = wanted


def _spare_groups(assignment: Assignment, known: _Known) -> list[int]:
    """Groups that no earlier run decided on and that are not alone in their split."""
    settled = set(assignment.group[known.split != UNDECIDED].tolist())
    spare = []
    for number in range(len(SPLITS)):
        groups = set(assignment.group[assignment.split == number].tolist())
        spare += sorted(groups - settled) if len(groups) > 1 else []
    return spare


def leaks_left(ties: Ties, assignment: Assignment) -> int:
    """Ties that lead from one split into another, counted anew from the result: has to be zero."""
    split = assignment.split
    kept = split != UNDECIDED
    left = 0
    for nodes in (*ties.nodes.T, ties.look):
        rows = kept & (nodes != _FREE)
        pairs = np.unique(np.stack([nodes[rows], split[rows]], axis=1), axis=0)  # (node, split)
        left += len(pairs) - len(np.unique(pairs[:, 0]))
    splits_of: dict[int, int] = dict(zip(ties.look[kept].tolist(), split[kept].tolist(), strict=True))
    for node, near in ties.neighbours.items():
        left += sum(
            node < other and node in splits_of and other in splits_of and splits_of[node] != splits_of[other]
            for other in near
        )
    return left
