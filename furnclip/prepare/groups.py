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
from dataclasses import dataclass, field

import numpy as np

from furnclip.catalogue import content_hash
from furnclip.prepare.fingerprint import near_pairs
from furnclip.prepare.ledger import Ledger
from furnclip.prepare.spool import Records
from furnclip.shards.manifest import SPLITS

UNDECIDED = -1
_FREE = -1


@dataclass(frozen=True)
class Ties:
    """What ties rows together: nodes that rows hang on, and edges between near-duplicate pictures.

    nodes: per row the numbers of its nodes, `_FREE` where nobody shares them: (N, kinds).
    """

    nodes: np.ndarray
    picture: np.ndarray  # (N,) the number of the row's fingerprint node
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
    labels = {"group" if by_column else "title": records["group"] if by_column else records["title"]}
    columns, counts, first_free = [], {}, 0
    for name, values in labels.items():
        column, first_free, counts[f"same_{name}"] = _shared(values, first_free, ignore_zero=True)
        columns.append(column)
    source = _joined(records["source"].reshape(len(records), 2))
    column, first_free, counts["same_picture"] = _shared(source, first_free, ignore_zero=False)
    columns.append(column)
    picture, neighbours, unique_count, pairs = _picture_nodes(records, first_free)
    counts["near_duplicate_pairs"] = pairs
    return Ties(np.stack(columns, axis=1), picture, neighbours, first_free + unique_count, counts)


def _joined(pairs: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pairs).view("V16").ravel()


def _shared(values: np.ndarray, first_node: int, *, ignore_zero: bool) -> tuple[np.ndarray, int, int]:
    """(node of each row or `_FREE`, next free node number, rows that share their value with another)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared = counts > 1
    if ignore_zero and len(values):
        shared &= ~np.isin(np.arange(len(counts)), inverse[values == 0])
    numbers = np.full(len(counts), _FREE)
    numbers[shared] = first_node + np.arange(shared.sum())
    return numbers[inverse], first_node + int(shared.sum()), int((counts[shared] - 1).sum())


def _picture_nodes(records: Records, first_node: int) -> tuple[np.ndarray, dict[int, list[int]], int, int]:
    """Each row's fingerprint node, near nodes of each, number of nodes, pairs of near-duplicate rows."""
    prints = np.concatenate([records["hash"], records["thumb"]], axis=1)  # (N, 208)
    rows = np.ascontiguousarray(prints).view(f"V{prints.shape[1]}").ravel()
    _, first_row, inverse, counts = np.unique(
        rows, return_index=True, return_inverse=True, return_counts=True
    )
    pairs = near_pairs(records["hash"][first_row], records["thumb"][first_row])  # (P, 2)
    neighbours: dict[int, list[int]] = defaultdict(list)
    for left, right in (pairs + first_node).tolist():
        neighbours[left].append(right)
        neighbours[right].append(left)
    pair_count = int((counts * (counts - 1) // 2).sum() + (counts[pairs[:, 0]] * counts[pairs[:, 1]]).sum())
    return inverse + first_node, dict(neighbours), len(first_row), pair_count


class _Components:
    """Union-find over nodes; each component knows its split, its smallest key and its ledger group."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))
        self.split = [UNDECIDED] * count
        self.group: list[int | None] = [None] * count  # of the ledger, else the smallest key
        self.from_ledger = [False] * count

    def root(self, node: int) -> int:
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def join(self, roots: list[int], key: int, split: int, group: int | None) -> int:
        """One component of these and a row; a ledger's split and group win over what is undecided."""
        into, *others = roots
        ledger_groups = [self.group[root] for root in roots if self.from_ledger[root]]
        keys = [
            found for root in roots if (found := self.group[root]) is not None and not self.from_ledger[root]
        ]
        known = [found for found in ledger_groups if found is not None] + (
            [group] if group is not None else []
        )
        for root in others:
            self.parent[root] = into
        self.split[into] = max([split, *(self.split[root] for root in roots)])
        self.from_ledger[into] = bool(known)
        self.group[into] = min(known) if known else min([*keys, key])
        return into


def assign(
    records: Records, ties: Ties, ledger: Ledger, changed: np.ndarray, shares: tuple[float, float]
) -> Assignment:
    """A group and a split for each row, or none.

    changed: (N,) rows whose ties may differ from those that the ledger decided on.
    shares: of groups for train and validation; the rest is test.
    """
    known_split, known_group = ledger.lookup(records["key"])  # (N,) each
    rank = np.where(known_split == UNDECIDED, 2, changed.astype(int))
    order = np.lexsort((records["key"], rank))
    components = _Components(ties.count)
    node_of = _place_rows(order, records, ties, components, (known_split, known_group))
    return _decide(records, node_of, components, (known_split, known_group), shares)


def _place_rows(
    order: np.ndarray,
    records: Records,
    ties: Ties,
    components: _Components,
    known: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Per row a node of its component, or `_FREE` for a row that would join different splits: (N,)."""
    placed = np.full(len(records), _FREE)
    active: set[int] = set()  # fingerprints of rows that were placed
    keys = records["key"]
    for row in order.tolist():
        picture = int(ties.picture[row])
        nodes = [node for node in ties.nodes[row].tolist() if node != _FREE]
        nodes += [picture, *(near for near in ties.neighbours.get(picture, ()) if near in active)]
        roots = list(dict.fromkeys(components.root(node) for node in nodes))
        split = int(known[0][row])
        decided = {components.split[root] for root in roots} | {split}
        if len(decided - {UNDECIDED}) > 1:
            continue
        group = int(known[1][row]) if split != UNDECIDED else None
        components.join(roots, int(keys[row]), split, group)
        active.add(picture)
        placed[row] = picture
    return placed


def _decide(
    records: Records,
    node_of: np.ndarray,
    components: _Components,
    known: tuple[np.ndarray, np.ndarray],
    shares: tuple[float, float],
) -> Assignment:
    group = np.zeros(len(records), dtype=np.uint64)
    split = np.full(len(records), UNDECIDED, dtype=np.int8)
    for row, node in enumerate(node_of.tolist()):
        if node == _FREE:
            continue
        root = components.root(node)
        found = components.group[root]
        assert found is not None
        group[row] = known[1][row] if known[0][row] != UNDECIDED else found
        split[row] = components.split[root] if components.split[root] != UNDECIDED else drawn(found, shares)
    _fill_empty_splits(group, split, known[0], shares)
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


def _fill_empty_splits(
    group: np.ndarray, split: np.ndarray, known_split: np.ndarray, shares: tuple[float, float]
) -> None:
    """In a tiny catalogue chance may leave a split empty: it gets the group that came closest."""
    ranges = ((0.0, shares[0]), (shares[0], sum(shares)), (sum(shares), 1.0))
    for wanted, (low, high) in enumerate(ranges):
        new = (split != UNDECIDED) & (known_split == UNDECIDED)
        settled = set(group[known_split != UNDECIDED].tolist())
        if high - low < 1e-9 or (split == wanted).any():
            continue
        sizes = {number: len(set(group[split == number].tolist())) for number in range(len(SPLITS))}
        spare = {
            int(found): _position(int(found))
            for found, number in zip(group[new].tolist(), split[new].tolist(), strict=True)
            if sizes[number] > 1 and found not in settled
        }
        if spare:
            chosen = min(spare, key=lambda found: (max(low - spare[found], spare[found] - high), found))
            split[(group == np.uint64(chosen)) & (split != UNDECIDED)] = wanted


def leaks_left(records: Records, ties: Ties, assignment: Assignment) -> int:
    """Ties that lead from one split into another, counted anew from the result: has to be zero."""
    split = assignment.split
    kept = split != UNDECIDED
    left = 0
    for nodes in (*ties.nodes.T, ties.picture):
        rows = kept & (nodes != _FREE)
        pairs = np.unique(np.stack([nodes[rows], split[rows]], axis=1), axis=0)  # (node, split)
        left += len(pairs) - len(np.unique(pairs[:, 0]))
    splits_of: dict[int, int] = dict(zip(ties.picture[kept].tolist(), split[kept].tolist(), strict=True))
    for node, near in ties.neighbours.items():
        left += sum(
            node < other and node in splits_of and other in splits_of and splits_of[node] != splits_of[other]
            for other in near
        )
    return left
