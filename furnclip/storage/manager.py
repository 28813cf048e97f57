"""`S3Manager`: datasets and checkpoints between this machine and a bucket.

`.furnclip-inventory.json` lists the files with their sizes and SHA-256, the one list of checksums: a
download starts from it and checks every file against it. While an upload is running it says
`"complete": false`, so that nobody takes half a dataset for one.

Up: the inventory, not complete; the files; what announces them; the inventory again, complete. Each
object carries its SHA-256 as well, so the same call goes on where it was killed: what is there already
is not sent again, and parts of large files that never became an object are thrown away. One upload at a
time may send to a prefix.

Down: inventory and manifest are read first; what announces an older dataset in the folder is taken
away; then come the files, each checked and flushed to the disk; the manifest gets its name last. A
partial download is therefore never taken for a dataset, and the same call goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from furnclip import console, journal
from furnclip.errors import ConfigError, InputError, StorageError
from furnclip.storage.bucket import Bucket, Entry, Transfer, key_of, sha256_of
from furnclip.storage.failures import explained

if TYPE_CHECKING:
    from furnclip.config import StorageConfig  # a quarter of the time to import this package

INVENTORY_NAME = ".furnclip-inventory.json"
# These announce that the folder they lie in is complete: sent and written after everything else.
_ANNOUNCEMENTS = ("manifest.json", "run.json")
_FLUSHERS = 4  # the disk writes while the next files are on their way


@dataclass(frozen=True)
class Inventory:
    """The files of a dataset by their path under its prefix."""

    complete: bool
    files: dict[str, Entry]


class S3Manager:
    """Moves datasets and checkpoints to and from one bucket.

    `endpoint_url`: for MinIO, R2 and other servers that speak S3; empty for Amazon.
    `timeout_s`: seconds without data after which a request is retried.
    Credentials are found by boto3: environment, `~/.aws`, instance role and so on.
    """

    def __init__(
        self,
        bucket: str,
        *,
        endpoint_url: str = "",
        region: str = "",
        concurrency: int = 8,
        timeout_s: float = 60,
    ) -> None:
        name = bucket.removeprefix("s3://").strip("/")
        if not name or "/" in name:
            raise ConfigError(
                f"`{bucket}` is not a valid bucket name" if bucket else "no bucket is set",
                hint="pass `--s3-bucket NAME` or set `storage.bucket`; the rest of the path is the prefix",
            )
        self.bucket = Bucket(
            name, endpoint_url=endpoint_url, region=region, concurrency=concurrency, timeout_s=timeout_s
        )

    @classmethod
    def from_config(cls, storage: StorageConfig) -> S3Manager:
        """A manager for the bucket of the `[storage]` section."""
        names = {"endpoint_url", "region", "concurrency", "timeout_s"}
        return cls(storage.bucket, **storage.model_dump(include=names))

    def __enter__(self) -> S3Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.bucket.close()

    def check(self) -> None:
        """Raise `StorageError` unless the bucket can be reached and listed with these credentials."""
        self.bucket.check()

    def probe(self, prefix: str) -> None:
        """Raise `StorageError` unless an object can be put under `prefix/`, read and deleted again."""
        self.bucket.probe(key_of(prefix.strip("/"), f".furnclip-probe-{secrets.token_hex(4)}"))

    def upload_dataset(self, local: Path | str, prefix: str) -> Transfer:
        """Put every file of folder `local` under `prefix/`, what announces it last.

        Files that are there already with the same content are left alone.
        """
        bucket, local, prefix = self.bucket, Path(local), prefix.strip("/")
        names = _local_files(local)
        if not names:
            raise InputError(f"there are no files to upload in `{local}`", hint="check the path")
        inventory_key = key_of(prefix, INVENTORY_NAME)
        remote = bucket.listing(prefix)
        before = Inventory(complete=False, files={})
        if INVENTORY_NAME in remote:
            before = _parse_inventory(bucket.read(inventory_key), bucket.where(prefix))
        kept = _kept(bucket, local, prefix, {name: remote[name] for name in names if name in remote})
        to_send = [name for name in names if name not in kept]
        if not to_send and before == Inventory(complete=True, files=kept):
            return Transfer(0, 0, len(kept))
        _write_inventory(bucket, inventory_key, Inventory(complete=False, files=kept))
        bucket.abandon(key_of(prefix, ""), {key_of(prefix, name) for name in {*names, *before.files}})
        total_bytes = sum((local / name).stat().st_size for name in to_send)
        with console.progress(
            f"uploading to {bucket.where(prefix)}", total=total_bytes, unit="bytes"
        ) as meter:

            def send(name: str) -> tuple[str, Entry]:
                return name, bucket.send(local / name, key_of(prefix, name), meter.advance)

            sent = dict(bucket.side_by_side(send, [name for name in to_send if not _is_announcement(name)]))
            sent |= dict(send(name) for name in to_send if _is_announcement(name))
        _write_inventory(bucket, inventory_key, Inventory(complete=True, files=kept | sent))
        return Transfer(len(sent), sum(entry.size_bytes for entry in sent.values()), len(kept))

    def download_dataset(self, prefix: str, local: Path | str) -> Transfer:
        """Write every file under `prefix/` into folder `local`, checked, what announces it last.

        Files that are there already with the same content are left alone; others are not touched.
        """
        bucket, local, prefix = self.bucket, Path(local), prefix.strip("/")
        files = _remote_files(bucket, prefix)
        targets = {name: _inside(local, name) for name in files}
        with console.progress("comparing", total=len(files), unit="files") as meter:

            def is_missing(name: str) -> bool:
                meter.advance()
                return not _is_same(targets[name], files[name])

            missing = dict(zip(files, bucket.side_by_side(is_missing, list(files)), strict=True))
        if not any(missing.values()):
            return Transfer(0, 0, len(files))
        # The announcements come again even if they are the same: until the rest is there, they must go.
        wanted = {name: files[name] for name in files if missing[name] or _is_announcement(name)}
        sent_bytes = sum(entry.size_bytes for entry in wanted.values())
        _check_space(local, sent_bytes)
        _fetch(bucket, prefix, wanted, targets)
        return Transfer(len(wanted), sent_bytes, len(files) - len(wanted))

    def upload_checkpoint(self, local: Path | str, key: str) -> Transfer:
        """Put a file under `key`, or a folder under `key/`."""
        bucket, local, key = self.bucket, Path(local), key.strip("/")
        if local.is_dir():
            return self.upload_dataset(local, key)
        if not local.is_file():
            raise InputError(f"there is no checkpoint `{local}`", hint="check the path")
        size_bytes = local.stat().st_size
        stored = bucket.head(key)
        if stored and stored.size_bytes == size_bytes and stored.sha256 == sha256_of(local):
            return Transfer(0, 0, 1)
        bucket.abandon(key, {key})
        with console.progress(f"uploading {local.name}", total=size_bytes, unit="bytes") as meter:
            bucket.send(local, key, meter.advance)
        return Transfer(1, size_bytes, 0)

    def download_checkpoint(self, key: str, local: Path | str) -> Transfer:
        """Write the object `key` to the file `local`, or the folder `key/` to the folder `local`."""
        bucket, target, key = self.bucket, Path(local), key.strip("/")
        stored = bucket.head(key)
        if stored is None:
            return self.download_dataset(key, local)
        if _is_same(target, stored):
            return Transfer(0, 0, 1)
        _check_space(target.parent, stored.size_bytes)
        with console.progress(f"downloading {target.name}", total=stored.size_bytes, unit="bytes") as meter:
            bucket.fetch(key, stored, target, meter.advance)
        _flush(target)
        journal.sync_folder(target.parent)
        return Transfer(1, stored.size_bytes, 0)


def _kept(bucket: Bucket, local: Path, prefix: str, there: dict[str, Entry]) -> dict[str, Entry]:
    """The files that the bucket has with the same content."""
    with console.progress("comparing", total=len(there), unit="files") as meter:

        def same(name: str) -> Entry | None:
            meter.advance()
            if there[name].size_bytes != (local / name).stat().st_size:
                return None
            stored = bucket.head(key_of(prefix, name))
            if stored is None or stored.sha256 != sha256_of(local / name):
                return None
            return Entry(stored.size_bytes, stored.sha256)

        entries = bucket.side_by_side(same, list(there))
    return {name: entry for name, entry in zip(there, entries, strict=True) if entry}


def _fetch(bucket: Bucket, prefix: str, wanted: dict[str, Entry], targets: dict[str, Path]) -> None:
    """Download files to their targets; announcements are read first and written last."""
    announcements = {
        targets[name]: bucket.read(key_of(prefix, name), entry)
        for name, entry in wanted.items()
        if _is_announcement(name)
    }
    for target in announcements:
        target.unlink(missing_ok=True)
    names = [name for name in wanted if targets[name] not in announcements]
    total_bytes = sum(wanted[name].size_bytes for name in names)
    flushes: list[Future[None]] = []
    with (
        console.progress(f"downloading {bucket.where(prefix)}", total=total_bytes, unit="bytes") as meter,
        ThreadPoolExecutor(_FLUSHERS, thread_name_prefix="furnclip-flush") as flusher,
    ):

        def fetch(name: str) -> None:
            bucket.fetch(key_of(prefix, name), wanted[name], targets[name], meter.advance)
            flushes.append(flusher.submit(_flush, targets[name]))

        bucket.side_by_side(fetch, names)
    for flush in flushes:
        flush.result()
    for folder in {targets[name].parent for name in names}:
        journal.sync_folder(folder)
    for target, content in announcements.items():
        journal.write_bytes(target, content)


def _remote_files(bucket: Bucket, prefix: str) -> dict[str, Entry]:
    """What there is to download; `StorageError` when there is nothing, or only half of it."""
    content = bucket.find(key_of(prefix, INVENTORY_NAME))
    if content is not None:
        inventory = _parse_inventory(content, bucket.where(prefix))
        if not inventory.complete:
            raise StorageError(
                f"the upload to `{bucket.where(prefix)}` has not ended",
                hint="wait for it, or run the upload again: it goes on where it stopped",
            )
        files = inventory.files
    else:  # another program uploaded it; what its manifest says of checksums counts
        files = bucket.listing(prefix)
        manifest = bucket.read(key_of(prefix, "manifest.json")) if "manifest.json" in files else b"{}"
        try:
            digests = dict(_checksums(json.loads(manifest)))
        except (ValueError, RecursionError):
            digests = {}  # not ours; its reader will say what is wrong with it
        files = {name: Entry(e.size_bytes, digests.get(name, ""), e.etag) for name, e in files.items()}
    if not files:
        raise StorageError(
            f"there is nothing at `{bucket.where(prefix)}`",
            hint="check the bucket and the prefix, or upload first: `furnclip prepare --upload` for shards",
        )
    return files


def _checksums(node: Any) -> Iterator[tuple[str, str]]:
    """Every (path, SHA-256) in a manifest."""
    if isinstance(node, dict):
        path, digest = node.get("name"), node.get("sha256")
        if isinstance(path, str) and isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest):
            yield path, digest
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _checksums(item)


def _write_inventory(bucket: Bucket, key: str, inventory: Inventory) -> None:
    files = {
        name: {"size_bytes": entry.size_bytes, "sha256": entry.sha256}
        for name, entry in inventory.files.items()
    }
    bucket.write(key, json.dumps({"complete": inventory.complete, "files": files}).encode("utf-8"))


def _parse_inventory(content: bytes, where: str) -> Inventory:
    """The inventory in `content`, or `StorageError`: it comes from outside.

    By hand: loading pydantic for three fields takes a sixth of the time of a small transfer.
    """
    try:
        value = json.loads(content)
        files = {
            name: Entry(about["size_bytes"], about.get("sha256", ""))
            for name, about in value["files"].items()
        }
        for entry in files.values():
            if type(entry.size_bytes) is not int or entry.size_bytes < 0 or not isinstance(entry.sha256, str):
                raise TypeError("not the entry of a file")
        return Inventory(value["complete"] is True, files)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise StorageError(
            f"`{where}/{INVENTORY_NAME}` cannot be read", hint="upload the dataset again"
        ) from None


def _is_announcement(name: str) -> bool:
    return PurePosixPath(name).name in _ANNOUNCEMENTS


def _local_files(folder: Path) -> list[str]:
    """Paths of a folder's files relative to it, sorted; hidden ones (parts, locks) are left out."""
    walk = os.walk(folder, followlinks=True)  # a folder on another disk is one of the dataset
    paths = (Path(parent, name) for parent, _, names in walk for name in names)
    names = (path.relative_to(folder) for path in paths if path.is_file())
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def _inside(folder: Path, name: str) -> Path:
    """Where file `name` of a dataset goes; `StorageError` for a name that would leave the folder."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or re.search(r'[\\:*?"<>|\x00-\x1f]', name):
        raise StorageError(
            f"the dataset has a file named `{name}`, which cannot be written safely",
            hint="remove that object from the bucket",
        )
    return folder / path


def _is_same(path: Path, entry: Entry) -> bool:
    """Whether a file has the content of an entry; by its MD5 where only the ETag is known."""
    if not path.is_file() or path.stat().st_size != entry.size_bytes:
        return False
    if entry.sha256:
        return sha256_of(path) == entry.sha256
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == entry.etag


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
