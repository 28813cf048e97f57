"""Reading samples from local shards, in any order, by any number of workers and ranks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import pyarrow

from furnclip.catalogue import content_hash
from furnclip.errors import UsageError
from furnclip.shards.manifest import read_manifest
from furnclip.shards.tar import Place, Sample, read_index, read_sample


class ShardDataset:
    """One split of local shards as a sequence of samples.

    The order is that of the shards and never changes while `data_hash` stays the same; shuffling is a
    permutation of the indices. It can be pickled and forked: every read opens its file by itself.
    """

    def __init__(self, folder: Path, split: str) -> None:
        manifest = read_manifest(folder)
        if split not in manifest.splits:
            raise UsageError(
                f"there is no split `{split}` in `{folder}`", hint=f"one of: {', '.join(manifest.splits)}"
            )
        self.folder = folder
        self.split = split
        self.shards = manifest.splits[split].shards
        self._ends = list(accumulate(shard.samples for shard in self.shards))

    @cached_property
    def data_hash(self) -> str:
        """Changes exactly when a sample of this split changes."""
        return content_hash(self.split, *(shard.sha256 for shard in self.shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        """The sample. Raises `StorageError` where the shard is not what the index says."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect_right(self._ends, index)
        row = index - (self._ends[shard - 1] if shard else 0)
        place = place_at(self._indexes[shard], row)
        return read_sample(self.folder / self.shards[shard].name, place)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def _indexes(self) -> list[pyarrow.Table]:
        return [read_index(self.folder / shard.name, samples=shard.samples) for shard in self.shards]

    @cached_property
    def product_ids(self) -> list[str]:
        """The product id of each sample, without reading the shards."""
        return [value for table in self._indexes for value in table["product_id"].to_pylist()]

    @cached_property
    def groups(self) -> list[str]:
        """The group of each sample, without reading the shards."""
        return [value for table in self._indexes for value in table["group"].to_pylist()]


def place_at(index: pyarrow.Table, row: int) -> Place:
    """Where the sample of a row of an index lies."""
    names = ("key", "offset", "jpg_bytes", "json_bytes", "txt_bytes", "crc32")
    return Place(*(index[name][row].as_py() for name in names))
