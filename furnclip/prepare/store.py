"""What `prepare` knows about each product between reading it and packing it: one SQLite file.

    work/cache/prepare/samples-6.sqlite

It holds the sample of every product (square images, fields, caption) and what identifies its images, so a
product whose image files did not change is never decoded again, and shards are written from it. It is a
cache: where it is deleted or damaged, everything is decoded again.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import sqlite3
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from furnclip.catalogue import content_hash
from furnclip.errors import StorageError
from furnclip.prepare.fingerprint import PRINT_BYTES
from furnclip.sources import FoundImage

VERSION = 6  # raise it when an entry has other fields, or the same image file would give other bytes
_COMMIT_AFTER_S = 1.0


class Records(Protocol):
    """Rows in columns: an array of several fields, or one that is read column by column."""

    def __len__(self) -> int: ...

    def __getitem__(self, name: str, /) -> np.ndarray: ...


class Members(NamedTuple):
    """A product as it goes into a shard: JPEGs, JSON and caption."""

    images: tuple[bytes, ...]
    json: bytes
    caption: bytes

    @property
    def content(self) -> int:
        """A hash of all of it."""
        return int(content_hash(*self.images, self.json, self.caption), 16)


class ImageProblem(NamedTuple):
    """An image of a product that is not used; `reason` is a short stable word for counting."""

    image: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class ImageEntry:
    """What identifies one image of a product."""

    source: bytes  # of the image file's bytes
    fingerprint: bytes  # of what the image shows
    look: int  # a hash of the fingerprint
    jpeg_bytes: int


@dataclass(frozen=True, kw_only=True)
class SampleEntry:
    """One product. Numbers are hashes of 64 bits, 0 for none; defaults stand until its images are decoded."""

    row: int  # in the catalogue, from 1
    key: int  # of the product id
    stat: int  # of the image files' names, sizes and times, and of the image settings
    text: int  # of the id, title and fields
    content: int = 0  # of text and images as they go into the shard
    group: int  # of the group column
    title: int  # of the normalized title
    stratum: int  # of the object type
    look: int = 0  # of all images
    sample_bytes: int = 0  # about what the sample takes in a shard


@dataclass(frozen=True)
class Scanned:
    """A product's entry, its images and those that cannot be used."""

    entry: SampleEntry
    images: tuple[ImageEntry, ...] = ()
    problems: tuple[ImageProblem, ...] = ()
    described: bool = True  # whether there is anything to say about it
    product_id: str = ""
    found: tuple[FoundImage, ...] = ()
    addresses: tuple[str, ...] = ()  # hashes of the web addresses that the images are of, or empty
    is_as_named: bool = False  # whether all its images are there, by the very names that the row has
    cells: Mapping[str, str] = field(default_factory=dict)  # of the shop's own columns

    @property
    def why_in_no_split(self) -> ImageProblem | None:
        """Why it can be searched for but neither trained nor measured on."""
        if not self.images:
            return self.problems[0]
        return None if self.described else ImageProblem("", "no-text", "neither title nor attributes")


_SIZES = {"source": 16, "fingerprint": PRINT_BYTES}


def _packed(names: Iterable[str]) -> np.dtype[np.void]:
    return np.dtype([(name, f"V{_SIZES[name]}" if name in _SIZES else "<u8") for name in names])


def _computable(packed: np.dtype[np.void]) -> np.dtype[np.void]:
    """The same bytes, for computing with."""
    names = packed.names or ()
    return np.dtype([(name, "u1", _SIZES[name]) if name in _SIZES else (name, "<u8") for name in names])


_NAMES = [each.name for each in fields(SampleEntry)]
_IMAGE_NAMES = [each.name for each in fields(ImageEntry)]
_PACKED, _PACKED_IMAGE = _packed(_NAMES), _packed(_IMAGE_NAMES)
RECORD, IMAGE = _computable(_PACKED), _computable(_PACKED_IMAGE)


def records_of(entries: Iterable[SampleEntry]) -> np.ndarray:
    """Entries as the rows of one array."""
    return np.array([tuple(vars(entry).values()) for entry in entries], dtype=_PACKED).view(RECORD)


def images_of(entries: Iterable[ImageEntry]) -> np.ndarray:
    """Images as the rows of one array."""
    return np.array([tuple(vars(entry).values()) for entry in entries], dtype=_PACKED_IMAGE).view(IMAGE)


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
            "PRAGMA page_size = 16384;"  # a sample takes about as much
            "PRAGMA synchronous = NORMAL;"
            "CREATE TABLE IF NOT EXISTS samples"
            " (key BLOB PRIMARY KEY, entry BLOB, looks BLOB, problems TEXT,"
            " images BLOB, json BLOB, caption BLOB);"
            "DROP TABLE IF EXISTS finished;"
            "CREATE TABLE IF NOT EXISTS about (id INTEGER PRIMARY KEY, name BLOB);"
            "INSERT OR IGNORE INTO about VALUES (0, randomblob(8))"
        )
        (self.name,) = self._database.execute("SELECT hex(name) FROM about").fetchone()

    def __exit__(self, *_: object) -> None:
        with closing(self._database):
            self.commit()

    def find(self, wanted: SampleEntry) -> Scanned | None:
        """The product from an earlier run, if its image files are the same; row, group and title are new."""
        query = "SELECT entry, looks, problems FROM samples WHERE key = ?"
        row = self._database.execute(query, (_blob(wanted.key),)).fetchone()
        if row is None:
            return None
        known = SampleEntry(**dict(zip(_NAMES, np.frombuffer(row[0], _PACKED)[0].item(), strict=True)))
        if known.stat != wanted.stat:
            return None
        new = {name: getattr(wanted, name) for name in ("row", "group", "title", "stratum")}
        images = (dict(zip(_IMAGE_NAMES, image, strict=True)) for image in _looks(row[1]).tolist())
        return Scanned(
            dataclasses.replace(known, **new),
            tuple(ImageEntry(**image) for image in images),
            tuple(ImageProblem(*problem) for problem in json.loads(row[2])),
        )

    def add(self, sample: Scanned, members: Members) -> None:
        """Keep a sample and what identifies it."""
        entry = sample.entry
        values = (
            _blob(entry.key),
            records_of([entry]).tobytes(),
            images_of(sample.images).tobytes(),
            json.dumps(sample.problems),
            b"".join(members.images),
            members.json,
            members.caption,
        )
        self._database.execute("INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        if time.monotonic() - self._committed > _COMMIT_AFTER_S:
            self.commit()

    def commit(self) -> None:
        """Write what was added to the disk, where worker processes see it."""
        self._database.commit()
        self._committed = time.monotonic()

    def members(self, key: int) -> Members:
        """The sample of a product that `find` or `add` knows."""
        return _members(self._database, key)

    def forget(self, keys: np.ndarray) -> None:
        """Remove the samples of products that are gone."""
        self._database.executemany(
            "DELETE FROM samples WHERE key = ?", [(_blob(key),) for key in keys.tolist()]
        )
        self.commit()

    def keys(self) -> np.ndarray:
        """Of all samples: (N,), ascending."""
        found = b"".join(key for (key,) in self._database.execute("SELECT key FROM samples ORDER BY key"))
        return np.frombuffer(found, ">u8").astype(np.uint64)

    def text(self, key: int) -> int | None:
        """The hash of a sample's text; None where there is no such sample."""
        row = self._database.execute("SELECT entry FROM samples WHERE key = ?", (_blob(key),)).fetchone()
        return row and int(np.frombuffer(row[0], _PACKED)[0]["text"])


def read_samples(path: Path, wanted: Iterable[tuple[int, int]]) -> Generator[Members]:
    """The samples of (key, content) in a store, from a worker process. Raises `StorageError` for damage."""
    address = f"{path.absolute().as_uri()}?mode=ro"
    with store_errors(path), closing(sqlite3.connect(address, uri=True)) as database:
        for key, content in wanted:
            try:
                members = _members(database, key)
            except TypeError:  # there is none
                members = Members((), b"", b"")
            if members.content != content:
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
    query = "SELECT looks, images, json, caption FROM samples WHERE key = ?"
    looks, images, about, caption = database.execute(query, (_blob(key),)).fetchone()
    ends = accumulate(_looks(looks)["jpeg_bytes"].tolist(), initial=0)
    return Members(tuple(images[start:end] for start, end in pairwise(ends)), about, caption)


def _looks(blob: bytes) -> np.ndarray:
    return np.frombuffer(blob, _PACKED_IMAGE)


def _blob(key: int) -> bytes:
    return key.to_bytes(8, "big")
