"""From assigned records to shards: which sample goes where, what is already there, what is written.

A shard holds a range of keys (a key is a hash of the product id, so the order is a fixed shuffle).
The ranges are halved until every shard is within the limits; thus a new product touches one shard,
and the same products give the same shards, whatever was there before.

New shards are staged under `work/cache/prepare/staged/` by the hash of their content and moved in
place together at the end; until then the earlier shards stay complete and readable.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow

from furnclip.catalogue import content_hash
from furnclip.journal import move_file, sync_folder
from furnclip.prepare.groups import Assignment
from furnclip.prepare.store import Records, read_samples
from furnclip.shards.manifest import MINI_TRAIN, SPLITS, ShardInfo, SplitInfo
from furnclip.shards.tar import (
    Sample,
    ShardAbout,
    decode_sample,
    index_path,
    read_about,
    read_index,
    write_shard,
)

if TYPE_CHECKING:
    from furnclip.config import PrepConfig

MOST_VALUES = 50  # of an attribute in the manifest; free text would make it megabytes


@dataclass(frozen=True)
class PlannedShard:
    """One shard to be: its name, the rows in it by key, and a hash of what they hold."""

    name: str
    split: str
    rows: np.ndarray
    content: str


def plan_shards(records: Records, assignment: Assignment, settings: PrepConfig) -> list[PlannedShard]:
    """Every shard of every split, in order."""
    planned = []
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(assignment.split == number)
        planned += _shards_of(split, rows[np.argsort(records["key"][rows])], records, assignment, settings)
    rows = mini_train_rows(records, assignment, settings.mini_train_samples)
    return planned + _shards_of(MINI_TRAIN, rows, records, assignment, settings)


def _shards_of(
    split: str, rows: np.ndarray, records: Records, assignment: Assignment, settings: PrepConfig
) -> list[PlannedShard]:
    keys = records["key"][rows]
    sizes = records["sample_bytes"][rows].astype(np.int64)
    shards = _shard_numbers(keys, sizes, settings.shard_samples, settings.shard_mb * 10**6)
    planned = []
    for number, start, end in _runs(shards):
        inside = rows[start:end]
        digest = hashlib.blake2b(digest_size=16)
        for column in (records["content"][inside], assignment.group[inside]):
            digest.update(np.ascontiguousarray(column).tobytes())
        planned.append(PlannedShard(f"{split}/shard-{number:06d}.tar", split, inside, digest.hexdigest()))
    return planned


def _shard_numbers(keys: np.ndarray, sizes: np.ndarray, most_samples: int, most_bytes: int) -> np.ndarray:
    """The shard of each of the sorted keys: the fewest halvings of the key space within the limits."""
    for halvings in range(64):
        shards = (
            (keys >> np.uint64(64 - halvings)).astype(np.int64) if halvings else np.zeros(len(keys), np.int64)
        )
        if not len(keys):
            return shards
        samples = np.bincount(shards - shards[0])
        size = np.bincount(shards - shards[0], weights=sizes)
        if samples.max() <= most_samples and (size.max() <= most_bytes or samples.max() == 1):
            break
    return np.unique(shards, return_inverse=True)[1]


def _runs(numbers: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each run of equal numbers."""
    if not len(numbers):
        return
    starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)], strict=True):
        yield int(numbers[start]), start, end


def mini_train_rows(records: Records, assignment: Assignment, samples: int) -> np.ndarray:
    """A sample of the train split with the same share of every object type, by key."""
    rows = np.flatnonzero(assignment.split == 0)
    if len(rows) > samples:
        order = np.lexsort((records["key"][rows], records["stratum"][rows]))
        # of the rows sorted by type, every n-th: each type gets its share, rounded up or down
        picks = (np.arange(samples) * len(rows) + len(rows) // 2) // samples
        rows = rows[order[picks]]
    return rows[np.argsort(records["key"][rows])]


@dataclass(frozen=True)
class PackTask:
    """All that a worker process needs to write one shard: (key, content) and group of each sample."""

    path: Path
    content: str
    store: Path
    samples: list[tuple[int, int]]
    groups: list[int]


def pack_shard(task: PackTask) -> None:
    """Write one shard. Runs in a worker process."""
    write_shard(task.path, _samples(task), content=task.content)


def _samples(task: PackTask) -> Iterator[tuple[str, Sample]]:
    samples = read_samples(task.store, task.samples)
    for (key, content), group, members in zip(task.samples, task.groups, samples, strict=True):
        sample = decode_sample(f"{key:016x}", *members)
        yield f"{content:016x}", dataclasses.replace(sample, group=f"{group:016x}")


@dataclass(frozen=True)
class Packer:
    """Writes planned shards aside and puts them in place."""

    shards: Path
    staged: Path
    records: Records
    assignment: Assignment
    store: Path

    def missing(self, planned: list[PlannedShard]) -> list[PlannedShard]:
        """Those that are not in place already."""
        return [shard for shard in planned if not _is_whole(self.shards / shard.name, shard.content)]

    def task(self, shard: PlannedShard) -> PackTask | None:
        """How to write the shard aside; None where a killed run already did."""
        path = self.where_staged(shard)
        if _is_whole(path, shard.content):
            return None
        records = self.records[shard.rows]
        samples = list(zip(records["key"].tolist(), records["content"].tolist(), strict=True))
        groups = self.assignment.group[shard.rows].tolist()
        return PackTask(path, shard.content, self.store, samples, groups)

    def where_staged(self, shard: PlannedShard) -> Path:
        """Where the shard is written before it is put in place."""
        return self.staged / f"{content_hash(shard.name, shard.content)}.tar"

    def index(self, shard: PlannedShard) -> pyarrow.Table:
        """The index of a shard, in place or still staged."""
        published = self.shards / shard.name
        path = published if _is_whole(published, shard.content) else self.where_staged(shard)
        return read_index(path, samples=len(shard.rows))

    def publish(self, planned: list[PlannedShard], changed: list[PlannedShard]) -> None:
        """Move staged shards in place and remove those that are no longer planned."""
        for shard in changed:
            target, staged = self.shards / shard.name, self.where_staged(shard)
            target.parent.mkdir(parents=True, exist_ok=True)
            index_path(target).unlink(missing_ok=True)  # it must never lie beside another tar
            move_file(staged, target)
            move_file(index_path(staged), index_path(target))
        wanted = {self.shards / shard.name for shard in planned}
        for path in published_shards(self.shards):
            if path not in wanted:
                index_path(path).unlink(missing_ok=True)
                path.unlink()
        for split in (*SPLITS, MINI_TRAIN):
            if (self.shards / split).is_dir():
                sync_folder(self.shards / split)


def published_shards(folder: Path) -> list[Path]:
    """Every shard file under a folder of splits."""
    return sorted(path for split in (*SPLITS, MINI_TRAIN) for path in (folder / split).glob("shard-*.tar"))


def _is_whole(path: Path, content: str) -> bool:
    about = read_about(path)
    return about is not None and about.content == content


def describe_split(
    folder: Path, split: str, planned: list[PlannedShard], assignment: Assignment
) -> SplitInfo:
    """What the manifest says about a split whose shards are in place."""
    shards, attributes = [], {}
    counts: dict[str, Counter[str]] = {}
    groups: set[int] = set()
    for shard in planned:
        if shard.split != split:
            continue
        about = read_about(folder / shard.name)
        assert about is not None
        shards.append(_shard_info(folder, shard.name, about))
        groups.update(assignment.group[shard.rows].tolist())
        for name, values in about.attributes.items():
            counts.setdefault(name, Counter()).update(values)
    attributes = {name: _most_common(values) for name, values in counts.items()}
    samples = sum(shard.samples for shard in shards)
    return SplitInfo(samples, len(groups), tuple(shards), attributes)


def _most_common(counts: Counter[str]) -> dict[str, int]:
    """The commonest values."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(ordered[:MOST_VALUES])


def _shard_info(folder: Path, name: str, about: ShardAbout) -> ShardInfo:
    index = index_path(folder / name).read_bytes()
    return ShardInfo(
        name=name,
        sha256=about.sha256,
        bytes=about.bytes,
        samples=about.samples,
        index_sha256=hashlib.sha256(index).hexdigest(),
        index_bytes=len(index),
    )
