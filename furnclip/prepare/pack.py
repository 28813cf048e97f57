"""From assigned records to shards: which sample goes where, what is already there, what is written.

A shard holds a range of keys (a key is a hash of the product id, so the order is a fixed shuffle).
The ranges are halved until every shard is within the limits; thus a new product touches one shard,
and the same products give the same shards, whatever was there before.

New shards are staged under `work/cache/prepare/staged/` by the hash of their content and moved in
place together at the end; until then the earlier shards stay complete and readable.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from furnclip import console
from furnclip.catalogue import content_hash
from furnclip.errors import FurnclipError
from furnclip.journal import MANIFEST_NAME, move_file, sha256_of, sync_folder
from furnclip.parallel import Workers, cores, has_started
from furnclip.prepare.splits import LEDGER_NAME, UNDECIDED, Assignment, Ledger
from furnclip.prepare.store import Members, Records, read_samples
from furnclip.shards.manifest import (
    FOLDERS,
    MINI_TRAIN,
    REST,
    SPLITS,
    ShardInfo,
    SplitInfo,
    read_manifest,
)
from furnclip.shards.tar import (
    Sample,
    SampleRun,
    ShardAbout,
    WrittenShard,
    decode_sample,
    index_path,
    key_ranges,
    read_about,
    read_index,
    write_shard,
)

if TYPE_CHECKING:
    from furnclip.config import PrepConfig

_HERE_FIRST = 8  # shards; of those that a night changes most samples are taken over as they are
_FEW_SAMPLES = 500  # which are packed here sooner than by processes that are there
MOST_VALUES = 50  # of an attribute in the manifest; free text would make it megabytes


class SampleChange(NamedTuple):
    """How a sample goes into its shard otherwise than it is in the store."""

    dropped: tuple[int, ...] = ()  # numbers of images
    missing_reason: str = ""  # why it has no image


@dataclass(frozen=True)
class PlannedShard:
    """One shard to be. `content` is a hash of what its samples, in the order of their keys, hold."""

    name: str
    split: str
    content: str
    keys: np.ndarray  # (N,)
    contents: np.ndarray  # (N,) the hash of each sample
    groups: np.ndarray  # (N,)
    changes: dict[int, SampleChange]  # by key
    images: np.ndarray  # (N,) how many each sample has before changes
    earlier: ShardInfo | None = None  # what lies there now by this name

    def at(self, path: Path) -> ShardAbout | None:
        """What the index there says, if it is this shard, whole."""
        about = read_about(path)
        return about if about is not None and about.content == self.content else None

    def staged_in(self, folder: Path) -> Path:
        """Where it is written before it is moved in place."""
        return folder / f"{content_hash(self.name, self.content)}.tar"


def plan_shards(
    records: Records, assignment: Assignment, changes: Mapping[int, SampleChange], settings: PrepConfig
) -> list[PlannedShard]:
    """Every shard of every split, in order. records: by key. changes: by row."""
    rows_of = {split: np.flatnonzero(assignment.split == number) for number, split in enumerate(SPLITS)}
    rows_of[REST] = np.flatnonzero(assignment.split == UNDECIDED)
    rows_of[MINI_TRAIN] = _mini_train(records, rows_of["train"], settings.mini_train_samples)
    planned, is_changed = [], np.zeros(len(records), dtype=bool)
    is_changed[list(changes)] = True
    for split, rows in rows_of.items():
        if not len(rows):
            continue
        sizes = records["sample_bytes"][rows].astype(np.int64)
        most_bytes = settings.shard_mb * 10**6
        ranges = key_ranges(records["key"][rows], settings.shard_samples, sizes, most_bytes)
        for number, inside in enumerate(np.split(rows, ranges)):
            contents, groups = records["content"][inside], assignment.group[inside]
            changed = {int(records["key"][row]): changes[row] for row in inside[is_changed[inside]].tolist()}
            told = repr(sorted(changed.items())).encode() if changed else b""
            holds = contents.tobytes() + groups.tobytes() + told
            content = hashlib.blake2b(holds, digest_size=16).hexdigest()
            name = f"{split}/shard-{number:06d}.tar"
            keys = records["key"][inside]
            images = records["images"][inside]
            planned.append(PlannedShard(name, split, content, keys, contents, groups, changed, images))
    return planned


def _mini_train(records: Records, rows: np.ndarray, samples: int) -> np.ndarray:
    """A sample of the rows with the same share of every object type."""
    if len(rows) <= samples:
        return rows
    order = np.argsort(records["stratum"][rows], kind="stable")
    # of the rows sorted by type, every n-th: each type gets its share, rounded up or down
    return np.sort(rows[order[(np.arange(samples) * len(rows) + len(rows) // 2) // samples]])


def write_shards(
    planned: list[PlannedShard], folder: Path, *, staged: Path, store: Path, ledger: Ledger, processes: int
) -> dict[str, ShardAbout]:
    """Write and publish the shards that are not in `folder` already; what is said of those that were.

    planned: with what is there.
    """
    known = {shard.name: about for shard in planned if (about := shard.at(folder / shard.name))}
    changed = [shard for shard in planned if shard.name not in known]
    unwritten = [shard for shard in changed if not shard.at(shard.staged_in(staged))]  # by a killed run
    pack = partial(pack_shard, folder=folder, staged=staged, store=store)
    are_many = has_started() and sum(len(shard.keys) for shard in unwritten) > _FEW_SAMPLES
    here_first = 0 if are_many else _HERE_FIRST
    workers = Workers(pack, processes, here_first=here_first, setting="prepare.workers")
    write = partial(workers.map, name_of=attrgetter("name"), chunk_items=1)
    with (
        workers,
        ThreadPoolExecutor(processes or cores()) as here,  # most of the work lets others run
        console.progress("writing shards", total=len(unwritten), unit="shards") as meter,
    ):
        are_few = len(unwritten) <= here_first
        for _ in here.map(lambda shard: [*write([shard])], unwritten) if are_few else write(unwritten):
            meter.advance()
    wanted = {shard.name: folder / shard.name for shard in planned}
    written = {shard.name: shard.staged_in(staged) for shard in changed}
    paths = wanted | written
    # Splits are settled before a shard shows them, so that no later run can decide differently.
    extended = ledger.extended(
        (shard.split, read_index(paths[shard.name], samples=len(shard.keys)))
        for shard in planned
        if shard.split in SPLITS and (ledger.lookup(shard.keys)[0] == UNDECIDED).any()
    )
    if extended is not ledger:
        extended.write(folder / LEDGER_NAME)
    published = {path for split in FOLDERS for path in (folder / split).glob("shard-*.tar")}
    if changed or published != set(wanted.values()):
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        _publish(folder, written, gone=published - set(wanted.values()))
    return known


def with_earlier(planned: list[PlannedShard], folder: Path) -> list[PlannedShard]:
    """The shards, each with what the manifest in `folder` says of the one that it replaces."""
    there: dict[str, ShardInfo] = {}
    with suppress(FurnclipError):  # there is no manifest, or a damaged one
        for split in read_manifest(folder).splits.values():
            there.update({info.name: info for info in split.shards})
    return [replace(shard, earlier=there.get(shard.name)) for shard in planned]


def pack_shard(shard: PlannedShard, *, folder: Path, staged: Path, store: Path) -> None:
    """Write one shard aside: samples that are as they were from the one in `folder`, others from the store.

    Runs in a worker process.
    """
    earlier = shard.earlier or ShardInfo(shard.name, "", 0, 0, "", 0)
    written = WrittenShard(folder / shard.name, earlier.sha256, earlier.index_sha256)
    same = written.places(shard.keys, shard.contents, shard.groups, shard.images)
    same[np.isin(shard.keys, list(shard.changes))] = -1
    columns = (shard.keys, shard.contents, shard.groups)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    others = ((key, content) for (key, content, _), place in zip(rows, same, strict=True) if place < 0)
    first = np.append(0, np.flatnonzero((np.diff(same) != 1) | (same[1:] < 1)) + 1)  # of each run, or alone
    counts = np.diff(np.append(first, len(same)))
    with closing(read_samples(store, others)) as members:

        def samples() -> Iterator[tuple[str, Sample] | SampleRun]:
            for row, count in zip(first.tolist(), counts.tolist(), strict=True):
                if same[row] >= 0:
                    yield written.run(int(same[row]), count)
                else:
                    key, content, group = rows[row]
                    change = shard.changes.get(key, SampleChange())
                    yield f"{content:016x}", _sample(key, group, next(members), change)

        write_shard(shard.staged_in(staged), samples(), content=shard.content)


def _sample(key: int, group: int, members: Members, change: SampleChange) -> Sample:
    images = (image for number, image in enumerate(members.images) if number not in change.dropped)
    main, *more = *images, b""
    about = decode_sample(f"{key:016x}", {"json": members.json, "txt": members.caption})
    return replace(
        about,
        group=f"{group:016x}",
        image_bytes=main,
        more_images=tuple(more[:-1]),
        missing_reason=change.missing_reason,
    )


def _publish(folder: Path, written: dict[str, Path], *, gone: set[Path]) -> None:
    """Move written shards (name -> path) in place, and remove those that are no longer planned."""
    for name, path in written.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        index_path(target).unlink(missing_ok=True)  # it must never lie beside another tar
        move_file(path, target)
        move_file(index_path(path), index_path(target))
    for path in gone:
        index_path(path).unlink(missing_ok=True)
        path.unlink()
    for split in FOLDERS:
        if (folder / split).is_dir():
            sync_folder(folder / split)


def describe_split(folder: Path, shards: list[PlannedShard], known: Mapping[str, ShardAbout]) -> SplitInfo:
    """What the manifest says about a split whose shards are in place; `known` of those that were there."""
    infos = []
    counts: dict[str, Counter[str]] = {}
    for shard in shards:
        about = known.get(shard.name) or read_about(folder / shard.name)
        assert about is not None
        index = index_path(folder / shard.name)
        info = ShardInfo(shard.name, about.sha256, about.bytes, about.samples, "", index.stat().st_size)
        is_as_told = shard.earlier and info == replace(shard.earlier, index_sha256="")
        if shard.earlier and is_as_told and shard.name in known:
            infos.append(shard.earlier)
        else:
            infos.append(replace(info, index_sha256=sha256_of(index)))
        for name, values in about.attributes.items():
            counts.setdefault(name, Counter()).update(values)
    attributes = {
        name: dict(sorted(values.items(), key=lambda item: (-item[1], item[0]))[:MOST_VALUES])
        for name, values in counts.items()
    }
    groups = np.sort(np.concatenate([np.empty(0, np.uint64), *(shard.groups for shard in shards)]))
    count = len(groups[:1]) + int((groups[1:] != groups[:-1]).sum())
    return SplitInfo(sum(info.samples for info in infos), count, tuple(infos), attributes)
