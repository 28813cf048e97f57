"""What `prepare` knows about each product between reading it and packing it, on disk, not in memory.

    work/cache/prepare/records-3.bin    one fixed-size record a product, of the last finished run
    work/cache/prepare/spool-3.bin      caption, fields and picture of what is new or changed
    work/cache/prepare/spooled-3.bin    the records of the spool, so that a killed run goes on

Records are mapped, not loaded: 323 bytes a product, looked at a column at a time. A record is written
after its payload, and a payload is checked when it is read, so a torn tail costs its products a
second decode and nothing else.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from furnclip.journal import replacing
from furnclip.prepare.fingerprint import COLOUR_BYTES, HASH_BYTES

VERSION = 3  # raise it when a record has another layout, or the same picture file would give other bytes
Records = np.ndarray[Any, np.dtype[np.void]]

RECORD = np.dtype(
    [
        ("row", "<i8"),  # in the catalogue, from 1
        ("key", "<u8"),  # of the product id
        ("stat", "<u8"),  # of the picture files' names, sizes and times, and of the picture settings
        ("text", "<u8"),  # of the id, title and fields
        ("content", "<u8"),  # of text and picture as they go into the shard
        ("group", "<u8"),  # of the group column; 0: none
        ("title", "<u8"),  # of the normalised title; 0: none
        ("stratum", "<u8"),  # of the object type
        ("source", "<u8", (2,)),  # of the picture file's bytes
        ("hash", "u1", (HASH_BYTES,)),
        ("colours", "u1", (COLOUR_BYTES,)),
        ("look", "<u8"),  # of hash and colours
        ("sample_bytes", "<u4"),  # about what the sample takes in a shard
        ("crc32", "<u4"),  # of the payload
        ("offset", "<i8"),  # of the payload in `spool.bin`; -1: the sample is in a shard
        ("payload_bytes", "<i8"),
    ]
)
_PACKED = struct.Struct(f"<q7Q16s{HASH_BYTES}s{COLOUR_BYTES}sQ2I2q")
_LENGTHS = struct.Struct("<3I")
IN_SHARD = -1
_CHUNK_ROWS = 2**16


@dataclass(frozen=True)
class SpoolPlace:
    """Where a payload lies in the spool."""

    offset: int
    payload_bytes: int
    crc32: int


@dataclass(frozen=True)
class Entry:
    """One record as Python values, in the order of `RECORD`."""

    row: int
    key: int
    stat: int
    text: int
    content: int
    group: int
    title: int
    stratum: int
    source: bytes
    hash: bytes
    colours: bytes
    look: int
    sample_bytes: int
    crc32: int = 0
    offset: int = IN_SHARD
    payload_bytes: int = 0

    @property
    def place(self) -> SpoolPlace:
        return SpoolPlace(self.offset, self.payload_bytes, self.crc32)

    def pack(self) -> bytes:
        """The bytes of one `RECORD`."""
        return _PACKED.pack(*vars(self).values())


def cache_file(folder: Path, name: str) -> Path:
    """A file of the cache; one of another layout has another name."""
    return folder / f"{name}-{VERSION}.bin"


def entry_of(record: Any) -> Entry:
    """The record (one row of `RECORD`) as Python values."""
    values: list[Any] = [
        record[name].tobytes() if RECORD[name].shape else int(record[name]) for name in RECORD.names or ()
    ]
    return Entry(*values)


def read_records(path: Path) -> Records:
    """All whole records of a file, mapped; empty where there is no file."""
    count = path.stat().st_size // RECORD.itemsize if path.is_file() else 0
    if not count:
        return np.empty(0, dtype=RECORD)
    return np.memmap(path, dtype=RECORD, mode="r", shape=(count,))


def write_settled(path: Path, records: Records) -> None:
    """Keep the records of a finished run, whose samples are all in shards."""
    before = read_records(path)
    if len(before) == len(records) and all(map(np.array_equal, _settled(records), _settled(before))):
        return
    with replacing(path) as file:
        for chunk in _settled(records):
            file.write(chunk.tobytes())


def _settled(records: Records) -> Iterator[Records]:
    for start in range(0, len(records), _CHUNK_ROWS):
        chunk = np.array(records[start : start + _CHUNK_ROWS])
        chunk["offset"], chunk["payload_bytes"], chunk["crc32"] = IN_SHARD, 0, 0
        yield chunk


class Spool:
    """Payloads and their records, appended; goes on where a killed run stopped."""

    def __init__(self, folder: Path) -> None:
        self.path = cache_file(folder, "spool")
        self.records_path = cache_file(folder, "spooled")
        self._files: tuple[IO[bytes], IO[bytes]] | None = None
        self._position = 0

    def __enter__(self) -> Spool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        payloads, records = self.path.open("ab"), self.records_path.open("ab")
        records.truncate(records.tell() // RECORD.itemsize * RECORD.itemsize)
        self._files = payloads, records
        self._position = payloads.tell()
        return self

    def __exit__(self, *_: object) -> None:
        if self._files:
            payloads, records = self._files
            self._files = None
            with payloads, records:  # both are closed, even if a full disk does not take what is left
                pass

    def append(self, entry: Entry, contents: tuple[bytes, bytes, bytes]) -> Entry:
        """Keep a sample's members; the entry that says where they are."""
        assert self._files is not None
        payloads, records = self._files
        data = _LENGTHS.pack(*map(len, contents)) + b"".join(contents)
        payloads.write(data)
        placed = dataclasses.replace(
            entry, offset=self._position, payload_bytes=len(data), crc32=zlib.crc32(data)
        )
        self._position += len(data)
        payloads.flush()  # before the record, which vouches for it
        records.write(placed.pack())
        return placed

    def clear(self) -> None:
        """Forget everything; the samples are in the shards now."""
        self.__exit__()
        self.path.unlink(missing_ok=True)
        self.records_path.unlink(missing_ok=True)


def read_payload(spool: Path, place: SpoolPlace) -> tuple[bytes, bytes, bytes] | None:
    """The members at a place, or None where they are not what was written."""
    with spool.open("rb") as file:
        file.seek(place.offset)
        data = file.read(place.payload_bytes)
    if len(data) < _LENGTHS.size or zlib.crc32(data) != place.crc32:
        return None
    first, second, third = _LENGTHS.unpack_from(data)
    start = _LENGTHS.size
    return (
        data[start : start + first],
        data[start + first : start + first + second],
        data[start + first + second : start + first + second + third],
    )
