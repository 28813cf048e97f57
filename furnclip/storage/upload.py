"""Folder to bucket.

The inventory is put first, saying "not complete"; then the files; then `manifest.json`; then the
inventory again, complete. Killed at any moment, the same call goes on: what is there already, by size
and SHA-256, is not sent again, and parts of large files that never became an object are thrown away.
One upload at a time may send to a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from furnclip import console
from furnclip.errors import InputError
from furnclip.storage.bucket import Bucket, Transfer
from furnclip.storage.inventory import (
    INVENTORY_NAME,
    Entry,
    Inventory,
    Stored,
    is_announcement,
    key_of,
    local_files,
    parse_inventory,
    sha256_of,
)


def send_dataset(bucket: Bucket, local: Path, prefix: str) -> Transfer:
    """Put every file of `local` under `prefix/`; what is there already stays."""
    names = local_files(local)
    if not names:
        raise InputError(f"there are no files to upload in `{local}`", hint="check the path")
    remote = bucket.listing(prefix)
    before = _inventory(bucket, prefix, remote)
    there = {name: remote[name] for name in names if name in remote}
    kept = _kept(bucket, local, prefix, there=there, known=before.files)
    to_send = [name for name in names if name not in kept]
    if not to_send and before.complete and before.files == kept:
        return Transfer(0, 0, len(kept))
    _announce(bucket, prefix, Inventory(complete=False, files=kept))
    bucket.abandon(key_of(prefix, ""), {key_of(prefix, name) for name in {*names, *before.files}})
    sent = _send(bucket, local, to_send, prefix)
    _announce(bucket, prefix, Inventory(complete=True, files=kept | sent))
    return Transfer(len(sent), sum(entry.size_bytes for entry in sent.values()), len(kept))


def send_file(bucket: Bucket, local: Path, key: str) -> Transfer:
    """Put one file under `key`, unless it is there already."""
    size_bytes = local.stat().st_size
    stored = bucket.head(key)
    if stored and stored.size_bytes == size_bytes and stored.sha256 == sha256_of(local):
        return Transfer(0, 0, 1)
    bucket.abandon(key, {key})
    with console.progress(f"uploading {local.name}", total=size_bytes, unit="bytes") as meter:
        bucket.send(local, key, meter.advance)
    return Transfer(1, size_bytes, 0)


def _inventory(bucket: Bucket, prefix: str, remote: dict[str, Stored]) -> Inventory:
    if INVENTORY_NAME not in remote:
        return Inventory(complete=False, files={})
    return parse_inventory(bucket.read(key_of(prefix, INVENTORY_NAME)), bucket.where(prefix))


def _kept(
    bucket: Bucket, local: Path, prefix: str, *, there: dict[str, Stored], known: dict[str, Entry]
) -> dict[str, Entry]:
    """The files that the bucket has with the same content."""
    with console.progress("comparing", total=len(there), unit="files") as meter:

        def same(name: str) -> Entry | None:
            meter.advance()
            if there[name].size_bytes != (local / name).stat().st_size:
                return None
            entry = known.get(name)
            if entry is None or entry.etag != there[name].etag:  # sent by an upload that did not end
                entry = bucket.head(key_of(prefix, name))
            return entry if entry and entry.sha256 == sha256_of(local / name) else None

        entries = bucket.side_by_side(same, list(there))
    return {name: entry for name, entry in zip(there, entries, strict=True) if entry}


def _send(bucket: Bucket, local: Path, names: Sequence[str], prefix: str) -> dict[str, Entry]:
    total_bytes = sum((local / name).stat().st_size for name in names)
    with console.progress(f"uploading to {bucket.where(prefix)}", total=total_bytes, unit="bytes") as meter:

        def send(name: str) -> tuple[str, Entry]:
            return name, bucket.send(local / name, key_of(prefix, name), meter.advance)

        sent = bucket.side_by_side(send, [name for name in names if not is_announcement(name)])
        sent += [send(name) for name in names if is_announcement(name)]
    return dict(sent)


def _announce(bucket: Bucket, prefix: str, inventory: Inventory) -> None:
    bucket.write(key_of(prefix, INVENTORY_NAME), inventory.as_bytes())
