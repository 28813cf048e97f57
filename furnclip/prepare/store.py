"""What `prepare` knows about each product between reading it and packing it: one SQLite file.

    work/cache/prepare/samples-4.sqlite

It holds the sample of every product (square image, fields, caption) and what identifies its image, so a
product whose image file did not change is never decoded again, and shards are written from it. It is a
cache: where it is deleted or damaged, everything is decoded again.
"""

from __future__ import annotations

import dataclasses
import errno
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from furnclip.catalogue import content_hash
from furnclip.errors import StorageError
from furnclip.prepare.fingerprint import COLOR_BYTES, HASH_BYTES

VERSION = 4  # raise it when an entry has other fields, or the same image file would give other bytes
Records = np.ndarray[Any, np.dtype[np.void]]
Members = tuple[bytes, bytes, bytes]  # image, JSON, caption
_COMMIT_AFTER_S = 1.0
_TIES = ["key", "title", "group", "look", "source"]


@dataclass(frozen=True, kw_only=True)
class SampleEntry:
    """One product. Numbers are hashes of 64 bits, 0 for none; defaults stand until the image is decoded."""

    row: int  # in the catalogue, from 1
    key: int  # of the product id
    stat: int  # of the image files' names, sizes and times, and of the image settings
    text: int  # of the id, title and fields
    content: int = 0  # of text and image as they go into the shard
    group: int  # of the group column
    title: int  # of the normalized title
    stratum: int  # of the object type
    source: bytes = bytes(16)  # of the image file's bytes
    hash: bytes = bytes(HASH_BYTES)  # of what the image shows
    colors: bytes = bytes(COLOR_BYTES)
    look: int = 0  # of hash and colors
    sample_bytes: int = 0  # about what the sample takes in a shard


_SIZES = {"source": 16, "hash": HASH_BYTES, "colors": COLOR_BYTES}
_NAMES = [field.name for field in fields(SampleEntry)]
_PACKED = np.dtype([(name, f"V{_SIZES[name]}" if name in _SIZES else "<u8") for name in _NAMES])
# the same bytes, for computing with
RECORD = np.dtype([(name, "u1", _SIZES[name]) if name in _SIZES else (name, "<u8") for name in _NAMES])


def records_of(entries: Iterable[SampleEntry]) -> Records:
    """Entries as the rows of one array."""
    return np.array([tuple(vars(entry).values()) for entry in entries], dtype=_PACKED).view(RECORD)


class SampleStore:
    """The samples of all products; what is added is on the disk a second later at the latest."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"samples-{VERSION}.sqlite"
        self._committed = time.monotonic()

    def __enter__(self) -> SampleStore:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if _is_full(error):
                raise
            self.path.unlink()  # not a database, or one that is damaged: it was a cache
            self._open()
        return self

    def _open(self) -> None:
        self._database = sqlite3.connect(self.path)
        self._database.executescript(
            "PRAGMA synchronous = NORMAL;"
            "CREATE TABLE IF NOT EXISTS samples"
            " (key BLOB PRIMARY KEY, entry BLOB, image BLOB, json BLOB, caption BLOB);"
            "CREATE TABLE IF NOT EXISTS finished (id INTEGER PRIMARY KEY, ties BLOB)"
        )

    def __exit__(self, *_: object) -> None:
        with closing(self._database):
            self.commit()

    def find(self, wanted: SampleEntry) -> SampleEntry | None:
        """The product's entry from an earlier run, if its image is the same; row, group and title are new."""
        query = "SELECT entry FROM samples WHERE key = ?"
        row = self._database.execute(query, (_blob(wanted.key),)).fetchone()
        if row is None:
            return None
        known = SampleEntry(**dict(zip(_NAMES, np.frombuffer(row[0], _PACKED)[0].item(), strict=True)))
        if known.stat != wanted.stat:
            return None
        new = {name: getattr(wanted, name) for name in ("row", "group", "title", "stratum")}
        return dataclasses.replace(known, **new)

    def add(self, entry: SampleEntry, members: Members) -> None:
        """Keep a sample and what identifies it."""
        values = (_blob(entry.key), records_of([entry]).tobytes(), *members)
        self._database.execute("INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?)", values)
        if time.monotonic() - self._committed > _COMMIT_AFTER_S:
            self.commit()

    def commit(self) -> None:
        """Write what was added to the disk, where worker processes see it."""
        self._database.commit()
        self._committed = time.monotonic()

    def members(self, key: int) -> Members:
        """The sample of a product that `find` or `add` knows."""
        return _members(self._database, key)

    def changed(self, records: Records) -> np.ndarray:
        """Rows whose image, title or group differ from those of the last finished run: (N,)."""
        row = self._database.execute("SELECT ties FROM finished").fetchone()
        now = _ties(records)
        before = np.frombuffer(row[0] if row else b"", now.dtype)
        if not len(before):
            return np.zeros(len(records), dtype=bool)
        position = np.minimum(np.searchsorted(before["key"], now["key"]), len(before) - 1)
        return np.asarray((before["key"][position] == now["key"]) & (before[position] != now))

    def finish(self, records: Records) -> None:
        """Note that the shards hold these products, and forget all others."""
        known = {key for (key,) in self._database.execute("SELECT key FROM samples")}
        gone = known.difference(map(_blob, records["key"].tolist()))
        self._database.executemany("DELETE FROM samples WHERE key = ?", [(key,) for key in gone])
        ties = np.sort(_ties(records), order="key").tobytes()
        if self._database.execute("SELECT 1 FROM finished WHERE ties = ?", (ties,)).fetchone() is None:
            self._database.execute("INSERT OR REPLACE INTO finished VALUES (0, ?)", (ties,))
        self.commit()


def read_samples(path: Path, wanted: Iterable[tuple[int, int]]) -> Iterator[Members]:
    """The samples of (key, content) in a store, from a worker process. Raises `StorageError` for damage."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        for key, content in wanted:
            members = _members(database, key)
            if int(content_hash(*members), 16) != content:
                raise _damaged(path, f"the sample of {key:016x} has changed")
            yield members


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """What SQLite raises, as the error of the system or a `StorageError` about the file."""
    try:
        yield
    except sqlite3.Error as error:
        if _is_full(error):
            raise OSError(errno.ENOSPC, "no space left on device", str(path)) from None
        raise _damaged(path, str(error)) from None


def _is_full(error: sqlite3.Error) -> bool:
    return "disk is full" in str(error)


def _damaged(path: Path, detail: str) -> StorageError:
    return StorageError(f"`{path}` is damaged: {detail}", hint="run `furnclip prepare --rebuild`")


def _members(database: sqlite3.Connection, key: int) -> Members:
    query = "SELECT image, json, caption FROM samples WHERE key = ?"
    image, json, caption = database.execute(query, (_blob(key),)).fetchone()
    return image, json, caption


def _ties(records: Records) -> np.ndarray:
    """What the last finished run is compared with, as plain bytes: (N,)."""
    packed = np.empty(len(records), dtype=[(name, _PACKED[name]) for name in _TIES])
    for name in _TIES:
        packed[name] = records.view(_PACKED)[name]
    return packed


def _blob(key: int) -> bytes:
    return key.to_bytes(8, "big")
