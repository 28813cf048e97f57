"""What a dataset in the bucket consists of: `.furnclip-inventory.json`, written last.

It lists every file with its size, SHA-256 and the ETag under which the server keeps it. A download
starts from it and checks every file against it; an upload compares with it and sends what differs.
While an upload is running it says `"complete": false`, so that nobody takes half a dataset for one.

The SHA-256 says what was sent. The ETag says whether the object in the bucket is still the one that
was sent: it comes for free with a listing, whatever way the server computes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from furnclip.errors import StorageError

INVENTORY_NAME = ".furnclip-inventory.json"
# These announce that the folder they lie in is complete: sent and written after everything else.
ANNOUNCEMENTS = ("manifest.json", "run.json")
_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Entry:
    """One file of a dataset."""

    size_bytes: int
    sha256: str = ""
    """hex; empty: uploaded by another program, nobody knows"""
    etag: str = ""


@dataclass(frozen=True)
class Inventory:
    """The files of a dataset by their path under its prefix."""

    complete: bool
    files: dict[str, Entry]

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files.values())

    def as_bytes(self) -> bytes:
        """What `parse_inventory` reads."""
        return json.dumps(asdict(self)).encode("utf-8")


@dataclass(frozen=True)
class Stored:
    """An object as a listing shows it."""

    size_bytes: int
    etag: str


def key_of(prefix: str, name: str) -> str:
    """The key of a dataset's file."""
    return f"{prefix}/{name}" if prefix else name


def is_announcement(name: str) -> bool:
    """Whether this file says that the folder it lies in is complete."""
    return PurePosixPath(name).name in ANNOUNCEMENTS


def parse_inventory(content: bytes, where: str) -> Inventory:
    """The inventory in `content`, or `StorageError`: it comes from outside."""
    try:
        value = json.loads(content)
        files = {name: _entry(about) for name, about in value["files"].items()}
        return Inventory(value["complete"] is True, files)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise StorageError(
            f"`{where}/{INVENTORY_NAME}` cannot be read", hint="upload the dataset again"
        ) from None


def _entry(about: dict[str, Any]) -> Entry:
    """By hand: loading pydantic for three fields takes a sixth of the time of a small transfer."""
    entry = Entry(about["size_bytes"], about.get("sha256", ""), about.get("etag", ""))
    size_is_sound = type(entry.size_bytes) is int and entry.size_bytes >= 0
    if not (size_is_sound and isinstance(entry.sha256, str) and isinstance(entry.etag, str)):
        raise TypeError("not the entry of a file")
    return entry


def listed_inventory(listing: dict[str, Stored], manifest: object) -> Inventory:
    """An inventory for a dataset that another program uploaded.

    The SHA-256 of a file is taken from its `manifest.json` where that has it.
    """
    announced = dict(_announced(manifest))
    files = {
        name: Entry(size_bytes=stored.size_bytes, sha256=announced.get(name, ""), etag=stored.etag)
        for name, stored in listing.items()
    }
    return Inventory(complete=True, files=files)


def _announced(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every (path, SHA-256) in a manifest, as `{"name": .., "sha256": ..}` or `path: {"sha256": ..}`."""
    if isinstance(node, list):
        for item in node:
            yield from _announced(item)
    if isinstance(node, dict):
        path, digest = node.get("name", name), node.get("sha256")
        if isinstance(path, str) and isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest):
            yield path, digest
        for key, item in node.items():
            yield from _announced(item, key)


def local_files(folder: Path) -> list[str]:
    """Paths of a folder's files relative to it, sorted; hidden ones (parts, locks) are left out."""
    walk = os.walk(folder, followlinks=True)  # a folder on another disk is one of the dataset
    paths = (Path(parent, name) for parent, _, names in walk for name in names)
    names = (path.relative_to(folder) for path in paths if path.is_file())
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def inside(folder: Path, name: str) -> Path:
    """Where file `name` of a dataset goes; `StorageError` for a name that would leave the folder."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or re.search(r'[\\:*?"<>|\x00-\x1f]', name):
        raise StorageError(
            f"the dataset has a file named `{name}`, which cannot be written safely",
            hint="remove that object from the bucket",
        )
    return folder / path


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
