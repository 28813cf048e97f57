"""The catalogue as columns: rows that did not change come from the last finished run, others are judged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.fs

from furnclip import __version__, console
from furnclip.catalogue import Product, Rejection, catalogue_path, content_hash, read_products
from furnclip.catalogue.columns import Column, ColumnTypes
from furnclip.catalogue.pieces import NO_DIGESTS, Digests, Pieces, cut, spans
from furnclip.images import BrokenImage
from furnclip.parallel import cores
from furnclip.prepare.kept import Kept, Rows, Writer, taken
from furnclip.prepare.scan import Scanner, decoders, stored_columns
from furnclip.prepare.store import ImageProblem, Records, SampleStore, Scanned
from furnclip.sources import Folder, Place, image_place

if TYPE_CHECKING:
    from furnclip.config import Config

_CHUNK_ROWS = 4096
_MOST_READ = 0.5  # of the rows, before all of them are
_TAIL_BYTES = 4096
_NOT_FETCHED: list[Any] = [0, ""]


class Note(NamedTuple):
    """What of a product is not used, and why. `row`: in the records."""

    row: int
    product_id: str
    has_images: bool
    why_in_no_split: ImageProblem | None
    problems: tuple[ImageProblem, ...]


@dataclass(frozen=True)
class Catalogue:
    """What was read: N products with V images, by key."""

    records: Rows  # (N,)
    images: Records  # (V,)
    rows: np.ndarray  # (V,) which of the products each image is of
    places: np.ndarray  # (V,) of the images in the columns
    notes: list[Note]
    rejections: list[Rejection]
    columns: tuple[Column, ...]
    decoded: int  # products whose images are new
    digests: Digests
    about: dict[str, Any]  # what the next run has to know


class Reading:
    """One reading of the catalogue."""

    def __init__(self, config: Config, store: SampleStore, kept: Kept) -> None:
        self._config, self._store, self._kept = config, store, kept
        self._path = catalogue_path(config.paths)
        aside = ThreadPoolExecutor(1)
        self._are_as_they_were = aside.submit(_are_as_they_were, image_place(config), kept)
        aside.shutdown(wait=False)
        self._pieces = cut(self._path, config.paths)
        self._digests, self._was = NO_DIGESTS, np.empty(0, dtype=np.int64)
        if self._pieces:
            self._digests, self._was = self._pieces.digests(kept.digests)
        self._settings = _settings(config, self._pieces)
        self._fetched = _fetched(config.paths.fetched)
        self._rejections: list[Rejection] = []

    def catalogue(self) -> Catalogue:
        """Read it. Raises `InputError` for a file that is no catalogue."""
        kept = self._kept
        current, numbers, products = self._unchanged()
        rows: Iterable[Product | Rejection] = products or ()
        plain = self._types_without(current) if products is not None else None
        if plain is None:  # nothing can be taken over
            current, numbers, plain = current[:0], numbers[:0], ColumnTypes()
            rows = read_products(self._path, self._config.paths)
        before, first = kept.before.places[current], kept.length("key") if len(current) else 0
        with (
            kept.writing(anew=not len(current)) as writer,
            decoders(self._config.prepare) as workers,
            console.progress("reading products", total=None) as meter,
        ):
            meter.advance(len(current))
            scanner = Scanner(self._config, self._store, workers, rows)
            count, rest = self._judge(scanner, writer, plain, meter)
        self._store.commit()
        new = kept.rows(np.arange(first, kept.length("key")))
        live, row = np.append(before, new.places), np.append(numbers + 1, new["row"].astype(np.int64))
        keys = np.append(kept.column("key")[before], new["key"])
        order = np.argsort(keys, kind="stable")  # of two that are sorted already
        records = kept.rows(live[order], key=keys[order], row=row[order])
        places = spans(records["first_image"], records["images"])
        from furnclip.vectors.parquet import RESERVED_COLUMNS  # with pydantic, which workers do not need

        whole = self._pieces is None or count + len(current) == len(self._pieces)
        return Catalogue(
            records,
            taken(kept.column("looks"), places),
            np.repeat(np.arange(len(records)), records["images"].astype(np.int64)),
            places,
            _notes(records, kept.notes()),
            self._rejections,
            tuple((plain + rest).columns(RESERVED_COLUMNS)),
            scanner.decoded,
            self._digests,
            {
                "settings": self._settings if whole else "",
                "types": plain.as_dict(),
                "fetched": self._fetched,
            },
        )

    def _judge(
        self, scanner: Scanner, writer: Writer, plain: ColumnTypes, meter: console.Meter
    ) -> tuple[int, ColumnTypes]:
        """Judge rows and decode what is new; how many they are, and the types of those to be judged again."""
        rest, waiting, count = ColumnTypes(), list[Scanned](), 0
        for outcome in scanner:
            count += 1
            meter.advance()
            if isinstance(outcome, Rejection):
                self._rejections.append(outcome)
                continue
            (plain if self._digest(outcome) else rest).add(outcome.cells)
            waiting.append(outcome)
            if len(waiting) == _CHUNK_ROWS:
                self._write(writer, waiting)
                waiting = []
        self._write(writer, waiting)
        return count, rest

    def _write(self, writer: Writer, samples: Sequence[Scanned]) -> None:
        writer.add(samples, np.array(list(map(self._digest, samples)), dtype=np.uint64))

    def _digest(self, sample: Scanned) -> int:
        number = sample.entry.row - 1
        is_plain = sample.is_as_named and number < len(self._digests.rows)
        is_plain = is_plain and not any("\0" in image.name for image in sample.found)
        return int(self._digests.rows[number]) if is_plain else 0

    def _unchanged(self) -> tuple[np.ndarray, np.ndarray, list[Product | Rejection] | None]:
        """Rows of the last finished run that are as they were, (M,), and where in the file, (M,); the others.

        The others are None where all rows have to be judged.
        """
        before, digests, nothing = self._kept.before, self._digests.rows, np.empty(0, dtype=np.int64)
        if not self._pieces or self._kept.about.get("settings") != self._settings:
            return nothing, nothing, None
        if self._kept.is_worn or self._fetched_since is None:
            return nothing, nothing, None
        row_of = np.full(len(self._kept.digests.rows) + 1, -1)  # by place in the file; the last: of none
        known = np.flatnonzero(before["digest"] > 0)
        row_of[before["row"][known] - 1] = known
        place = row_of[self._was]
        found = np.flatnonzero(place >= 0)[::-1]
        numbers = np.full(len(before), -1)
        numbers[place[found]] = found  # the first one of several
        current = np.flatnonzero(numbers >= 0)
        numbers = numbers[current]
        there = self._images_are_as_they_were(current)
        current, numbers = current[there], numbers[there]
        while True:
            is_read = np.ones(len(digests), dtype=bool)
            is_read[numbers] = False
            others = np.flatnonzero(is_read)
            if len(others) > _MOST_READ * len(digests):
                return nothing, nothing, None
            products = self._pieces.products(others.tolist())
            ids = [item.product_id for item in products or () if isinstance(item, Product)]
            keys = np.array([int(content_hash(each), 16) for each in ids], dtype=np.uint64)
            twice = np.isin(before["key"][current], keys)  # the first row that has an id counts
            if not twice.any():
                return current, numbers, products
            current, numbers = current[~twice], numbers[~twice]

    @cached_property
    def _fetched_since(self) -> set[int] | None:
        """Hashes of the addresses fetched since the last finished run; None where that is not known."""
        before = self._kept.about["fetched"]
        try:
            if before != _NOT_FETCHED and before != _fetched(self._config.paths.fetched, before[0]):
                return None
            with self._config.paths.fetched.open("rb") as file:
                file.seek(before[0])
                return {int(str(json.loads(line)["key"]), 16) for line in file}
        except (OSError, ValueError, KeyError, TypeError):
            return set() if before == _NOT_FETCHED else None

    def _images_are_as_they_were(self, current: np.ndarray) -> np.ndarray:
        """Which rows have their images as they were: (M,)."""
        kept, place = self._kept, image_place(self._config)
        first, counts = (kept.before[name][current].astype(np.int64) for name in ("first_name", "names"))
        again = np.array(sorted(self._fetched_since or ()), dtype=np.uint64)
        doubts = np.cumsum(
            np.append(0, ~self._are_as_they_were.result() | np.isin(kept.column("addresses"), again))
        )
        is_same = np.asarray(doubts[first + counts] == doubts[first])
        rows = np.flatnonzero(~is_same)
        if not len(rows):
            return is_same
        lines = spans(first[rows], counts[rows])
        named = kept.files().take(pyarrow.array(lines)).dictionary_encode()
        differs = np.array([not _is_as_it_was(place, line) for line in named.dictionary.to_pylist()], bool)
        changed = differs[named.indices.to_numpy()] | np.isin(kept.column("addresses")[lines], again)
        of_row = np.repeat(np.arange(len(rows)), counts[rows])
        is_same[rows] = np.bincount(of_row[changed], minlength=len(rows)) == 0
        return is_same

    def _types_without(self, current: np.ndarray) -> ColumnTypes | None:
        """The column types of the current rows; None where a row that is gone cannot be looked up."""
        before, types = self._kept.before, ColumnTypes(self._kept.about["types"])
        gone = before["digest"] > 0
        gone[current] = False
        stored = stored_columns(self._config.paths)
        for row in np.flatnonzero(gone).tolist():
            key = int(before["key"][row])
            if self._store.text(key) != int(before["text"][row]):  # a killed run has gone on
                return None
            fields = json.loads(self._store.members(key).json)["fields"]
            types.add({name: cell for name, cell in fields.items() if name not in stored}, -1)
        return types


def _is_as_it_was(place: Place, line: bytes) -> bool:
    name, was, _ = line.decode("utf-8", "surrogateescape").split("\0")
    with suppress(BrokenImage, OSError, ValueError):  # the row is judged again, which says why
        return place.status(name) == was
    return False


def _are_as_they_were(place: Place, kept: Kept) -> np.ndarray:
    """Which of `Kept.files` are known to be as they were: (L,). pyarrow lets others run while it looks."""
    files = kept.files()
    is_same = np.zeros(len(files), dtype=bool)
    if not isinstance(place, Folder) or not place.links_may_lead_out:
        return is_same
    is_current = np.zeros(len(files), dtype=bool)
    is_current[spans(kept.before["first_name"], kept.before["names"])] = True
    lines = np.flatnonzero(is_current)
    some = [lines[start : start + _CHUNK_ROWS] for start in range(0, len(lines), _CHUNK_ROWS)]
    with ThreadPoolExecutor(cores()) as pool:
        look = partial(_statuses_are, place)
        for chunk, told in zip(some, pool.map(look, map(files.take, map(pyarrow.array, some))), strict=True):
            is_same[chunk] = told
    return is_same


def _statuses_are(place: Folder, files: pyarrow.LargeBinaryArray) -> list[bool]:
    """Whether each is as it was; False for all of them where a name is not UTF-8."""
    with suppress(OSError, ValueError):
        told = files.buffers()[2].to_pybytes().decode().split("\0")
        root = f"{place.path('')}/"
        found = pyarrow.fs.LocalFileSystem().get_file_info([root + name for name in told[:-1:2]])
        return [f"{file.size} {file.mtime_ns}" == was for file, was in zip(found, told[1::2], strict=True)]
    return [False] * len(files)


def _notes(records: Rows, lines: Sequence[bytes]) -> list[Note]:
    """Products that have something not used."""
    found = []
    for number in np.flatnonzero(records["note"]).tolist():
        product_id, why, problems = json.loads(lines[int(records["note"][number]) - 1])
        told = tuple(ImageProblem(*problem) for problem in problems)
        why = ImageProblem(*why) if why else None
        found.append(Note(number, product_id, bool(records["images"][number]), why, told))
    return found


def _settings(config: Config, pieces: Pieces | None) -> str:
    """A hash of what a row is judged by beside itself and its images; empty where rows have no pieces."""
    if pieces is None:
        return ""
    paths, settings = config.paths, config.prepare
    return content_hash(
        *(__version__, str(catalogue_path(paths)), pieces.dialect, paths.model_dump_json()),
        *(repr((settings.image_px, settings.jpeg_quality, settings.max_images)), repr(config.storage)),
    )


def _fetched(journal: Path, size_bytes: int | None = None) -> list[Any]:
    """The size of the journal of `fetch`, or the one given, and a hash of the lines before that."""
    if not journal.is_file():
        return _NOT_FETCHED
    with journal.open("rb") as file:
        end = file.seek(0, os.SEEK_END) if size_bytes is None else size_bytes
        file.seek(max(0, end - _TAIL_BYTES))
        return [end, content_hash(file.read(min(end, _TAIL_BYTES)))]
