"""What `prepare` tells about a run: the summary, the rejected rows, the leak report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from furnclip.catalogue import ATTRIBUTES, Rejection, catalogue_path, no_rows, sheet_text
from furnclip.console import printable
from furnclip.errors import InputError
from furnclip.journal import write_text
from furnclip.prepare.groups import Assignment, Ties, leaks_left
from furnclip.prepare.ledger import UNDECIDED
from furnclip.prepare.pack import MOST_VALUES
from furnclip.shards import SPLITS, Manifest

if TYPE_CHECKING:
    from furnclip.config import DataPaths

REJECTED_NAME = "rejected.csv"


@dataclass(frozen=True)
class Summary:
    """What a run did. `changed_shards` of 0 and `decoded` of 0: there was nothing to do."""

    catalogue: Path
    folder: Path
    rows: int
    products: int
    rejected: dict[str, int]
    decoded: int
    changed_shards: int
    not_cleaned: int
    """rows of the raw catalogue that are not in the cleaned one, and therefore not in the shards"""
    manifest: Manifest

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        splits = {
            name: {"samples": split.samples, "groups": split.groups, "shards": len(split.shards)}
            for name, split in self.manifest.splits.items()
        }
        return {
            **vars(self),
            "catalogue": str(self.catalogue),
            "folder": str(self.folder),
            "manifest": str(self.folder / "manifest.json"),
            "data_hash": self.manifest.data_hash,
            "splits": splits,
            "attributes": {name: spread(self.manifest, name) for name in ATTRIBUTES},
            "leaks": self.manifest.leaks,
        }


def spread(manifest: Manifest, attribute: str) -> dict[str, dict[str, int | None]]:
    """Products of each split by the value of an attribute, the commonest value first.

    None: the value is not among the commonest of that split, which are all that a manifest keeps.
    """
    counts = {name: manifest.splits[name].attributes.get(attribute, {}) for name in SPLITS}
    total = sum((Counter(values) for values in counts.values()), Counter[str]())
    rest = {name: None if len(values) == MOST_VALUES else 0 for name, values in counts.items()}
    ordered = sorted((value for value in total if value), key=lambda value: (-total[value], value))
    return {value: {name: counts[name].get(value, rest[name]) for name in SPLITS} for value in ordered}


def leak_report(ties: Ties, assignment: Assignment, *, by_column: bool) -> dict[str, Any]:
    """Duplicates found, groups joined, and what is left across splits, counted anew: zero."""
    kept = assignment.split != UNDECIDED
    groups, sizes = np.unique(assignment.group[kept], return_counts=True)
    largest = kept & (assignment.group == groups[sizes.argmax()])
    return {
        **ties.counts,
        "groups": len(sizes),
        "groups_joined": int((sizes > 1).sum()),
        "largest_group": int(sizes.max()),
        "largest_group_shares": _shared_in(largest, ties, label="group" if by_column else "title"),
        "rows_rejected": int((~kept).sum()),
        "left_across_splits": leaks_left(ties, assignment),
    }


def _shared_in(rows: np.ndarray, ties: Ties, *, label: str) -> str:
    """What most of the rows of a group have in common."""
    count = int(rows.sum())

    def joined(nodes: np.ndarray) -> int:
        """Rows that have a node which another one before them has."""
        shared = nodes[rows & (nodes >= 0)]
        return len(shared) - len(np.unique(shared))

    joined_by = {label: joined(ties.nodes[:, 0]), "image": joined(ties.look)}
    joined_by["near-duplicates"] = max(0, count - 1 - sum(joined_by.values()))
    return max(joined_by, key=lambda name: joined_by[name]) if count > 1 else ""


def placeholder(row: int, product_id: str, image: str, *, products: int) -> Rejection:
    """The rejection of a product whose image is one for all."""
    detail = f"`{image}` is the image of {products} products that have nothing else in common: a placeholder"
    return Rejection(row, product_id, "placeholder-image", detail)


def joins_splits(row: int, product_id: str) -> Rejection:
    """The rejection of a product that would move others."""
    detail = "shares a group, title or image with products that an earlier run put into different splits"
    return Rejection(row, product_id, "joins-splits", detail)


def by_reason(rejections: Sequence[Rejection]) -> dict[str, int]:
    """Rejected rows by reason, in the order of the words."""
    return dict(sorted(Counter(item.reason for item in rejections).items()))


def write_rejected(folder: Path, rejections: Sequence[Rejection]) -> None:
    """`rejected.csv`: every row that is not in the shards, with its reason."""
    rows = (
        (item.row, printable(item.product_id), item.reason, printable(item.detail)) for item in rejections
    )
    text = sheet_text([("row", "product_id", "reason", "detail"), *rows])
    path = folder / REJECTED_NAME
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def nothing_usable(paths: DataPaths, rejections: Sequence[Rejection], folder: Path) -> InputError:
    """The error for a catalogue without a single usable row; the reasons are in `folder`."""
    catalogue = catalogue_path(paths)
    if not rejections:
        return no_rows(catalogue, paths)
    reason, count = Counter(item.reason for item in rejections).most_common(1)[0]
    first = next(item for item in rejections if item.reason == reason)
    return InputError(
        f"no row of `{catalogue}` can be used; {count} of {len(rejections)}: {reason}, "
        f"first in row {first.row}: {first.detail}",
        hint=f"`{folder / REJECTED_NAME}` has the reason of each row; fix them and run the command again",
    )
