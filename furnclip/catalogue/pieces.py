"""A CSV file cut into its rows without reading their cells, to tell which of them changed.

Only where the cut is certain: every quote stands where a quoted cell begins or ends, lines end in `\\n`, all
of it is UTF-8, and a row is a product. Any other file has no pieces and is read as a whole.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import mmap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as pc

from furnclip.catalogue.delimited import Table
from furnclip.catalogue.products import Product, Rejection, read_products
from furnclip.catalogue.rows import is_our_sheet, kind_of_file
from furnclip.catalogue.text import find_encoding, is_packed

if TYPE_CHECKING:
    from furnclip.config import DataPaths

_CHUNK_BYTES = 2**24
_LINE, _RETURN, _QUOTE = b'\n\r"'
_MARK = codecs.BOM_UTF8
_IN_DOUBT = {"open-quote", "unreadable-row"}
_BLOCK = np.dtype([("hash", "<u8"), ("rows", "<u8")])
_BLOCK_ROWS_LOG2 = 8  # about as many rows are in a block
_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)


class Digests(NamedTuple):
    """Hashes of the rows of a file, (P,), and of its blocks of rows with how many each has, (B,)."""

    rows: np.ndarray
    blocks: np.ndarray


NO_DIGESTS = Digests(np.empty(0, dtype=np.uint64), np.empty(0, dtype=_BLOCK))


class Pieces:
    """The rows of a file. `dialect`: what their cells are told by."""

    def __init__(self, path: Path, paths: DataPaths, dialect: str, data: mmap.mmap, ends: np.ndarray) -> None:
        self.dialect = dialect
        self._path, self._paths, self._data = path, paths, data
        starts, ends = ends[:-1], ends[1:]
        first = np.frombuffer(data, np.uint8)[starts]
        is_blank = (ends - starts <= 2) & ((first == _LINE) | (first == _RETURN))
        self._starts, self._ends = starts[~is_blank], ends[~is_blank]

    def __len__(self) -> int:
        return len(self._starts)

    def digests(self, before: Digests) -> tuple[Digests, np.ndarray]:
        """A hash of each row, and where in an earlier state of the file each was, -1 for nowhere: (P,).

        Rows of unchanged blocks are not read again.
        """
        first = np.append(np.flatnonzero(self._begins_block()), len(self))
        blocks = np.empty(len(first) - 1, dtype=_BLOCK)
        blocks["hash"] = self._hashes(self._starts[first[:-1]], self._ends[first[1:] - 1])
        blocks["rows"] = np.diff(first)
        was, block = np.full(len(self), -1), _places(blocks["hash"], before.blocks["hash"])
        first_before = np.cumsum(before.blocks["rows"]) - before.blocks["rows"]
        known, counts = block[block >= 0], blocks["rows"][block >= 0]
        was[spans(first[:-1][block >= 0], counts)] = spans(first_before[known], counts)
        rows, others = np.empty(len(self), dtype=np.uint64), np.flatnonzero(was < 0)
        rows[was >= 0] = before.rows[was[was >= 0]]
        rows[others] = self._hashes(self._starts[others], self._ends[others])
        is_left = np.ones(len(before.rows), dtype=bool)
        is_left[was[was >= 0]] = False
        left = np.flatnonzero(is_left)
        place = _places(rows[others], before.rows[left])
        was[others[place >= 0]] = left[place[place >= 0]]
        return Digests(rows, blocks), was

    def _hashes(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        hashes = bytearray()
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            hashes += hashlib.blake2b(self._data[start:end], digest_size=8).digest()
        return np.frombuffer(hashes, np.uint64)

    def _begins_block(self) -> np.ndarray:
        """Rows that begin a block, (P,), told by a row's own first and last bytes, whatever else moved."""
        count = len(self._data) - 7
        if count < 1:
            return np.asarray(np.arange(len(self)) == 0)
        words = np.ndarray(count, np.uint64, self._data, strides=1)  # one at every byte
        first, last = (words[np.clip(places, 0, count - 1)] for places in (self._starts, self._ends - 8))
        begins = (first * _ODD[0] ^ last * _ODD[1]) * _ODD[2] >> np.uint64(64 - _BLOCK_ROWS_LOG2) == 0
        begins[:1] = True
        return np.asarray(begins)

    def products(self, numbers: Sequence[int]) -> list[Product | Rejection] | None:
        """What `read_products` says of these rows, in order; None where that takes the others as well."""
        lines = (line for number in numbers for line in self._lines(number))
        found = list(read_products(self._path, self._paths, lines=lines))
        if len(found) != len(numbers):
            return None
        told = [item for item in found if isinstance(item, Rejection)]
        if any(item.reason in _IN_DOUBT or " in lines " in item.detail for item in told):
            return None
        return [
            item._replace(row=number + 1) if isinstance(item, Product) else replace(item, row=number + 1)
            for item, number in zip(found, numbers, strict=True)
        ]

    def _lines(self, number: int) -> list[str]:
        text = self._data[self._starts[number] : self._ends[number]].decode()
        return list(io.StringIO(text, newline="\n"))


def spans(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers from each first one on, as many as its count, one span after the other."""
    counts = counts.astype(np.int64)
    before = np.cumsum(counts) - counts
    return np.repeat(first.astype(np.int64) - before, counts) + np.arange(counts.sum())


def _places(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each value is among others, -1 for nowhere: (N,)."""
    found = pc.index_in(pyarrow.array(values), pyarrow.array(among))
    return np.asarray(found.fill_null(-1))


def cut(path: Path, paths: DataPaths) -> Pieces | None:
    """The rows of a catalogue, or None where they cannot be told apart for certain."""
    is_plain = path.is_file() and path.stat().st_size and not paths.parent_column and not is_packed(path)
    if not is_plain or kind_of_file(path) != "table" or find_encoding(path) != ("utf-8-sig", True):
        return None
    table, is_merged = Table(path), paths.merge_rows or paths.merge_untitled_rows
    if (is_merged and not is_our_sheet(table.header)) or len(table.delimiter.encode()) != 1:
        return None
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    ends = _ends(np.frombuffer(data, np.uint8), ord(table.delimiter), table.first_line)
    return None if ends is None else Pieces(path, paths, table.dialect, data, ends)


def _ends(data: np.ndarray, delimiter: int, first_line: int) -> np.ndarray | None:
    """Where the rows of a file (B,) begin and end, from a line on; None where it is not certain."""
    lines, quotes = _positions(data, _LINE), _positions(data, _QUOTE)
    returns = _positions(data, _RETURN)
    if len(quotes) % 2 or len(lines) < first_line or (data[(returns + 1) % len(data)] != _LINE).any():
        return None
    around = np.array([_LINE, _RETURN, _QUOTE, delimiter], dtype=np.uint8)
    opening, closing = quotes[::2], quotes[1::2]
    first = len(_MARK) if data[: len(_MARK)].tobytes() == _MARK else 0
    well_opened = np.isin(data[opening - 1], around) | (opening == first)
    well_closed = np.isin(data[(closing + 1) % len(data)], around) | (closing == len(data) - 1)
    if not (well_opened.all() and well_closed.all()):
        return None
    start = lines[first_line - 1] + 1
    ends = lines[np.searchsorted(quotes, lines) % 2 == 0] + 1
    if not len(ends) or ends[-1] != len(data):
        ends = np.append(ends, len(data))
    return ends[ends >= start] if start in ends else None


def _positions(data: np.ndarray, sign: int) -> np.ndarray:
    starts = range(0, len(data), _CHUNK_BYTES)
    there = (data[start : start + _CHUNK_BYTES] == sign for start in starts)
    parts = (np.flatnonzero(each) + start for start, each in zip(starts, there, strict=True) if each.any())
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])
