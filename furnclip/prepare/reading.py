"""The catalogue as columns: rows that did not change come from the last finished run, others are judged."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from furnclip import __version__, console
from furnclip.catalogue import Product, Rejection, catalogue_path, content_hash, read_products
from furnclip.catalogue.columns import Column, ColumnTypes
from furnclip.catalogue.pieces import NO_DIGESTS, Digests, Pieces, cut
from furnclip.images import BrokenImage
from furnclip.prepare.kept import Kept, Writer, spans, taken
from furnclip.prepare.scan import Scanner, decoders, stored_columns
from furnclip.prepare.store import ImageProblem, Records, SampleStore, Scanned
from furnclip.sources import Folder, Place, image_place

if TYPE_CHECKING:
    from furnclip.config import Config

_CHUNK_ROWS = 4096
_MOST_READ = 0.5  # of the rows, before all of them are
_TAIL_BYTES = 4096
_TRIES = 3
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

    records: Records  # (N,)
    images: Records  # (V,)
    rows: np.ndarray  # (V,) which of the products each image is of
    places: np.ndarray  # (V,) of the images in the columns
    live: np.ndarray  # (N,) of the products in the columns
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
        self._pieces = cut(self._path, config.paths)
        self._digests = self._pieces.digests(kept.digests) if self._pieces else NO_DIGESTS
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
        kept.note_looks()
        first = 0 if not len(current) else len(kept.column("rows"))
        with (
            kept.writing(anew=not len(current)) as writer,
            decoders(self._config.prepare) as workers,
            console.progress("reading products", total=None) as meter,
        ):
            meter.advance(len(current))
            scanner = Scanner(self._config, self._store, workers, rows)
            count, rest = self._judge(scanner, writer, plain, meter)
        self._store.commit()
        live = np.concatenate([kept.live[current] if len(current) else current, self._new_places(first)])
        records = taken(kept.column("rows"), live)
        records["row"][: len(current)] = numbers + 1
        order = np.argsort(records["key"])
        records, live = taken(records, order), live[order]
        places = spans(records["first_image"], records["images"])
        from furnclip.vectors.parquet import RESERVED_COLUMNS  # with pydantic, which workers do not need

        whole = self._pieces is None or count + len(current) == len(self._pieces)
        return Catalogue(
            records,
            taken(kept.column("looks"), places),
            np.repeat(np.arange(len(records)), records["images"].astype(np.int64)),
            places,
            live,
            _notes(records, kept.texts("notes")),
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
        is_plain = is_plain and not any("\n" in image.name or "\0" in image.name for image in sample.found)
        return int(self._digests.rows[number]) if is_plain else 0

    def _new_places(self, first: int) -> np.ndarray:
        return np.arange(first, len(self._kept.column("rows")))

    def _unchanged(self) -> tuple[np.ndarray, np.ndarray, list[Product | Rejection] | None]:
        """Rows of the last finished run that are as they were, (M,), and where in the file, (M,); the others.

        The others are None where all rows have to be judged.
        """
        before, digests, nothing = self._kept.before, self._digests.rows, np.empty(0, dtype=np.int64)
        if not self._pieces or self._kept.about.get("settings") != self._settings:
            return nothing, nothing, None
        if self._kept.is_worn or self._fetched_since is None:
            return nothing, nothing, None
        order = np.argsort(before["digest"])
        place = order[np.minimum(np.searchsorted(before["digest"][order], digests), len(order) - 1)]
        numbers = np.flatnonzero((before["digest"][place] == digests) & (digests > 0))
        current, first = np.unique(place[numbers], return_index=True)
        numbers = numbers[first]
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
    def _fetched_since(self) -> set[str] | None:
        """Hashes of the addresses fetched since the last finished run; None where that is not known."""
        before = self._kept.about["fetched"]
        try:
            if before != _NOT_FETCHED and before != _fetched(self._config.paths.fetched, before[0]):
                return None
            with self._config.paths.fetched.open("rb") as file:
                file.seek(before[0])
                return {str(json.loads(line)["key"]) for line in file}
        except (OSError, ValueError, KeyError, TypeError):
            return set() if before == _NOT_FETCHED else None

    def _images_are_as_they_were(self, current: np.ndarray) -> np.ndarray:
        """Which rows have their images as they were: (M,)."""
        rows = taken(self._kept.before, current)
        named = self._kept.names(rows).dictionary_encode()
        changed = _changed(image_place(self._config), named.dictionary.to_pylist(), self._fetched_since or ())
        of_row = np.repeat(np.arange(len(rows)), rows["names"].astype(np.int64))
        return np.asarray(np.bincount(of_row[changed[named.indices.to_numpy()]], minlength=len(rows)) == 0)

    def _types_without(self, current: np.ndarray) -> ColumnTypes | None:
        """The column types of the current rows; None where a row that is gone cannot be looked up."""
        types, gone = ColumnTypes(self._kept.about["types"]), np.ones(len(self._kept.before), dtype=bool)
        gone[current] = False
        stored = stored_columns(self._config.paths)
        for row in self._kept.before[gone & (self._kept.before["digest"] > 0)]:
            key = int(row["key"])
            if self._store.text(key) != int(row["text"]):  # a killed run has gone on
                return None
            fields = json.loads(self._store.members(key).json)["fields"]
            types.add({name: cell for name, cell in fields.items() if name not in stored}, -1)
        return types


def _changed(place: Place, lines: Sequence[bytes], fetched: Collection[str]) -> np.ndarray:
    """Which files, as `Kept.names` has them, are others now or of an address `fetched` since: (L,)."""
    there, again = set[bytes](), {address.encode() for address in fetched}
    lists = isinstance(place, Folder) and place.links_may_lead_out
    if isinstance(place, Folder) and lists:  # a look at each folder instead of each file
        for folder in {line[: line.rfind(b"/") + 1] for line in lines}:
            there.update(_listed(place, folder))

    def is_same(line: bytes) -> bool:
        """Of one that is not there as it stands: it may have an address, which a folder does not list."""
        told, _, address = line[:-1].rpartition(b"\0")
        return address not in again and (told + b"\0\n" in there if lists else _is_as_it_was(place, told))

    return np.array([line not in there and not is_same(line) for line in lines], dtype=bool)


def _is_as_it_was(place: Place, told: bytes) -> bool:
    name, was = told.decode("utf-8", "surrogateescape").split("\0")
    with suppress(BrokenImage, OSError, ValueError):  # the row is judged again, which says why
        return place.status(name) == was
    return False


def _listed(place: Folder, folder: bytes) -> list[bytes]:
    """Every file in a folder below the place, which ends in `/` or is empty; none where it is gone."""
    path = place.path(os.fsdecode(folder))
    for _ in range(_TRIES):  # a file may go while the others are looked at
        with suppress(OSError, ValueError), os.scandir(os.fsencode(path)) as entries:
            return [
                b"%b%b\0%d %d\0\n" % (folder, entry.name, (file := entry.stat()).st_size, file.st_mtime_ns)
                for entry in entries
                if entry.is_file()
            ]
    return []


def _notes(records: Records, lines: Sequence[bytes]) -> list[Note]:
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
