"""What earlier runs left: records of known products, and where their samples lie.

A sample is found again in a published shard, in a shard that a killed run had staged, or in the
spool. Whatever is not found, or not as it was written, is decoded again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from furnclip.prepare.spool import (
    IN_SHARD,
    Entry,
    Records,
    SpoolPlace,
    cache_file,
    entry_of,
    read_payload,
    read_records,
)
from furnclip.shards.tar import Place, damaged, read_about, read_index, read_place

Source = tuple[Path, Place | SpoolPlace]

_PLACES = np.dtype(
    [
        ("content", "<u8"),
        ("shard", "<i4"),
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

    def find(self, content: int) -> Source | None:
        """Where the sample is, or None where no shard has it."""
        row = int(np.searchsorted(self._places["content"], np.uint64(content)))
        if row == len(self._places) or int(self._places["content"][row]) != content:
            return None
        place = self._places[row]
        jpg_bytes, json_bytes, txt_bytes = (int(size) for size in place["sizes"])
        crc32, offset = int(place["crc32"]), int(place["offset"])
        found = Place(f"{content:016x}", offset, jpg_bytes, json_bytes, txt_bytes, crc32)
        return self._shards[int(place["shard"])], found


def _places(number: int, shard: Path) -> np.ndarray:
    about = read_about(shard)
    if about is None:
        return np.empty(0, _PLACES)
    index = read_index(shard, samples=about.samples)
    places = np.zeros(index.num_rows, _PLACES)
    places["content"] = [int(content, 16) for content in index["content"].to_pylist()]
    places["shard"] = number
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
        spool = cache_file(cache, "spool")
        spooled = read_records(cache_file(cache, "spooled")) if spool.is_file() else read_records(Path())
        return cls([read_records(cache_file(cache, "records")), spooled], shelf, spool)

    def find(self, wanted: Entry) -> Entry | None:
        """The product's entry from an earlier run, if its picture is the same and still at hand.

        Row, group and title are those of `wanted`.
        """
        record = self.record(wanted.key)
        if record is None or int(record["stat"]) != wanted.stat:
            return None
        known = entry_of(record)
        if not self._at_hand(known):
            return None
        return dataclasses.replace(
            known, row=wanted.row, group=wanted.group, title=wanted.title, stratum=wanted.stratum
        )

    def record(self, key: int) -> Any:
        """The newest record of a product, or None."""
        end = int(np.searchsorted(self._keys, np.uint64(key), side="right"))
        if end == 0 or int(self._keys[end - 1]) != key:
            return None
        position = int(self._order[end - 1])
        part = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._records[part][position - self._starts[part]]

    def _at_hand(self, entry: Entry) -> bool:
        if entry.offset == IN_SHARD:
            return self._shelf.find(entry.content) is not None
        return read_payload(self._spool, entry.place) is not None

    def source(self, entry: Entry) -> Source:
        """Where the sample of an entry that `find` gave is."""
        if entry.offset != IN_SHARD:
            return self._spool, entry.place
        found = self._shelf.find(entry.content)
        assert found is not None
        return found


def read_source(source: Source) -> tuple[bytes, bytes, bytes]:
    """The members of a sample, with the group of then. Raises `StorageError` where they have changed."""
    path, place = source
    if isinstance(place, Place):
        return read_place(path, place)
    members = read_payload(path, place)
    if members is None:
        raise damaged(path, f"the payload at byte {place.offset} has changed")
    return members
