"""Where the shards lie: a folder of this machine, or the bucket that another machine sent them to.

From a bucket each file comes once, when it is first needed, into `work/cache/shards/`, named by its content.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from furnclip import console
from furnclip.catalogue import content_hash
from furnclip.errors import MissingStageError, UsageError
from furnclip.journal import MANIFEST_NAME, exclusive, sweep
from furnclip.shards.manifest import Manifest, ShardInfo, parse_manifest, read_manifest
from furnclip.shards.tar import index_path, read_piece

if TYPE_CHECKING:
    from furnclip.config import Config, StorageConfig
    from furnclip.storage import S3Manager

_KEPT_S = 7 * 86400  # shards that the bucket no longer names: a training may still be reading them


@dataclass(frozen=True)
class ShardFolder:
    """Shards of this machine."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    @cached_property
    def manifest(self) -> Manifest:
        """As it was when it was first asked for."""
        return read_manifest(self.folder)

    def whole(self, shard: ShardInfo) -> Path:
        """A shard that can be read."""
        return self.folder / shard.name

    def indexed(self, shard: ShardInfo) -> Path:
        """The place of a shard whose index can be read."""
        return self.folder / shard.name

    def piece(self, shard: ShardInfo, start: int, size_bytes: int) -> bytes:
        """Some bytes of a shard."""
        return read_piece(self.whole(shard), start, size_bytes)

    def bring(self, shards: Iterable[ShardInfo], *, whole: bool = True) -> None:
        """Have these shards, or their indexes, here before they are read."""


@dataclass(frozen=True)
class BucketShards:
    """Shards of a bucket, and the folder that they come to."""

    storage: StorageConfig
    cache: Path

    def __str__(self) -> str:
        return f"s3://{self.storage.bucket}/{self.storage.shards}"

    @cached_property
    def manifest(self) -> Manifest:
        """As it was when it was first asked for."""
        from furnclip.storage import S3Manager  # boto3 is slow to import, and most shops have a folder

        with S3Manager.from_config(self.storage) as manager:
            content = manager.find(self._key(MANIFEST_NAME))
        if content is None:
            raise MissingStageError(f"{self}/{MANIFEST_NAME}", command="furnclip prepare --upload")
        manifest = parse_manifest(content, f"{self}/{MANIFEST_NAME}")
        self._forget_old(manifest)
        return manifest

    def whole(self, shard: ShardInfo) -> Path:
        """A shard that can be read; it comes now, if it has not yet."""
        path = self.indexed(shard)
        self._fetch({path: shard}, lambda _: None)
        return path

    def indexed(self, shard: ShardInfo) -> Path:
        """The place of a shard whose index can be read."""
        path = self._path(shard)
        self._fetch({index_path(path): shard}, lambda _: None)
        return path

    def piece(self, shard: ShardInfo, start: int, size_bytes: int) -> bytes:
        """Some bytes of a shard, which does not come for them."""
        path = self._path(shard)
        if not self._missing({path: shard}):
            return read_piece(path, start, size_bytes)
        return self._manager.piece(self._key(shard.name), start, size_bytes)

    def bring(self, shards: Iterable[ShardInfo], *, whole: bool = True) -> None:
        """Have these shards, or their indexes, here before they are read, several at once."""
        paths = {self._path(shard): shard for shard in shards}
        wanted = {index_path(path): shard for path, shard in paths.items()} | (paths if whole else {})
        missing = self._missing(wanted)
        if not missing:
            return
        total_bytes = sum(_bytes(path, shard) for path, shard in missing.items())
        with console.progress(f"downloading {self}", total=total_bytes, unit="bytes") as meter:
            self._fetch(missing, meter.advance)

    def _fetch(self, wanted: dict[Path, ShardInfo], report: Callable[[int], None]) -> None:
        """Bring the files that are not here. One process or thread at a time: none comes twice."""
        if not self._missing(wanted):
            return
        from furnclip.storage import S3Manager, require_room
        from furnclip.storage.bucket import S3File

        with exclusive(self.cache, wait_s=-1):
            missing = self._missing(wanted)
            require_room(self.cache, sum(_bytes(path, shard) for path, shard in missing.items()))
            with S3Manager.from_config(self.storage) as manager:

                def fetch(path: Path) -> None:
                    shard = missing[path]
                    name, digest = shard.name, shard.sha256
                    if path.suffix == ".parquet":
                        name, digest = index_path(Path(name)).as_posix(), shard.index_sha256
                    manager.fetch(self._key(name), S3File(_bytes(path, shard), digest), path, report)

                manager.side_by_side(fetch, missing)

    def _missing(self, wanted: dict[Path, ShardInfo]) -> dict[Path, ShardInfo]:
        """Those that are not here; by their size, so that what a power cut left is none."""
        missing = {}
        for path, shard in wanted.items():
            with suppress(FileNotFoundError):
                if path.stat().st_size == _bytes(path, shard):
                    continue
            missing[path] = shard
        return missing

    @cached_property
    def _manager(self) -> S3Manager:
        """For pieces, of which many are read one by one."""
        from furnclip.storage import S3Manager

        return S3Manager.from_config(self.storage)

    def _path(self, shard: ShardInfo) -> Path:
        return self.cache / f"{content_hash(shard.sha256, shard.index_sha256)}.tar"

    def _key(self, name: str) -> str:
        return f"{self.storage.shards}/{name}"

    def _forget_old(self, manifest: Manifest) -> None:
        """Remove what the bucket no longer has, a week after it was last begun with."""
        sweep(self.cache)
        named = {self._path(shard) for split in manifest.splits.values() for shard in split.shards}
        for path in self.cache.glob("*.*"):
            with suppress(OSError):
                if path.with_suffix(".tar") in named:
                    os.utime(path)
                elif path.stat().st_mtime < time.time() - _KEPT_S:
                    path.unlink()


ShardPlace = ShardFolder | BucketShards


def open_shards(config: Config) -> ShardPlace:
    """The shards of `paths.work`; where `prepare` never ran and a bucket is set, those in the bucket."""
    if config.paths.shards.exists() or not config.storage.bucket:
        return ShardFolder(config.paths.shards)
    return BucketShards(config.storage, config.paths.cache / "shards")


def split_shards(place: ShardPlace, split: str) -> tuple[ShardInfo, ...]:
    """The shards of a split. Raises `UsageError` where there is no such split."""
    splits = place.manifest.splits
    if split not in splits:
        raise UsageError(f"there is no split `{split}` in `{place}`", hint=f"one of: {', '.join(splits)}")
    return splits[split].shards


def _bytes(path: Path, shard: ShardInfo) -> int:
    return shard.index_bytes if path.suffix == ".parquet" else shard.bytes
