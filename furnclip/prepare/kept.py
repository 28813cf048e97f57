"""What `prepare` knows of every product, in columns on the disk that are read as they lie there.

    work/cache/prepare/kept.npz     which rows are current since the last finished run, hashes of
                                    its catalogue's rows, and its settings
    work/cache/prepare/kept-N/      rows, images, fingerprints, vectors and names, one after another

A run adds the rows that it judges and, when its shards are in place, says which rows are current. A row of
the catalogue that is byte for byte the same, with images of the same sizes and times, is not judged again.
Killed before that, nothing has happened. It is a cache: without it, every row is judged.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from furnclip.catalogue.pieces import NO_DIGESTS, Digests
from furnclip.journal import replacing
from furnclip.prepare.fingerprint import PRINT_BYTES
from furnclip.prepare.nearby import VECTOR, near_pairs, pairs_with, vectors_of
from furnclip.prepare.store import RECORD, VERSION, Records, Scanned, images_of, records_of
from furnclip.prepare.ties import LOOK, looks_of

KEPT_NAME = "kept.npz"
_EXTRA = ("digest", "first_image", "images", "first_name", "names", "note")
_ROW = np.dtype([*((name, "<u8") for name in RECORD.names or ()), *((name, "<u8") for name in _EXTRA)])
_COLUMNS = {"rows": _ROW, "looks": LOOK, "prints": np.dtype(("u1", (PRINT_BYTES,))), "vectors": VECTOR}
_TEXTS = ("names", "notes")
_MOST_NEW = 0.02  # of the fingerprints, before all are compared again
_MOST_DEAD = 0.75  # of the rows in the columns, before all are written anew


class Kept:
    """The columns of one cache folder."""

    def __init__(self, folder: Path, store: str) -> None:
        """`store`: the name of the samples that the columns belong to."""
        self._store = store
        self._cache, self._path = folder, folder / KEPT_NAME
        self.live = np.empty(0, dtype=np.int64)  # rows of the last finished run, by key
        self._pairs, self._apart = np.empty((0, 2), dtype=np.uint64), np.empty(0, dtype=np.float32)
        self._told = np.empty(0, dtype=np.uint8)  # `about`, as it is stored
        self.digests = NO_DIGESTS
        self.about: dict[str, Any] = {}
        self.folder = folder / "kept-0"
        try:
            with np.load(self._path) as stored:
                about = json.loads(stored["about"].tobytes())
                folder = folder / about["folder"]
                whole = all((folder / name).stat().st_size >= end for name, end in about["ends"].items())
                if whole and (about["version"], about["store"]) == (VERSION, store):
                    self.live, self._pairs, self._apart = stored["live"], stored["pairs"], stored["apart"]
                    self._told, self.about, self.folder = stored["about"], about, folder
                    self.digests = Digests(stored["rows"], stored["blocks"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            pass  # none, or a damaged one
        self.before: Records = taken(self.column("rows"), self.live)  # as they were then
        self.is_continued = True  # whether rows of then may still be current

    @property
    def is_worn(self) -> bool:
        """Whether most rows in the columns are those of earlier runs."""
        return len(self.live) < (1 - _MOST_DEAD) * len(self.column("rows"))

    def column(self, name: str) -> np.ndarray:
        """A column, memory-mapped."""
        path, kind = self.folder / name, _COLUMNS[name]
        if not path.is_file() or not path.stat().st_size:
            return np.empty((0, *kind.shape), dtype=kind.base)
        return np.memmap(path, kind.base, "r").reshape(-1, *kind.shape)

    def texts(self, name: str) -> list[bytes]:
        """The lines of a text column."""
        path = self.folder / name
        return path.read_bytes().split(b"\n") if path.is_file() else []

    def names(self, rows: Records) -> pyarrow.BinaryArray:
        """The image files of rows, a line NAME NUL STATUS NUL ADDRESS each, one row after the other."""
        path = self.folder / "names"
        data = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
        ends = np.append(0, np.flatnonzero(data == ord("\n")) + 1)
        lines = [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(data)]
        array = pyarrow.Array.from_buffers(pyarrow.large_binary(), len(ends) - 1, lines)
        return array.take(pyarrow.array(spans(rows["first_name"], rows["names"])))

    def changed(self, records: Records) -> np.ndarray:
        """Rows whose image, title or group differ from those of the last finished run: (N,)."""
        if not len(self.before):
            return np.zeros(len(records), dtype=bool)
        place = np.minimum(np.searchsorted(self.before["key"], records["key"]), len(self.before) - 1)
        differs = [self.before[name][place] != records[name] for name in ("title", "group", "look")]
        return np.asarray((self.before["key"][place] == records["key"]) & np.any(differs, axis=0))

    @contextmanager
    def writing(self, *, anew: bool) -> Iterator[Writer]:
        """To add rows, behind the current ones or in a folder of their own."""
        ends = {} if anew else self.about.get("ends", {})
        if anew:
            self.folder = self._cache / f"kept-{1 + int(self.folder.name.rpartition('-')[2])}"
            shutil.rmtree(self.folder, ignore_errors=True)
            self.about, self.is_continued = {}, False
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:
            opened = {}
            for name in (*_COLUMNS, *_TEXTS):
                opened[name] = file = files.enter_context((self.folder / name).open("ab"))
                if file.tell() != ends.get(name, 0):
                    file.truncate(ends.get(name, 0))  # what a killed run has left
            lines = self.about.get("lines", [0, 0])
            yield Writer(opened, lines)
            self.about |= {"lines": lines, "ends": {}}
            for name, file in opened.items():
                file.flush()
                os.fsync(file.fileno())
                self.about["ends"][name] = file.tell()

    def near_pairs(self, looks: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `nearby.near_pairs`, of the ascending `looks` (N,), whose fingerprints are at `places` (N,).

        What was found between those that the last finished run had is taken from there.
        """
        prints = self.column("prints")
        place = np.searchsorted(self._known, looks)
        new = np.flatnonzero(np.append(self._known, 0)[place] != looks)
        if len(new) > max(_MOST_NEW * len(looks), 16) or not len(self._known):
            return near_pairs(prints[places])
        ends = np.searchsorted(looks, self._pairs)
        there = (looks[np.minimum(ends, len(looks) - 1)] == self._pairs).all(axis=1)
        pairs, apart = pairs_with(prints, self.column("vectors"), places, new)
        pairs, apart = np.concatenate([ends[there], pairs]), np.concatenate([self._apart[there], apart])
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        return pairs[order], apart[order]

    def note_looks(self) -> None:
        """Remember which fingerprints the last finished run had; before rows are added."""
        had = spans(self.before["first_image"], self.before["images"])
        self._known = np.sort(self.column("looks")["look"][had])

    def finish(
        self, live: np.ndarray, pairs: np.ndarray, apart: np.ndarray, digests: Digests, **about: Any
    ) -> None:
        """Say which rows are current; `pairs`: of looks (P, 2)."""
        self.about |= about | {"folder": self.folder.name, "version": VERSION, "store": self._store}
        told = np.frombuffer(json.dumps(self.about).encode(), np.uint8)
        stored = (self.live, live), (self._pairs, pairs), (self._apart, apart), (self._told, told)
        stored += tuple(zip(self.digests, digests, strict=True))
        if not all(np.array_equal(before, now) for before, now in stored):
            with replacing(self._path) as file:
                np.savez(file, live=live, pairs=pairs, apart=apart, about=told, **digests._asdict())
        for path in self._cache.glob("kept-*"):
            if path != self.folder:
                shutil.rmtree(path, ignore_errors=True)


class Writer:
    """Adds rows to the columns. `lines`: of the texts, counted on."""

    def __init__(self, files: dict[str, Any], lines: list[int]) -> None:
        self._files, self._lines = files, lines

    def add(self, samples: Sequence[Scanned], digests: np.ndarray) -> None:
        """Some rows. digests: (N,) of their text in the catalogue, 0 where they have to be judged again."""
        images = images_of(image for sample in samples for image in sample.images)
        rows = np.zeros(len(samples), dtype=_ROW)
        entries = records_of(sample.entry for sample in samples)
        for name in RECORD.names or ():
            rows[name] = entries[name]
        rows["digest"] = digests
        rows["images"] = [len(sample.images) for sample in samples]
        rows["first_image"] = (
            self._files["looks"].tell() // LOOK.itemsize + np.cumsum(rows["images"]) - rows["images"]
        )
        for row, sample, digest in zip(rows, samples, digests.tolist(), strict=True):
            row["first_name"], row["names"] = self._lines[0], len(sample.found) if digest else 0
            for image, address in zip(sample.found, sample.addresses, strict=True) if digest else ():
                line = f"{image.name}\0{image.status}\0{address}"
                self._add_line(0, line.encode("utf-8", "surrogateescape"))
            if sample.problems or sample.why_in_no_split:
                told = json.dumps([sample.product_id, sample.why_in_no_split, sample.problems]).encode()
                self._add_line(1, told)
                row["note"] = self._lines[1]
        self._files["rows"].write(rows.tobytes())
        self._files["looks"].write(looks_of(images).tobytes())
        self._files["prints"].write(images["fingerprint"].tobytes())
        self._files["vectors"].write(vectors_of(images["fingerprint"]).tobytes())

    def _add_line(self, kind: int, line: bytes) -> None:
        self._files[_TEXTS[kind]].write(line + b"\n")
        self._lines[kind] += 1


def taken(column: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows of a column of several fields: as bytes, which numpy copies ten times as fast."""
    return np.asarray(np.take(column.view(f"V{column.dtype.itemsize}"), places).view(column.dtype))


def spans(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers from each first one on, as many as its count, one span after the other."""
    counts = counts.astype(np.int64)
    before = np.cumsum(counts) - counts
    return np.repeat(first.astype(np.int64) - before, counts) + np.arange(counts.sum())
