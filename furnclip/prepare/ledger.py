"""`work/shards/assignments.parquet`: the group and split that each product was ever given.

It only grows. A product that leaves the catalogue and comes back is in the split that it was in, and
no later row changes that.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from furnclip.errors import StorageError
from furnclip.journal import replacing
from furnclip.shards.manifest import SPLITS

_SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.uint64()),
        ("product_id", pyarrow.string()),
        ("group", pyarrow.uint64()),
        ("split", pyarrow.string()),
    ]
)
LEDGER_NAME = "assignments.parquet"
UNDECIDED = -1


class Ledger:
    """Known products, sorted by key."""

    def __init__(self, table: pyarrow.Table) -> None:
        self._table = table
        self._keys = table["key"].to_numpy()
        self._groups = table["group"].to_numpy()
        numbers = {name: number for number, name in enumerate(SPLITS)}
        self._splits = np.array([numbers[name] for name in table["split"].to_pylist()], dtype=np.int8)

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
        added = [part for split, index in shards if len(part := self._unknown(split, index))]
        return Ledger(pyarrow.concat_tables([self._table, *added]).sort_by("key")) if added else self

    def _unknown(self, split: str, index: pyarrow.Table) -> pyarrow.Table:
        keys, groups = (_numbers(index[name]) for name in ("key", "group"))
        new = self.lookup(keys)[0] == UNDECIDED
        columns = {
            "key": keys[new],
            "product_id": index["product_id"].filter(pyarrow.array(new)),
            "group": groups[new],
            "split": [split] * int(new.sum()),
        }
        return pyarrow.table(columns, schema=_SCHEMA)

    def write(self, path: Path) -> None:
        """Replace the file, whole or not at all."""
        with replacing(path) as file:
            pyarrow.parquet.write_table(self._table, file, compression="zstd")


def _numbers(column: pyarrow.ChunkedArray) -> np.ndarray:
    """Hex digits as numbers: (N,) uint64."""
    return np.array([int(digits, 16) for digits in column.to_pylist()], dtype=np.uint64)


def read_ledger(path: Path) -> Ledger:
    """The ledger in a file; empty where there is none. Raises `StorageError` when it is damaged."""
    if not path.exists():
        return Ledger(_SCHEMA.empty_table())
    try:
        if not path.is_file():  # opening a FIFO would wait for ever
            raise ValueError("it is not a file")
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read().select(_SCHEMA.names).cast(_SCHEMA).sort_by("key")
        if any(column.null_count for column in table.columns):
            raise ValueError("it has empty cells")
        return Ledger(table)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise StorageError(
            f"`{path}` is damaged: {error}",
            hint="restore it, or run `furnclip prepare --fresh` to draw new splits",
        ) from None
