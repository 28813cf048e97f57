"""What `prepare` knows of every product, in columns on the disk that are read as they lie there.

    work/cache/prepare/kept.npz     which rows are current since the last finished run, hashes of
                                    its catalogue's rows, and its settings
    work/cache/prepare/kept-N/      a file for each column of the rows, their images and image files

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
from furnclip.prepare.store import RECORD, VERSION, Scanned, images_of, records_of
from furnclip.prepare.ties import LOOK, looks_of
from furnclip.sources import FoundImage

KEPT_NAME = "kept.npz"
_FORMAT = [VERSION, 2]  # of the samples and of these columns
_EXTRA = ("digest", "first_image", "images", "first_name", "names", "note")
_OF_ROWS = (*(RECORD.names or ()), *_EXTRA)
_NUMBER = np.dtype("<u8")
_COLUMNS = {
    **dict.fromkeys((*_OF_ROWS, "addresses"), _NUMBER),
    **{"looks": LOOK, "prints": np.dtype(("u1", (PRINT_BYTES,))), "vectors": VECTOR},
}
_TEXTS = ("files", "notes")
_NOTHING: dict[str, np.ndarray] = {
    **{name: np.empty(0, dtype=np.int64) for name in ("live", "numbers")},
    **{
        "looks": np.empty(0, np.uint64),
        "pairs": np.empty((0, 2), np.uint64),
        "apart": np.empty(0, np.float32),
    },
}
_MOST_NEW = 0.02  # of the fingerprints, before all are compared again
_MOST_DEAD = 0.75  # of the rows in the columns, before all are written anew


class Rows:
    """Some rows of the columns, as arrays by the column's name, each read when it is asked for."""

    def __init__(self, folder: Path, places: np.ndarray, length: int, **columns: np.ndarray) -> None:
        """`columns`: which are otherwise than they lie there."""
        self._folder, self._length, self._columns = folder, length, columns
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            self._columns[name] = _column(self._folder / name, self._length)[self.places]
        return self._columns[name]


class Kept:
    """The columns of one cache folder."""

    def __init__(self, folder: Path, store: str) -> None:
        """`store`: the name of the samples that the columns belong to."""
        self._store = store
        self._cache, self._path = folder, folder / KEPT_NAME
        self._stored, self.digests = _NOTHING, NO_DIGESTS
        self.about: dict[str, Any] = {}
        self.folder = folder / "kept-0"
        try:
            with np.load(self._path) as stored:
                about = json.loads(stored["about"].tobytes())
                folder = folder / about["folder"]
                whole = all((folder / name).stat().st_size >= end for name, end in about["ends"].items())
                if whole and (about["version"], about["store"]) == (_FORMAT, store):
                    self._stored, self.about, self.folder = dict(stored), about, folder
                    self.digests = Digests(self._stored["rows"], self._stored["blocks"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            pass  # none, or a damaged one
        live, numbers = self._stored["live"], self._stored["numbers"]
        self.before = self.rows(live, row=numbers)  # as they were then, by key
        self._first_new = self.length("key")  # place of the first row that is added
        self.is_continued = True  # whether rows of then may still be current

    @property
    def is_worn(self) -> bool:
        """Whether most rows in the columns are those of earlier runs."""
        return len(self.before) < (1 - _MOST_DEAD) * self.length("key")

    def length(self, name: str) -> int:
        """How long a column is; a killed run may have left more."""
        return int(self.about.get("ends", {}).get(name, 0)) // _COLUMNS[name].itemsize

    def column(self, name: str) -> np.ndarray:
        """A column, memory-mapped."""
        return _column(self.folder / name, self.length(name))

    def rows(self, places: np.ndarray, **columns: np.ndarray) -> Rows:
        """The rows at some places of the columns."""
        return Rows(self.folder, places, self.length("key"), **columns)

    def notes(self) -> list[bytes]:
        """What is told of rows, a line each."""
        path = self.folder / "notes"
        return path.read_bytes().split(b"\n") if path.is_file() else []

    def files(self) -> pyarrow.LargeBinaryArray:
        """The image files of all rows, NAME NUL STATUS NUL each, in the order in which they were judged."""
        path, end = self.folder / "files", self.about.get("ends", {}).get("files", 0)
        data = np.fromfile(path, np.uint8, end) if end else np.empty(0, np.uint8)
        ends = np.append(0, np.flatnonzero(data == 0)[1::2] + 1)
        lines = [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(data)]
        return pyarrow.Array.from_buffers(pyarrow.large_binary(), len(ends) - 1, lines)

    def changed(self, records: Rows) -> np.ndarray:
        """Rows whose image, title or group differ from those of the last finished run: (N,)."""
        before, changed = self.before, np.zeros(len(records), dtype=bool)
        if len(before):
            first = self._first_new if self.is_continued else 0
            rows = np.flatnonzero(records.places >= first)
            place = _place_among(before["key"], records["key"][rows])
            rows, place = rows[place >= 0], place[place >= 0]
            differs = [before[name][place] != records[name][rows] for name in ("title", "group", "look")]
            changed[rows] = np.any(differs, axis=0)
        return changed

    def gone(self, records: Rows) -> np.ndarray:
        """Keys that the last finished run had and `records` have not, where it can be told by the rows."""
        left = np.isin(self.before.places, records.places, assume_unique=True)
        keys = self.before["key"][~left]
        return keys[_place_among(records["key"], keys) < 0]

    @contextmanager
    def writing(self, *, anew: bool) -> Iterator[Writer]:
        """To add rows, behind the current ones or in a folder of their own, where they lie by key then."""
        ends = {} if anew else self.about.get("ends", {})
        if anew:
            self.folder = self._cache / f"kept-{1 + int(self.folder.name.rpartition('-')[2])}"
            shutil.rmtree(self.folder, ignore_errors=True)
            self.about, self.is_continued = {}, False
        self._first_new = self.length("key")
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:
            opened = {}
            for name in (*_COLUMNS, *_TEXTS):
                opened[name] = file = files.enter_context((self.folder / name).open("ab"))
                if file.tell() != ends.get(name, 0):
                    file.seek(file.truncate(ends.get(name, 0)))  # without what a killed run has left
            notes = self.about.get("notes", 0)
            writer = Writer(opened, notes)
            yield writer
            self.about |= {"notes": writer.notes, "ends": {}}
            for name, file in opened.items():
                file.flush()
                os.fsync(file.fileno())
                self.about["ends"][name] = file.tell()
        if anew:
            order = np.argsort(self.column("key"))
            for name in _OF_ROWS:
                values = self.column(name)[order]
                with (self.folder / name).open("r+b") as column:
                    column.write(values.tobytes())
                    column.flush()
                    os.fsync(column.fileno())

    def near_pairs(
        self, places: np.ndarray, looks: np.ndarray, first: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `nearby.near_pairs`, of the ascending `looks` (N,); their prints are at `places[first]` (N,).

        What was found between those that the last finished run had is taken from there.
        """
        prints, had, places = self.column("prints"), self._stored["looks"], places[first]
        new = np.flatnonzero(_place_among(had, looks) < 0)
        if len(new) > max(_MOST_NEW * len(looks), 16) or not (len(had) and len(looks)):
            pairs, apart = near_pairs(prints[places])
        else:
            ends = np.searchsorted(looks, self._stored["pairs"])
            there = (looks[np.minimum(ends, len(looks) - 1)] == self._stored["pairs"]).all(axis=1)
            pairs, apart = pairs_with(prints, self.column("vectors"), places, new)
            pairs = np.concatenate([ends[there], pairs])
            apart = np.concatenate([self._stored["apart"][there], apart])
            order = np.lexsort((pairs[:, 1], pairs[:, 0]))
            pairs, apart = pairs[order], apart[order]
        self._found = {"looks": looks, "pairs": looks[pairs], "apart": apart}
        return pairs, apart

    def finish(self, records: Rows, digests: Digests, **about: Any) -> None:
        """Say which rows are current, and what `near_pairs` found of them."""
        self.about |= about | {"folder": self.folder.name, "version": _FORMAT, "store": self._store}
        told = np.frombuffer(json.dumps(self.about).encode(), np.uint8)
        columns = self._found | digests._asdict()
        columns |= {"about": told, "live": records.places, "numbers": records["row"]}
        if not all(np.array_equal(self._stored.get(name, ()), columns[name]) for name in columns):
            with replacing(self._path) as file:
                np.savez(file, **columns)
        for path in self._cache.glob("kept-*"):
            if path != self.folder:
                shutil.rmtree(path, ignore_errors=True)


class Writer:
    """Adds rows to the columns. `notes`: lines of these, counted on."""

    def __init__(self, files: dict[str, Any], notes: int) -> None:
        self._files, self.notes = files, notes
        self._named, self._first_name = (tuple[FoundImage, ...](), tuple[str, ...]()), 0  # of the last sample

    def add(self, samples: Sequence[Scanned], digests: np.ndarray) -> None:
        """Some rows. digests: (N,) of their text in the catalogue, 0 where they have to be judged again."""
        images = images_of(image for sample in samples for image in sample.images)
        entries = records_of(sample.entry for sample in samples)
        rows = {name: entries[name] for name in RECORD.names or ()}
        rows["images"] = np.array([len(sample.images) for sample in samples], dtype=_NUMBER)
        named = [
            self._files_of(sample) if digest else (0, 0)
            for sample, digest in zip(samples, digests.tolist(), strict=True)
        ]
        rows["first_name"], rows["names"] = np.array(named, dtype=_NUMBER).reshape(-1, 2).T
        before = self._files["looks"].tell() // LOOK.itemsize
        rows["first_image"] = before + np.cumsum(rows["images"]) - rows["images"]
        rows |= {"digest": digests, "note": np.array(list(map(self._note, samples)), dtype=_NUMBER)}
        for name in _OF_ROWS:
            self._files[name].write(rows[name].astype(_NUMBER).tobytes())
        self._files["looks"].write(looks_of(images).tobytes())
        self._files["prints"].write(images["fingerprint"].tobytes())
        self._files["vectors"].write(vectors_of(images["fingerprint"]).tobytes())

    def _files_of(self, sample: Scanned) -> tuple[int, int]:
        """The first line of a sample's image files, which variants share, and how many there are."""
        named = sample.found, sample.addresses
        if named != self._named:
            self._named, self._first_name = named, self._files["addresses"].tell() // 8
            for image, address in zip(*named, strict=True):
                line = f"{image.name}\0{image.status}\0"
                self._files["files"].write(line.encode("utf-8", "surrogateescape"))
                self._files["addresses"].write(int(address or "0", 16).to_bytes(8, "little"))
        return self._first_name, len(sample.found)

    def _note(self, sample: Scanned) -> int:
        """The number of the line that tells what of a sample is not used, from 1; 0 for none."""
        if not (sample.problems or sample.why_in_no_split):
            return 0
        told = json.dumps([sample.product_id, sample.why_in_no_split, sample.problems]).encode()
        self._files["notes"].write(told + b"\n")
        self.notes += 1
        return self.notes


def _column(path: Path, length: int) -> np.ndarray:
    kind = _COLUMNS[path.name]
    if not length:
        return np.empty((0, *kind.shape), dtype=kind.base)
    return np.memmap(path, kind.base, "r", shape=(length, *kind.shape))


def _place_among(known: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where keys, (M,), are among the `known` ones, which ascend; -1 of those that are not there."""
    if not len(known):
        return np.full(len(keys), -1)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[place] == keys, place, -1)


def taken(column: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows of a column of several fields: as bytes, which numpy copies ten times as fast."""
    return np.asarray(np.take(column.view(f"V{column.dtype.itemsize}"), places).view(column.dtype))
