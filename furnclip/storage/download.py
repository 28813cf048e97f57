"""Bucket to folder.

Inventory and manifest are read first; what announces an older dataset in the folder is taken away; then
come the files, each checked against its SHA-256 and flushed to the disk; the manifest gets its name
last. A partial download is therefore never taken for a dataset, and the same call goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from furnclip import console, journal
from furnclip.errors import StorageError
from furnclip.storage.bucket import Bucket, Transfer
from furnclip.storage.failures import explained
from furnclip.storage.inventory import (
    INVENTORY_NAME,
    Entry,
    Inventory,
    inside,
    is_announcement,
    key_of,
    listed_inventory,
    parse_inventory,
    sha256_of,
)

_FLUSHERS = 4  # the disk writes while the next files are on their way


def fetch_dataset(bucket: Bucket, prefix: str, local: Path) -> Transfer:
    """Write every file under `prefix/` into `local`; what is there already stays."""
    files = _dataset(bucket, prefix).files
    targets = {name: inside(local, name) for name in files}
    missing = _missing(bucket, files, targets)
    if not missing:
        return Transfer(0, 0, len(files))
    # The announcements come again even if they are the same: until the rest is there, they must go.
    wanted = {name: target for name, target in targets.items() if name in missing or is_announcement(name)}
    sent_bytes = sum(files[name].size_bytes for name in wanted)
    _check_space(local, sent_bytes)
    _fetch(bucket, prefix, files, wanted)
    return Transfer(len(wanted), sent_bytes, len(files) - len(wanted))


def _missing(bucket: Bucket, files: dict[str, Entry], targets: dict[str, Path]) -> set[str]:
    """The files that are not there yet, or differ."""
    with console.progress("comparing", total=len(files), unit="files") as meter:

        def is_missing(name: str) -> bool:
            meter.advance()
            return not _is_same(targets[name], files[name])

        answers = bucket.side_by_side(is_missing, list(files))
    return {name for name, missing in zip(files, answers, strict=True) if missing}


def fetch_file(bucket: Bucket, key: str, stored: Entry, target: Path) -> Transfer:
    """Write one object to `target`, unless it is there already."""
    if _is_same(target, stored):
        return Transfer(0, 0, 1)
    _check_space(target.parent, stored.size_bytes)
    with console.progress(f"downloading {target.name}", total=stored.size_bytes, unit="bytes") as meter:
        bucket.fetch(key, stored, target, meter.advance)
    _flush(target)
    journal.sync_folder(target.parent)
    return Transfer(1, stored.size_bytes, 0)


def _dataset(bucket: Bucket, prefix: str) -> Inventory:
    """What there is to download; `StorageError` when there is nothing, or only half of it."""
    content = bucket.find(key_of(prefix, INVENTORY_NAME))
    if content is None:
        return _listed(bucket, prefix)
    inventory = parse_inventory(content, bucket.where(prefix))
    if inventory.complete and not inventory.files:
        raise _nothing_there(bucket, prefix)
    if not inventory.complete:
        raise StorageError(
            f"the upload to `{bucket.where(prefix)}` has not ended",
            hint="wait for it, or run the upload again: it goes on where it stopped",
        )
    return inventory


def _listed(bucket: Bucket, prefix: str) -> Inventory:
    """A dataset that another program uploaded."""
    listing = bucket.listing(prefix)
    if not listing:
        raise _nothing_there(bucket, prefix)
    manifest = bucket.read(key_of(prefix, "manifest.json")) if "manifest.json" in listing else b""
    return listed_inventory(listing, _parsed(manifest))


def _nothing_there(bucket: Bucket, prefix: str) -> StorageError:
    return StorageError(
        f"there is nothing at `{bucket.where(prefix)}`",
        hint="check the bucket and the prefix, or upload first: `furnclip prepare --upload` for shards",
    )


def _parsed(manifest: bytes) -> object:
    try:
        return json.loads(manifest)
    except (ValueError, RecursionError):
        return None  # not ours; its room will say what it thinks of it


def _is_same(path: Path, entry: Entry) -> bool:
    """Whether a file has the content of an entry; by its MD5 where only the ETag is known."""
    if not path.is_file() or path.stat().st_size != entry.size_bytes:
        return False
    if entry.sha256:
        return sha256_of(path) == entry.sha256
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == entry.etag


def _fetch(bucket: Bucket, prefix: str, files: dict[str, Entry], wanted: dict[str, Path]) -> None:
    """Download `wanted` (name -> target); announcements are read first and written last."""
    announcements = {
        target: bucket.read(key_of(prefix, name), files[name])
        for name, target in wanted.items()
        if is_announcement(name)
    }
    for target in announcements:
        target.unlink(missing_ok=True)
    names = [name for name, target in wanted.items() if target not in announcements]
    total_bytes = sum(files[name].size_bytes for name in names)
    flushes: list[Future[None]] = []
    with (
        console.progress(f"downloading {bucket.where(prefix)}", total=total_bytes, unit="bytes") as meter,
        ThreadPoolExecutor(_FLUSHERS, thread_name_prefix="furnclip-flush") as flusher,
    ):

        def fetch(name: str) -> None:
            bucket.fetch(key_of(prefix, name), files[name], wanted[name], meter.advance)
            flushes.append(flusher.submit(_flush, wanted[name]))

        bucket.side_by_side(fetch, names)
    for flush in flushes:
        flush.result()
    for folder in {wanted[name].parent for name in names}:
        journal.sync_folder(folder)
    for target, content in announcements.items():
        journal.write_bytes(target, content)


def _flush(path: Path) -> None:
    with explained(path.name), path.open("rb+") as file:  # a full disk may say so only here
        os.fsync(file.fileno())


def _check_space(folder: Path, needed_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise StorageError(
            f"`{folder}` has {free_bytes / 1e6:,.0f} MB free, {needed_bytes / 1e6:,.0f} MB are needed",
            hint="free some space, or choose another disk with `paths.work`",
        )
