"""What earlier runs left: records of known products, and where their samples lie.

A sample is found again in a published shard, in a shard that a killed run had staged, or in the
spool. Whatever is not found, or not as it was written, is decoded again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from furnclip.prepare.spool import IN_SHARD, Entry, Records, entry_of, read_payload, read_records
from furnclip.shards.tar import Place, read_about, read_index, read_place

_PLACES = np.dtype(
    [
        ("content", "<u8"),
        ("shard", "<i4"),
        ("row", "<i4"),
        ("offset", "<i8"),
        ("sizes", "<i4", (3,)),
        ("crc32", "<u4"),
    ]
)


class Shelf:
    """Every sample in whole shards on this disk, by its content hash."""

    def __init__(self, shards: list[Path]) -> None:
        self._shards = shards
        tables = [_places(number, shard) for number, shard in enumerate(shards)]
        places = np.concatenate([np.empty(0, _PLACES), *tables])
        self._places = places[np.argsort(places["content"], kind="stable")]

    def row_of(self, content: int) -> int | None:
        """A handle for `read`, or None where no shard has that sample."""
        row = int(np.searchsorted(self._places["content"], np.uint64(content)))
        if row < len(self._places) and int(self._places["content"][row]) == content:
            return row
        return None

    def read(self, row: int) -> tuple[bytes, bytes, bytes]:
        """The members of a sample. Raises `StorageError` where the shard has changed."""
        place = self._places[row]
        jpg_bytes, json_bytes, txt_bytes = (int(size) for size in place["sizes"])
        found = Place("", int(place["offset"]), jpg_bytes, json_bytes, txt_bytes, int(place["crc32"]))
        return read_place(self._shards[int(place["shard"])], found)


def _places(number: int, shard: Path) -> np.ndarray:
    if read_about(shard) is None:
        return np.empty(0, _PLACES)
    index = read_index(shard)
    places = np.zeros(index.num_rows, _PLACES)
    places["content"] = [int(content, 16) for content in index["content"].to_pylist()]
    places["shard"] = number
    places["row"] = np.arange(index.num_rows)
    for name in ("offset", "crc32"):
        places[name] = index[name].to_numpy()
    for column, name in enumerate(("jpg_bytes", "json_bytes", "txt_bytes")):
        places["sizes"][:, column] = index[name].to_numpy()
    return places


class Earlier:
    """Records of earlier runs, the newest of each product."""

    def __init__(self, records: list[Records], shelf: Shelf, spool: Path) -> None:
        self._records = records
        self._shelf = shelf
        self._spool = spool
        keys = np.concatenate([np.empty(0, np.uint64), *(part["key"] for part in records)])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._starts = np.cumsum([0, *(len(part) for part in records)])

    @classmethod
    def load(cls, cache: Path, shelf: Shelf) -> Earlier:
        """From the files in `cache`; a spool that lost its payloads is no use."""
        spool = cache / "spool.bin"
        spooled = read_records(cache / "spooled.bin") if spool.is_file() else read_records(Path())
        return cls([read_records(cache / "records.bin"), spooled], shelf, spool)

    def find(self, wanted: Entry) -> Entry | None:
        """The product's entry from an earlier run, if its picture is the same and still at hand.

        Row, group and title are those of `wanted`.
        """
        record = self.record(wanted.key)
        if record is None or int(record["stat"]) != wanted.stat or not self._at_hand(record):
            return None
        return dataclasses.replace(
            entry_of(record), row=wanted.row, group=wanted.group, title=wanted.title, stratum=wanted.stratum
        )

    def record(self, key: int) -> Any:
        """The newest record of a product, or None."""
        end = int(np.searchsorted(self._keys, np.uint64(key), side="right"))
        if end == 0 or int(self._keys[end - 1]) != key:
            return None
        position = int(self._order[end - 1])
        part = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._records[part][position - self._starts[part]]

    def _at_hand(self, record: Any) -> bool:
        if int(record["offset"]) == IN_SHARD:
            return self._shelf.row_of(int(record["content"])) is not None
        return read_payload(self._spool, record) is not None

    def jpeg(self, entry: Entry) -> bytes:
        """The picture of an entry that `find` gave."""
        return self.members(entry)[0]

    def members(self, entry: Entry) -> tuple[bytes, bytes, bytes]:
        """The sample's members as they were written, with the group of then."""
        if entry.offset != IN_SHARD:
            payload = read_payload(self._spool, vars(entry))
            assert payload is not None
            return payload
        row = self._shelf.row_of(entry.content)
        assert row is not None
        return self._shelf.read(row)
