"""The S3 bucket, or anything that speaks its language: datasets and checkpoints there and back.

    manager = S3Manager("my-bucket")                   # or S3Manager.from_config(config.storage)
    manager.upload_dataset("work/shards", "furnclip/shards")
    manager.download_dataset("furnclip/shards", "work/shards")

`.furnclip-inventory.json` lists the files with their sizes and SHA-256, and says `"complete": false` while an
upload is running. Up: the inventory, not complete; the files; what announces them; the inventory, complete.
Down: inventory and manifest are read first; an older manifest in the folder is taken away; the files come,
each checked and flushed; the manifest gets its name last. A killed transfer continues by the same call.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from furnclip import console, journal
from furnclip.errors import InputError, StorageError
from furnclip.storage.bucket import Bucket, S3File, Transfer, explained, key_of

if TYPE_CHECKING:
    from furnclip.config import StorageConfig  # a quarter of the time to import this package

INVENTORY_NAME = ".furnclip-inventory.json"
_ANNOUNCEMENTS = (journal.MANIFEST_NAME, journal.CARD_NAME)  # sent and written after everything else


class S3Manager(Bucket):
    """Moves datasets and checkpoints to and from one bucket."""

    @classmethod
    def from_config(cls, storage: StorageConfig) -> S3Manager:
        """A manager for the bucket of the `[storage]` section."""
        names = {"endpoint_url", "region", "concurrency", "timeout_s"}
        return cls(storage.bucket, **storage.model_dump(include=names))

    def upload_dataset(self, local: Path | str, prefix: str) -> Transfer:
        """Put every file of folder `local` under `prefix/`, what announces it last.

        Files that are there already with the same content are left alone.
        """
        local, prefix = Path(local), prefix.strip("/")
        names = _local_files(local)
        if not names:
            raise InputError(f"there are no files to upload in `{local}`", hint="check the path")
        remote = self.listing(prefix)
        inventory = self._inventory(prefix) if INVENTORY_NAME in remote else None
        was_complete, before = inventory or (False, {})
        same = self._same(local, prefix, {name: remote[name] for name in names if name in remote})
        digests = self.side_by_side(lambda name: journal.sha256_of(local / name), same)
        kept = {name: S3File(remote[name].size_bytes, digest) for name, digest in digests.items()}
        to_send = [name for name in names if name not in kept]
        if not to_send and was_complete and before == kept:
            return Transfer(0, 0, len(kept))
        self._write_inventory(prefix, kept, complete=False)
        self.abandon(key_of(prefix, ""), {key_of(prefix, name) for name in {*names, *before}})
        total_bytes = sum((local / name).stat().st_size for name in to_send)
        with console.progress(f"uploading to {self.where(prefix)}", total=total_bytes, unit="bytes") as meter:

            def send(name: str) -> S3File:
                return self.send(local / name, key_of(prefix, name), meter.advance)

            sent = self.side_by_side(send, [name for name in to_send if not _is_announcement(name)])
            sent |= {name: send(name) for name in to_send if _is_announcement(name)}
        self._write_inventory(prefix, kept | sent, complete=True)
        return Transfer(len(sent), sum(entry.size_bytes for entry in sent.values()), len(kept))

    def download_dataset(self, prefix: str, local: Path | str) -> Transfer:
        """Write every file under `prefix/` into folder `local`, checked, what announces it last.

        Files that are there already with the same content are left alone; others are not touched.
        """
        local, prefix = Path(local), prefix.strip("/")
        files = self._remote_files(prefix)
        targets = {name: _inside(local, name) for name in files}
        missing = files.keys() - self._same(local, prefix, files)
        if not missing:
            return Transfer(0, 0, len(files))
        # The announcements come again even if they are the same: until the rest is there, they must go.
        wanted = {name: files[name] for name in files if name in missing or _is_announcement(name)}
        sent_bytes = self._fetch(prefix, wanted, local, targets)
        return Transfer(len(wanted), sent_bytes, len(files) - len(wanted))

    def upload_checkpoint(self, local: Path | str, key: str) -> Transfer:
        """Put a file under `key`, or a folder under `key/`."""
        local, key = Path(local), key.strip("/")
        if local.is_dir():
            return self.upload_dataset(local, key)
        if not local.is_file():
            raise InputError(f"there is no checkpoint `{local}`", hint="check the path")
        size_bytes = local.stat().st_size
        stored = self.head(key)
        if stored and _is_same(local, stored):
            return Transfer(0, 0, 1)
        self.abandon(key, {key})
        with console.progress(f"uploading {local.name}", total=size_bytes, unit="bytes") as meter:
            self.send(local, key, meter.advance)
        return Transfer(1, size_bytes, 0)

    def download_checkpoint(self, key: str, local: Path | str) -> Transfer:
        """Write the object `key` to the file `local`, or the folder `key/` to the folder `local`."""
        target, key = Path(local), key.strip("/")
        stored = self.head(key)
        if stored is None:
            return self.download_dataset(key, local)
        if _is_same(target, stored):
            return Transfer(0, 0, 1)
        prefix, _, name = key.rpartition("/")
        return Transfer(1, self._fetch(prefix, {name: stored}, target.parent, {name: target}), 0)

    def _same(self, local: Path, prefix: str, files: dict[str, S3File]) -> list[str]:
        """The files that folder `local` has with the same content as the bucket."""
        with console.progress("comparing", total=len(files), unit="files") as meter:

            def is_same(name: str) -> bool:
                meter.advance()
                path, entry = local / name, files[name]
                if _is_same(path, entry):
                    return True
                if entry.sha256 or not path.is_file():
                    return False
                # Of an object that came in parts, or is encrypted, the ETag is not the MD5.
                sent = self.head(key_of(prefix, name))
                return sent is not None and _is_same(path, sent)

            return [name for name, same in self.side_by_side(is_same, files).items() if same]

    def _fetch(self, prefix: str, wanted: dict[str, S3File], folder: Path, targets: dict[str, Path]) -> int:
        """Download files to their targets; announcements are read first and written last. The bytes sent."""
        needed_bytes = sum(entry.size_bytes for entry in wanted.values())
        require_room(folder, needed_bytes)
        announcements = {
            targets[name]: self.read(key_of(prefix, name), entry)
            for name, entry in wanted.items()
            if _is_announcement(name)
        }
        for target in announcements:
            target.unlink(missing_ok=True)
        names = [name for name in wanted if targets[name] not in announcements]
        total_bytes = sum(wanted[name].size_bytes for name in names)
        with console.progress(f"downloading {self.where(prefix)}", total=total_bytes, unit="bytes") as meter:

            def fetch(name: str) -> None:
                self.fetch(key_of(prefix, name), wanted[name], targets[name], meter.advance)
                with explained(name), targets[name].open("rb+") as file:  # a full disk may say so only here
                    os.fsync(file.fileno())

            self.side_by_side(fetch, names)
        for parent in {targets[name].parent for name in names}:
            journal.sync_folder(parent)
        for target, content in announcements.items():
            journal.write_bytes(target, content)
        return needed_bytes

    def _remote_files(self, prefix: str) -> dict[str, S3File]:
        """What there is to download; `StorageError` when there is nothing, or only half of it."""
        inventory = self._inventory(prefix)
        if inventory is not None:
            is_complete, files = inventory
            if not is_complete:
                raise StorageError(
                    f"the upload to `{self.where(prefix)}` has not ended",
                    hint="wait for it, or run the upload again: it continues where it stopped",
                )
        else:  # another program uploaded it; what its manifest says of checksums counts
            files = self.listing(prefix)
            name = journal.MANIFEST_NAME
            manifest = self.read(key_of(prefix, name)) if name in files else b"{}"
            try:
                digests = dict(_checksums(json.loads(manifest)))
            except (ValueError, RecursionError):
                digests = {}  # not ours; its reader will say what is wrong with it
            files = {name: replace(entry, sha256=digests.get(name, "")) for name, entry in files.items()}
        if not files:
            raise StorageError(
                f"there is nothing at `{self.where(prefix)}`",
                hint="check the bucket and the prefix, or upload first: `furnclip prepare --upload` for "
                "shards",
            )
        return files

    def _inventory(self, prefix: str) -> tuple[bool, dict[str, S3File]] | None:
        """(whether all of it is there, the files) of the inventory under a prefix, None without one.

        Raises `StorageError` for a damaged one. Checked by hand: pydantic is slow to load for three fields.
        """
        content = self.find(key_of(prefix, INVENTORY_NAME))
        if content is None:
            return None
        try:
            value = json.loads(content)
            files = {
                name: S3File(about["size_bytes"], about.get("sha256", ""))
                for name, about in value["files"].items()
            }
            for entry in files.values():
                is_size = type(entry.size_bytes) is int and entry.size_bytes >= 0
                if not is_size or not isinstance(entry.sha256, str):
                    raise TypeError("not the entry of a file")
            return value["complete"] is True, files
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise StorageError(
                f"`{self.where(prefix)}/{INVENTORY_NAME}` cannot be read", hint="upload the dataset again"
            ) from None

    def _write_inventory(self, prefix: str, files: dict[str, S3File], *, complete: bool) -> None:
        facts = {
            name: {"size_bytes": entry.size_bytes, "sha256": entry.sha256} for name, entry in files.items()
        }
        content = json.dumps({"complete": complete, "files": facts})
        self.write(key_of(prefix, INVENTORY_NAME), content.encode("utf-8"))


def require_room(folder: Path, needed_bytes: int) -> None:
    """Raise `StorageError` unless the disk of `folder`, which is made, has that much room."""
    folder.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise StorageError(
            f"`{folder}` has {free_bytes / 1e6:,.0f} MB free, {needed_bytes / 1e6:,.0f} MB are needed",
            hint="free some space, or choose another disk with `paths.work`",
        )


def _checksums(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every (path, SHA-256) in a manifest, as `{"name": .., "sha256": ..}` or `path: {"sha256": ..}`."""
    if isinstance(node, list):
        for item in node:
            yield from _checksums(item)
    if isinstance(node, dict):
        path, digest = node.get("name", name), node.get("sha256")
        if isinstance(path, str) and isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest):
            yield path, digest
        for key, item in node.items():
            yield from _checksums(item, key)


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


def _is_same(path: Path, entry: S3File) -> bool:
    """Whether a file has the content of an entry; by its MD5 where only the ETag is known."""
    if not path.is_file() or path.stat().st_size != entry.size_bytes:
        return False
    if entry.sha256:
        return journal.sha256_of(path) == entry.sha256
    if "-" in entry.etag:  # of several parts
        return False
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == entry.etag
