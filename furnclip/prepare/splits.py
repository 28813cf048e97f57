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

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet

from furnclip.catalogue import content_hash
from furnclip.errors import StorageError
from furnclip.journal import replacing
from furnclip.prepare.store import Records
from furnclip.prepare.ties import NO_NODE, Ties
from furnclip.shards.manifest import SPLITS
from furnclip.shards.tar import numbers_of, read_table

LEDGER_NAME = "assignments.parquet"
UNDECIDED = -1
_NUMBER, _TEXT = pyarrow.uint64(), pyarrow.string()
_SCHEMA = pyarrow.schema({"key": _NUMBER, "product_id": _TEXT, "group": _NUMBER, "split": _TEXT})
_NO_SHARE = 1e-9
_MOST_RUNS = 1000  # of rows that are in order, before each row is taken by itself
_NO_NAME = np.uint64(2**64 - 1)


class Ledger:
    """The group and split that each product was ever given, sorted by key. It only grows."""

    def __init__(self, table: pyarrow.Table) -> None:
        keys = table["key"].to_numpy()
        order = np.argsort(keys, kind="stable")  # quick for few behind many that are sorted
        first = np.flatnonzero(np.diff(order, prepend=-2, append=-2) != 1).tolist()  # of each run
        if len(first) > _MOST_RUNS:
            table = table.take(order)
        elif len(first) > 2:
            runs = [table.slice(order[start], end - start) for start, end in pairwise(first)]
            table = pyarrow.concat_tables(runs).combine_chunks()
        self._table = table
        self._keys = keys[order]
        self._groups = self._table["group"].to_numpy()
        numbers = pc.index_in(self._table["split"], pyarrow.array(SPLITS))
        if numbers.null_count:
            raise KeyError("it names a split that there is not")
        self._splits = numbers.to_numpy().astype(np.int8)

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
            keys, groups = (numbers_of(index[name]) for name in ("key", "group"))
            new = self.lookup(keys)[0] == UNDECIDED
            if new.any():
                ids = index["product_id"].filter(pyarrow.array(new))
                columns = [keys[new], ids, groups[new], [split] * len(ids)]
                tables.append(pyarrow.table(columns, schema=_SCHEMA))
        return Ledger(pyarrow.concat_tables(tables)) if len(tables) > 1 else self

    def write(self, path: Path) -> None:
        """Replace the file, whole or not at all."""
        with replacing(path) as file:
            # hashes have no equals, and do not get smaller
            pyarrow.parquet.write_table(self._table, file, compression="lz4", use_dictionary=["split"])


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


def _components(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The smallest node that each of `count` nodes is connected to by edges (E,), (E,).

    Hooking and pointer jumping (Shiloach and Vishkin, 1982): rounds grow with the logarithm of the nodes.
    """
    roots = np.arange(count)
    while len(left):
        left, right = roots[left], roots[right]
        apart = left != right
        left, right = left[apart], right[apart]
        np.minimum.at(roots, np.maximum(left, right), np.minimum(left, right))
        while (roots[roots] != roots).any():
            roots = roots[roots]
    return roots


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
    placed = ~np.isin(np.arange(len(keys)), list(left_out))
    # The smallest group of the ledger, else the smallest key, names what belongs together.
    is_new = known_split == UNDECIDED
    names = np.where(is_new, keys, known_group)

    aside = ThreadPoolExecutor(1)
    grouped = aside.submit(_connected, ties, placed, ties.middle)
    aside.shutdown(wait=False)
    part = _kept_together(ties, placed)  # (N,)
    contested = np.flatnonzero(placed & _is_of_several_splits(part, placed, known_split, ties)[part])
    rank = np.where(is_new, 2, changed.astype(int))[contested]
    ordered = contested[np.lexsort((keys[contested], rank))]
    for row, root in _placed_in_turn(ordered, ties, known_split).items():
        part[row], placed[row] = root, root != NO_NODE
    settled, split_of = placed & ~is_new, np.full(ties.node_count, UNDECIDED, dtype=np.int8)
    split_of[part[settled]] = known_split[settled]

    assignment = Assignment(known_group, known_group.copy(), np.full(len(keys), UNDECIDED, dtype=np.int8))
    assignment.together[placed] = _named(part, names, placed, is_new, ties.node_count)[part[placed]]
    assignment.split[placed] = split_of[part[placed]]
    _draw_splits(assignment, np.flatnonzero(placed & (assignment.split == UNDECIDED)), shares)

    groups = _connected(ties, placed, ties.middle) if len(contested) else grouped.result()
    group = groups[_first_of(ties, ties.middle)]
    named, new = _named(group, names, placed, is_new, ties.node_count), placed & is_new
    assignment.group[new] = named[group[new]]
    out = np.flatnonzero(assignment.split == UNDECIDED)
    among = named[groups[ties.label[out]]]
    assignment.group[out] = np.where((ties.label[out] != NO_NODE) & (among > 0), among, keys[out])
    _fill_empty_splits(assignment, known_split, shares)
    return assignment


def _named(
    nodes: np.ndarray, names: np.ndarray, placed: np.ndarray, is_new: np.ndarray, count: int
) -> np.ndarray:
    """The name of each of `count` nodes, by the nodes (N,) of the placed rows; 0 without one."""
    named = np.zeros(count, dtype=np.uint64)
    for among in (placed & is_new, placed & ~is_new):
        least = np.full(count, _NO_NAME)
        np.minimum.at(least, nodes[among], names[among])
        named = np.where(least == _NO_NAME, named, least)
    return named


def _is_of_several_splits(
    part: np.ndarray, placed: np.ndarray, known_split: np.ndarray, ties: Ties
) -> np.ndarray:
    """Whether rows of each component were in more than one split: (nodes,)."""
    low, high = (np.full(ties.node_count, UNDECIDED, dtype=np.int8) for _ in range(2))
    for number in range(len(SPLITS)):
        high[part[placed & (known_split == number)]] = number
        low[part[placed & (known_split == len(SPLITS) - 1 - number)]] = len(SPLITS) - 1 - number
    return np.asarray(low != high)


def _draw_splits(assignment: Assignment, rows: np.ndarray, shares: tuple[float, float]) -> None:
    """A split for `rows` (R,), one for all that is kept together."""
    together, where = np.unique(assignment.together[rows], return_inverse=True)
    assignment.split[rows] = np.array([drawn(each, shares) for each in together.tolist()], dtype=np.int8)[
        where
    ]


def _first_of(ties: Ties, nodes: np.ndarray) -> np.ndarray:
    """The node (of `nodes`, one an image) of each row's first image; any node where it has none: (N,)."""
    counts = np.bincount(ties.rows, minlength=len(ties.label))
    first = np.cumsum(counts) - counts
    return nodes[np.minimum(first, len(nodes) - 1)] if len(nodes) else np.zeros(len(first), dtype=np.int64)


def _connected(
    ties: Ties, placed: np.ndarray, nodes: np.ndarray, more: np.ndarray | None = None
) -> np.ndarray:
    """The component of each node: rows tie label, files and `nodes` of their images; `more` (E, 2) edges."""
    first, used = _first_of(ties, nodes), placed[ties.rows]
    labelled = placed & (ties.label != NO_NODE)
    filed = used & (ties.file != NO_NODE)
    hubs = np.arange(ties.node_count)  # in the place of a label or file, the last of the nodes on it
    hubs[ties.label[labelled]] = first[labelled]
    hubs[ties.file[filed]] = nodes[filed]
    edges: list[Sequence[np.ndarray]] = [
        (first[labelled], hubs[ties.label[labelled]]),
        (nodes[filed], hubs[ties.file[filed]]),
        (first[ties.rows[used]], nodes[used]),
        *([] if more is None else [(more[:, 0], more[:, 1])]),
    ]
    differ = [np.flatnonzero(ends[0] != ends[1]) for ends in edges]
    left, right = (
        np.concatenate([ends[side][some] for ends, some in zip(edges, differ, strict=True)])
        for side in (0, 1)
    )
    return np.asarray(_components(ties.node_count, left, right)[hubs])


def _kept_together(ties: Ties, placed: np.ndarray) -> np.ndarray:
    """The component of each row, were it for all ties: (N,)."""
    there = np.zeros(ties.node_count, dtype=bool)
    there[ties.look[placed[ties.rows]]] = True
    near = ties.pairs[there[ties.pairs].all(axis=1)]
    return np.asarray(_connected(ties, placed, ties.look, near)[_first_of(ties, ties.look)])


def _placed_in_turn(ordered: np.ndarray, ties: Ties, known_split: np.ndarray) -> dict[int, int]:
    """The component of rows whose ties join splits, taken in this order; `NO_NODE` for who would join two."""
    parent: dict[int, int] = {}
    splits: dict[int, int] = {}

    def root(node: int) -> int:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = node = parent.setdefault(above, above)
        return node

    first_image = np.searchsorted(ties.rows, [ordered, ordered + 1]).T.tolist()
    images = [range(*ends) for ends in first_image]
    own = np.zeros(ties.node_count, dtype=bool)
    own[ties.look[[image for each in images for image in each]]] = True
    neighbors: dict[int, list[int]] = defaultdict(list)
    for left, right in ties.pairs[own[ties.pairs].all(axis=1)].tolist():
        neighbors[left].append(right)
        neighbors[right].append(left)
    looks: set[int] = set()  # of rows that were placed
    found: dict[int, int] = {}
    for row, numbers in zip(ordered.tolist(), images, strict=True):
        mine = ties.look[numbers].tolist()
        shared = [node for node in (int(ties.label[row]), *ties.file[numbers].tolist()) if node != NO_NODE]
        near = [near for look in mine for near in neighbors[look] if near in looks]
        roots = {root(node) for node in (*shared, *mine, *near)}
        known = {int(known_split[row]), *(splits.get(each, UNDECIDED) for each in roots)} - {UNDECIDED}
        if len(known) > 1:
            found[row] = NO_NODE
            continue
        into = min(roots)
        parent.update(dict.fromkeys(roots, into))
        splits[into] = max(known, default=UNDECIDED)
        looks.update(mine)
        found[row] = mine[0]
    return {row: look if look == NO_NODE else root(look) for row, look in found.items()}


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
        there = np.zeros((len(SPLITS), ties.node_count), dtype=bool)
        there[split[rows[tied]], nodes[tied]] = True
        left += int((there.sum(axis=0) - there.any(axis=0)).sum())
    of_look = np.full(ties.node_count, UNDECIDED, dtype=np.int8)
    looks = kept[ties.rows]
    of_look[ties.look[looks]] = split[ties.rows[looks]]
    first, second = of_look[ties.pairs].T
    return left + int(((first != second) & (first != UNDECIDED) & (second != UNDECIDED)).sum())
