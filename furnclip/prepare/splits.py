"""Which group each product is in, and which split. Nothing that belongs together is ever parted.

Products of one group share the shop's group or title, a file, or a photograph: each image is close to the
middle one. More is kept in one split: whatever is near to what is near, chains and all, even if it is
several groups. The split follows from a hash of it; what was decided once is kept in
`work/shards/assignments.parquet` and never changes: a product that leaves the catalogue and comes back is
in the split that it was in. A row that ties products whose splits were decided differently is in no split:
moving either of them would be the leak.

Rows are taken in a fixed order (known and unchanged, known and changed, new; then by key), so the
outcome depends on the rows and the ledger, not on the order of the catalogue or the number of processes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from furnclip.catalogue import content_hash
from furnclip.errors import StorageError
from furnclip.journal import replacing
from furnclip.prepare.store import Records
from furnclip.prepare.ties import NO_NODE, Ties
from furnclip.shards.manifest import SPLITS
from furnclip.shards.tar import read_table

LEDGER_NAME = "assignments.parquet"
UNDECIDED = -1
_NUMBER, _TEXT = pyarrow.uint64(), pyarrow.string()
_SCHEMA = pyarrow.schema({"key": _NUMBER, "product_id": _TEXT, "group": _NUMBER, "split": _TEXT})
_NO_SHARE = 1e-9
_NO_GROUP = (2, 0)


class Ledger:
    """The group and split that each product was ever given, sorted by key. It only grows."""

    def __init__(self, table: pyarrow.Table) -> None:
        self._table = table.sort_by("key")
        self._keys = self._table["key"].to_numpy()
        self._groups = self._table["group"].to_numpy()
        numbers = {name: number for number, name in enumerate(SPLITS)}
        self._splits = np.array([numbers[name] for name in self._table["split"].to_pylist()], dtype=np.int8)

    def __len__(self) -> int:
        return len(self._keys)

    def lookup(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Split (an index of `SPLITS`, `UNDECIDED`: not known) and group of each key: (N,) and (N,)."""
        split = np.full(len(keys), UNDECIDED, dtype=np.int8)
        group = np.zeros(len(keys), dtype=np.uint64)
        if len(self._keys):
            position = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            known = self._keys[position] == keys
            split[known] = self._splits[position[known]]
            group[known] = self._groups[position[known]]
        return split, group

    def extended(self, shards: Iterable[tuple[str, pyarrow.Table]]) -> Ledger:
        """This ledger with the products that it does not have yet of (split, index of a shard)."""
        tables = [self._table]
        for split, index in shards:
            keys, groups = (
                np.array([int(digits, 16) for digits in index[name].to_pylist()], dtype=np.uint64)
                for name in ("key", "group")
            )
            new = self.lookup(keys)[0] == UNDECIDED
            if new.any():
                ids = index["product_id"].filter(pyarrow.array(new))
                columns = [keys[new], ids, groups[new], [split] * len(ids)]
                tables.append(pyarrow.table(columns, schema=_SCHEMA))
        return Ledger(pyarrow.concat_tables(tables)) if len(tables) > 1 else self

    def write(self, path: Path) -> None:
        """Replace the file, whole or not at all."""
        with replacing(path) as file:
            pyarrow.parquet.write_table(self._table, file, compression="zstd")


def read_ledger(path: Path) -> Ledger:
    """The ledger in a file; empty where there is none. Raises `StorageError` when it is damaged."""
    if not path.exists():
        return Ledger(_SCHEMA.empty_table())
    try:
        return Ledger(read_table(path, _SCHEMA))
    except (ValueError, KeyError) as error:
        raise StorageError(
            f"`{path}` is damaged: {error}",
            hint="restore it, or run `furnclip prepare --fresh` to draw new splits",
        ) from None


class _Components:
    """Union-find over nodes; each component knows its split and its group."""

    def __init__(self, node_count: int) -> None:
        self._parent = list(range(node_count))
        self.split = [UNDECIDED] * node_count
        self.group = [_NO_GROUP] * node_count  # (0, group of the ledger) before (1, smallest key)

    def root(self, node: int) -> int:
        parent = self._parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def join(self, nodes: list[int], split: int, group: tuple[int, int]) -> bool:
        """Make nodes and a row one component; False, and nothing done, where their splits differ."""
        roots = {self.root(node) for node in nodes}
        splits = {split, *(self.split[root] for root in roots)}
        if len(splits - {UNDECIDED}) > 1:
            return False
        into = min(roots)
        self.group[into] = min(group, *(self.group[root] for root in roots))
        self.split[into] = max(splits)
        for root in roots:
            self._parent[root] = into
        return True


@dataclass(frozen=True)
class Assignment:
    """Per row its group id and split (an index of `SPLITS`), `UNDECIDED` for a row in none."""

    group: np.ndarray  # (N,) uint64
    together: np.ndarray  # (N,) uint64, what is kept in one split: of one or more groups
    split: np.ndarray  # (N,) int8


def assign(
    records: Records,
    ties: Ties,
    ledger: Ledger,
    *,
    changed: np.ndarray,
    left_out: Collection[int] = (),
    shares: tuple[float, float],
) -> Assignment:
    """A group for each row, and a split or none.

    changed: (N,) rows whose ties may differ from those that the ledger decided on.
    left_out: rows that get no split and tie nothing; all others have an image in `ties`.
    shares: of groups for train and validation; the rest is test.
    """
    keys = records["key"]
    known_split, known_group = ledger.lookup(keys)
    rank = np.where(known_split == UNDECIDED, 2, changed.astype(int))
    order = np.lexsort((keys, rank))
    together, groups = _Components(ties.node_count), _Components(ties.node_count)
    placed: list[tuple[int, int]] = []  # rows and one of their nodes
    looks: set[int] = set()  # fingerprints of rows that were placed
    first_image = np.searchsorted(ties.rows, np.arange(len(keys) + 1))  # (N + 1,)
    for row in order[~np.isin(order, list(left_out))].tolist():
        images, split = slice(first_image[row], first_image[row + 1]), int(known_split[row])
        own = ties.look[images].tolist()
        shared = [node for node in (int(ties.label[row]), *ties.file[images].tolist()) if node != NO_NODE]
        near = [near for look in own for near in ties.neighbors.get(look, ()) if near in looks]
        group = (1, int(keys[row])) if split == UNDECIDED else (0, int(known_group[row]))
        if together.join([*shared, *own, *near], split, group):
            groups.join([*shared, *ties.middle[images].tolist()], UNDECIDED, group)
            looks.update(own)
            placed.append((row, first_image[row]))
    undecided = np.full(len(keys), UNDECIDED, dtype=np.int8)
    assignment = Assignment(known_group, known_group.copy(), undecided)
    for row, image in placed:
        root = together.root(int(ties.look[image]))
        _, assignment.together[row] = together.group[root]
        if known_split[row] == UNDECIDED:
            _, assignment.group[row] = groups.group[groups.root(int(ties.middle[image]))]
        decided = together.split[root]
        share = drawn(int(assignment.together[row]), shares) if decided == UNDECIDED else decided
        assignment.split[row] = share
    for row in np.flatnonzero(assignment.split == UNDECIDED).tolist():
        label = int(ties.label[row])
        among = _NO_GROUP if label == NO_NODE else groups.group[groups.root(label)]
        assignment.group[row] = keys[row] if among == _NO_GROUP else among[1]
    _fill_empty_splits(assignment, known_split, shares)
    return assignment


def drawn(group: int, shares: tuple[float, float]) -> int:
    """The split that the hash of a group falls into."""
    train, validation = shares
    position = _position(group)
    return 0 if position < train else 1 if position < train + validation else 2


def _position(group: int) -> float:
    """Where a group lies between 0 and 1."""
    return int(content_hash("split", f"{group:016x}"), 16) / 2**64


def _fill_empty_splits(assignment: Assignment, known_split: np.ndarray, shares: tuple[float, float]) -> None:
    """In a tiny catalogue chance may leave a split empty: it gets the group that came closest.

    Groups that an earlier run decided on stay, and so do those that are alone in their split.
    """
    group, split = assignment.together, assignment.split
    ranges = ((0.0, shares[0]), (shares[0], sum(shares)), (sum(shares), 1.0))
    for wanted, (low, high) in enumerate(ranges):
        if high - low < _NO_SHARE or (split == wanted).any():
            continue
        settled = set(group[known_split != UNDECIDED].tolist())
        inside = [set(group[split == number].tolist()) for number in range(len(SPLITS))]
        spare = [found for groups in inside if len(groups) > 1 for found in groups - settled]
        if spare:
            distance = {found: max(low - _position(found), _position(found) - high) for found in spare}
            chosen = min(spare, key=lambda found: (distance[found], found))
            split[(group == np.uint64(chosen)) & (split != UNDECIDED)] = wanted


def leak_report(ties: Ties, assignment: Assignment, *, by_column: bool) -> dict[str, Any]:
    """Duplicates found, groups joined, and what is left across splits, counted anew: zero."""
    kept = assignment.split != UNDECIDED
    _, sizes = np.unique(assignment.group[kept], return_counts=True)
    parts, shared_sizes = np.unique(assignment.together[kept], return_counts=True)
    largest = kept & (assignment.together == parts[shared_sizes.argmax()])
    joined_by: dict[str, int] = {}  # rows of the largest part that share something with one before them
    everything = np.arange(len(kept))
    for name, nodes, rows in (
        ("group" if by_column else "title", ties.label, everything),
        ("image", ties.look, ties.rows),
    ):
        shared = nodes[largest[rows] & (nodes != NO_NODE)]
        joined_by[name] = len(shared) - len(np.unique(shared))
    joined_by["near-duplicates"] = max(0, int(largest.sum()) - 1 - sum(joined_by.values()))
    return {
        **ties.counts,
        "groups": len(sizes),
        "groups_joined": int((sizes > 1).sum()),
        "largest_group": int(sizes.max()),
        "kept_together": int(largest.sum()),
        "kept_together_by": max(joined_by, key=joined_by.__getitem__) if largest.sum() > 1 else "",
        "rows_rejected": int((~kept).sum()),
        "left_across_splits": leaks_left(ties, assignment),
    }


def leaks_left(ties: Ties, assignment: Assignment) -> int:
    """Ties that lead from one split into another, counted anew from the result: has to be zero."""
    split = assignment.split
    kept = split != UNDECIDED
    left = 0
    for nodes, rows in ((ties.label, np.arange(len(kept))), (ties.file, ties.rows), (ties.look, ties.rows)):
        tied = kept[rows] & (nodes != NO_NODE)
        pairs = np.unique(np.stack([nodes[tied], split[rows[tied]]], axis=1), axis=0)  # (node, split)
        left += len(pairs) - len(np.unique(pairs[:, 0]))
    looks = kept[ties.rows]
    split_of = dict(zip(ties.look[looks].tolist(), split[ties.rows[looks]].tolist(), strict=True))
    for node, near in ties.neighbors.items():
        others = (split_of[other] for other in near if node < other and other in split_of)
        left += sum(node in split_of and split_of[node] != other for other in others)
    return left
