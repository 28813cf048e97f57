"""Reading samples: from local shards in any order, or one shard after the other from anywhere."""

from __future__ import annotations

import hashlib
import random
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow

from furnclip.catalogue import content_hash
from furnclip.errors import UsageError
from furnclip.images import BrokenImage
from furnclip.shards.manifest import MINI_TRAIN, Manifest, ShardInfo, read_manifest
from furnclip.shards.tar import Sample, damaged, decode_sample, read_index, read_sample


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
        self._indexes: dict[int, pyarrow.Table] = {}

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
        return read_sample(self.folder / self.shards[shard].name, self._index(shard), row)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def keys(self) -> Iterator[str]:
        """The key of each sample, in order."""
        for number in range(len(self.shards)):
            yield from self._index(number)["key"].to_pylist()

    def _index(self, number: int) -> pyarrow.Table:
        """The index of a shard, read when a sample of it is wanted."""
        if number not in self._indexes:
            shard = self.shards[number]
            self._indexes[number] = read_index(self.folder / shard.name, samples=shard.samples)
        return self._indexes[number]


class ProductImages:
    """The images of every product in local shards, by product id; for those who show products.

    Holds 16 bytes a product. Raises `MissingStageError` where there are no shards.
    """

    def __init__(self, folder: Path) -> None:
        names = [name for name in read_manifest(folder).splits if name != MINI_TRAIN]
        self._datasets = [ShardDataset(folder, name) for name in names]

    def image_bytes(self, product_id: str, view: int = 0) -> bytes:
        """The JPEG of one view. Raises `BrokenImage` where the product is not there or has no such view."""
        wanted = np.uint64(int(content_hash(product_id), 16))
        for dataset, (keys, places) in zip(self._datasets, self._keys, strict=True):
            found = int(np.searchsorted(keys, wanted))
            if found < len(keys) and keys[found] == wanted:
                images = dataset[int(places[found])].images
                if 0 <= view < len(images):
                    return images[view]
        raise BrokenImage("missing", f"there is no image {view} of `{product_id}` in the shards")

    @cached_property
    def _keys(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each dataset the keys, ascending, and their places in it: (N,) and (N,)."""
        found = []
        for dataset in self._datasets:
            digits = bytes.fromhex("".join(dataset.keys()))
            keys = np.frombuffer(digits, dtype=">u8").astype(np.uint64)
            places = np.argsort(keys, kind="stable")
            found.append((keys[places], places))
        return found


def stream_samples(
    manifest: Manifest,
    split: str,
    *,
    fetch: Callable[[str, Path], object],
    scratch: Path,
    seed: int | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Sample]:
    """One pass over a split that need not fit on the disk: the samples of `ShardDataset`, in its order.

    Shards come whole, are compared with the manifest, read and deleted; the next one is on its way
    meanwhile. Raises `StorageError` when a shard is not the one that the manifest names.

    fetch: called with a shard's name in the manifest and the path to put it at.
    scratch: the folder for that; at most two shards lie in it at a time.
    seed: shuffles the shards, and the samples inside each shard; give another for each epoch.
    rank, ranks: this reader takes every `ranks`-th shard. Shards differ in size, so ranks end apart.
    """

    def fetched(shard: ShardInfo) -> Path:
        path = scratch / shard.name.replace("/", "-")
        fetch(shard.name, path)
        if hashlib.sha256(path.read_bytes()).hexdigest() != shard.sha256:
            path.unlink()
            raise damaged(path, "its checksum is not the manifest's")
        return path

    shards = list(manifest.splits[split].shards)
    chance = None if seed is None else random.Random(seed)
    if chance:
        chance.shuffle(shards)
    shards = shards[rank::ranks]
    scratch.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as ahead:
        begun = (ahead.submit(fetched, shard) for shard in shards)
        coming = next(begun, None)
        while coming:
            path = coming.result()
            coming = next(begun, None)
            try:
                samples = read_tar(path)
                yield from sorted(samples, key=lambda _: chance.random()) if chance else samples
            finally:
                path.unlink(missing_ok=True)


def read_tar(path: Path) -> Iterator[Sample]:
    """Every sample of a shard, in order, without its index. Raises `StorageError` for a damaged tar."""
    # imported here: it loads torch. Its `tariterators` neither unpickle members nor open addresses.
    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        with path.open("rb") as file:
            for members in group_by_keys(tar_file_expander([{"url": path.name, "stream": file}])):
                key = members.pop("__key__")
                yield decode_sample(key, members)
    except (tarfile.TarError, OSError, LookupError, ValueError, TypeError) as error:
        raise damaged(path, str(error)) from None
