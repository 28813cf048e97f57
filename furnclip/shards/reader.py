"""Reading samples in any order, by the index of each shard."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow

from furnclip.catalogue import content_hash
from furnclip.images import BrokenImage
from furnclip.shards.manifest import MINI_TRAIN, ShardInfo
from furnclip.shards.place import ShardFolder, ShardPlace, split_shards
from furnclip.shards.tar import (
    Sample,
    TextSample,
    key_ranges,
    numbers_of,
    read_index,
    read_sample,
    read_texts,
)


class ShardDataset:
    """One split as a sequence of samples.

    The order is that of the shards and never changes while `data_hash` stays the same; shuffling is a
    permutation of the indices. It can be pickled and forked: every read opens its file by itself.
    """

    def __init__(self, place: ShardPlace | Path, split: str, *, enough: int | None = None) -> None:
        """`enough`: samples after which no further shard is taken. Their order is a shuffle already."""
        self.place = ShardFolder(place) if isinstance(place, Path) else place
        self.split = split
        self.shards = split_shards(self.place, split)
        ends = list(accumulate(shard.samples for shard in self.shards))
        self._ends = ends if enough is None else ends[: bisect_left(ends, enough) + 1]
        self.shards = self.shards[: len(self._ends)]
        self._indexes: dict[int, pyarrow.Table] = {}

    @cached_property
    def data_hash(self) -> str:
        """Changes exactly when a sample of this split changes."""
        return content_hash(self.split, *(shard.sha256 for shard in self.shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        """The sample. Raises `StorageError` where the shard is not what the index says."""
        number, row = self._find(index)
        return read_sample(self.place.whole(self.shards[number]), self._index(number), row)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def alone(self, index: int) -> Sample:
        """The sample, for which no shard comes from the bucket."""
        number, row = self._find(index)
        shard, indexed = self.shards[number], self._index(number)
        return read_sample(Path(shard.name), indexed, row, partial(self.place.piece, shard))

    def bring(self) -> None:
        """Have all shards here before samples are read."""
        self.place.bring(self.shards)

    def bring_one(self, index: int) -> None:
        """Have the shard of a sample here."""
        self.place.whole(self.shards[self._find(index)[0]])

    def texts(self) -> Iterator[TextSample]:
        """The samples without their images, in order, of which no shard is read."""
        for shard in self.shards:
            yield from read_texts(self.place.indexed(shard), samples=shard.samples)

    def texts_of(self, rows: range) -> Iterator[TextSample]:
        """Samples of one shard without their images, which are not read."""
        number, first = self._find(rows[0])
        shard = self.shards[number]
        within = range(first, first + len(rows))
        return read_texts(self.place.indexed(shard), samples=shard.samples, rows=within)

    def pieces_of(self, shard: ShardInfo, most: int) -> list[tuple[int, str]]:
        """The samples of a shard in ranges of keys: how many, at most `most`, and a hash of what they hold.

        So what is added to a shard changes one of its pieces.
        """
        names = ["key", "json", "txt", "seen"]  # the last one knows the images
        index = read_index(self.place.indexed(shard), names, samples=shard.samples)
        ends = np.append(key_ranges(numbers_of(index["key"]), most), shard.samples).tolist()
        pieces, start = [], 0
        for end in ends:
            piece = (value for name in names for value in index[name].slice(start, end - start).to_pylist())
            pieces.append((end - start, content_hash(self.split, *map(str, piece))))
            start = end
        return pieces

    def seen_of(self, rows: range) -> list[str]:
        """What models see of samples of one shard, see `seen_hash`."""
        number, first = self._find(rows[0])
        shard = self.shards[number]
        index = read_index(self.place.indexed(shard), ["seen"], samples=shard.samples)
        return [f"{seen:016x}" for seen in index["seen"].slice(first, len(rows)).to_pylist()]

    def keys(self) -> Iterator[np.ndarray]:
        for number in range(len(self.shards)):
            yield numbers_of(self._index(number)["key"])

    def _find(self, index: int) -> tuple[int, int]:
        """Which shard a sample is in, and where in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _index(self, number: int) -> pyarrow.Table:
        """The index of a shard, read when a sample of it is wanted."""
        if number not in self._indexes:
            shard = self.shards[number]
            index = read_index(self.place.indexed(shard), samples=shard.samples)
            self._indexes[number] = index.drop_columns(["product_id", "group", "content"])
        return self._indexes[number]


class ProductImages:
    """The images of every product in the shards, by product id. Raises `MissingStageError` without shards."""

    def __init__(self, place: ShardPlace | Path) -> None:
        place = ShardFolder(place) if isinstance(place, Path) else place
        names = [name for name in place.manifest.splits if name != MINI_TRAIN]
        self._datasets = [ShardDataset(place, name) for name in names]
        place.bring((shard for dataset in self._datasets for shard in dataset.shards), whole=False)

    def image_bytes(self, product_id: str, view: int = 0) -> bytes:
        """The JPEG of one view. Raises `BrokenImage` where the product is not there or has no such view."""
        wanted = np.uint64(int(content_hash(product_id), 16))
        for dataset, (keys, places) in zip(self._datasets, self._keys, strict=True):
            found = int(np.searchsorted(keys, wanted))
            if found < len(keys) and keys[found] == wanted:
                images = dataset.alone(int(places[found])).images
                if 0 <= view < len(images):
                    return images[view]
        raise BrokenImage("missing", f"there is no image {view} of `{product_id}` in the shards")

    @cached_property
    def _keys(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each dataset the keys, ascending, and their places in it: (N,) and (N,)."""
        found = []
        for dataset in self._datasets:
            keys = np.concatenate([np.empty(0, np.uint64), *dataset.keys()])
            places = np.argsort(keys, kind="stable")
            found.append((keys[places], places))
        return found
