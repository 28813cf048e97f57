"""Reading shards that are larger than the disk: one after the other, from anywhere.

Shards come whole, through a function that is given (a bucket's download, a copy from a mounted
disk), are compared with the manifest's checksum, read, and deleted; the next one is on its way
meanwhile. At most two lie in `scratch` at a time.
"""

from __future__ import annotations

import hashlib
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from furnclip.shards.manifest import Manifest, ShardInfo
from furnclip.shards.tar import Sample, damaged, decode_sample

Fetch = Callable[[str, Path], object]
_MEMBERS = ("jpg", "json", "txt")
_CHUNK_BYTES = 2**20


class ShardStream:
    """One pass over a split; the samples of `ShardDataset`, in its order unless `seed` is given.

    fetch: called with a shard's name in the manifest and the path to put it at.
    seed: shuffles the shards, and the samples inside each shard; give another for each epoch.
    rank, ranks: this reader takes every `ranks`-th shard. Shards differ in size, so ranks end apart.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        *,
        fetch: Fetch,
        scratch: Path,
        seed: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        shards = list(manifest.splits[split].shards)
        self._random = None if seed is None else random.Random(seed)
        if self._random is not None:
            self._random.shuffle(shards)
        self._shards: Sequence[ShardInfo] = shards[rank::ranks]
        self._fetch = fetch
        self._scratch = scratch

    def __len__(self) -> int:
        return sum(shard.samples for shard in self._shards)

    def __iter__(self) -> Iterator[Sample]:
        """Raises `StorageError` when a shard is not the one that the manifest names."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(1) as ahead:
            coming: Future[Path] | None = None
            for number, shard in enumerate(self._shards):
                path = (coming or ahead.submit(self._fetched, shard)).result()
                rest = self._shards[number + 1 : number + 2]
                coming = ahead.submit(self._fetched, rest[0]) if rest else None
                try:
                    yield from self._samples(path)
                finally:
                    path.unlink(missing_ok=True)

    def _fetched(self, shard: ShardInfo) -> Path:
        path = self._scratch / shard.name.replace("/", "-")
        self._fetch(shard.name, path)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        if digest.hexdigest() != shard.sha256:
            path.unlink()
            raise damaged(path, "its checksum is not the manifest's")
        return path

    def _samples(self, path: Path) -> Iterator[Sample]:
        if self._random is None:
            yield from read_tar(path)
            return
        samples = list(read_tar(path))
        self._random.shuffle(samples)
        yield from samples


def read_tar(path: Path) -> Iterator[Sample]:
    """Every sample of a shard, in order, without its index. Raises `StorageError` for a damaged tar."""
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                contents[suffix] = content.read()
                if suffix == _MEMBERS[-1]:
                    yield decode_sample(key, *(contents[name] for name in _MEMBERS))
                    contents = {}
    except (tarfile.TarError, OSError, KeyError, ValueError) as error:
        raise damaged(path, str(error)) from None
