"""Row groups while the work goes on, and vectors of earlier files that still hold.

    work/embeddings/parts/KEY/plan.json            models and precision, decided once
    work/embeddings/parts/KEY/part-00000.parquet   one finished row group, without the fused vectors

KEY is a hash of every input, so a part under it is right whoever made it and whenever. A part is
written aside and renamed; where its file exists, its row group is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from furnclip import console
from furnclip.errors import FurnclipError
from furnclip.journal import replacing
from furnclip.vectors import KINDS, PRODUCT_COLUMNS, Provenance, column_name, read_provenance, vector_schema
from furnclip.vectors.nearest import Floats
from furnclip.vectors.parquet import matrix_of, open_parquet, reading

Mask = npt.NDArray[np.bool_]
PART_KINDS = ("image", "text")


class PartFolder:
    """The finished row groups of one key."""

    def __init__(self, embeddings: Path, key: str) -> None:
        self.path = embeddings / "parts" / key
        self.plan = self.path / "plan.json"

    def part(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.parquet"

    def is_done(self, number: int) -> bool:
        return self.part(number).is_file()

    def drop_damaged(self, numbers: Sequence[int], plan: Provenance, rows: Callable[[int], int]) -> None:
        """Remove parts that are there and cannot be used, so that they are made again."""
        schema = vector_schema(plan, kinds=PART_KINDS)
        for number in filter(self.is_done, numbers):
            try:
                table = self._read(number)
            except FurnclipError:
                table = None
            if table is None or table.num_rows != rows(number) or not table.schema.equals(schema):
                console.warn(f"`{self.part(number)}` is damaged and is made again")
                self.part(number).unlink()

    def write(self, number: int, table: pa.Table) -> None:
        with replacing(self.part(number)) as file:
            write_row_groups(file, table.schema, [table])

    def tables(self, count: int) -> Iterator[pa.Table]:
        """Every row group, in order."""
        for number in range(count):
            yield self._read(number)

    def _read(self, number: int) -> pa.Table:
        with reading(self.part(number)), open_parquet(self.part(number)) as file:
            return file.read()

    def remove_all(self) -> None:
        """Remove the parts of every key: the work is complete."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def write_row_groups(file: object, schema: pa.Schema, tables: Iterator[pa.Table] | list[pa.Table]) -> None:
    """Write each table as one row group; the same tables always give the same bytes."""
    texts = [*PRODUCT_COLUMNS, "missing_reason"]
    options = {"compression": "zstd", "use_dictionary": texts, "write_page_checksum": True}
    with pq.ParquetWriter(file, schema, **options) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, table.num_rows))


@dataclass
class Found:
    """Vectors of N rows as they were stored earlier; `known` (N,) says of which rows."""

    known: Mask
    vectors: dict[str, Floats]  # by kind, (N, D)
    present: dict[str, Mask]  # by kind, (N,)
    reasons: list[str]

    @classmethod
    def nothing(cls, count: int, dimension: int) -> Found:
        return cls(
            known=np.zeros(count, dtype=bool),
            vectors={kind: np.zeros((count, dimension), dtype=np.float32) for kind in PART_KINDS},
            present={kind: np.zeros(count, dtype=bool) for kind in PART_KINDS},
            reasons=[""] * count,
        )

    def copy(self, rows: npt.NDArray[np.int64], stored: pa.Table, columns: Sequence[str]) -> None:
        """Take over the `stored` rows at `rows`; `columns` as `Known` reads them."""
        for kind, name in zip(PART_KINDS, columns[1:3], strict=True):
            self.vectors[kind][rows], self.present[kind][rows] = matrix_of(stored[name])
        for row, reason in zip(rows, stored["missing_reason"].to_pylist(), strict=True):
            self.reasons[row] = reason or ""


class Known:
    """ImageSource and text vectors of earlier files, found by content hash.

    Holds 16 bytes a row; the vectors stay on the disk until a row group needs them.
    """

    def __init__(self, files: Sequence[Path], label: str) -> None:
        self._columns = ["content_hash", *(column_name(kind, label) for kind in PART_KINDS), "missing_reason"]
        self._groups = [(path, number) for path in files for number in range(_row_groups(path))]
        hashes, places = [], []
        for index, (path, number) in enumerate(self._groups):
            found = _hashes(_row_group(path, number, ["content_hash"]))
            hashes.append(found)
            places.append(np.stack([np.full(len(found), index), np.arange(len(found))], axis=1))
        every = np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint64)
        self._hashes, first = np.unique(every, return_index=True)  # ascending
        self._places = np.concatenate(places)[first] if places else np.empty((0, 2), dtype=np.int64)

    def __contains__(self, content_hash: str) -> bool:
        return self._position(content_hash) >= 0

    def look_up(self, hashes: Sequence[str], dimension: int) -> Found:
        """What is known of these rows; N rows that are zero and absent where nothing is."""
        found = Found.nothing(len(hashes), dimension)
        positions = np.array([self._position(content_hash) for content_hash in hashes], dtype=np.int64)
        found.known[:] = positions >= 0
        rows = np.flatnonzero(found.known)
        places = self._places[positions[rows]]  # (known rows, 2): row group, row in it
        for index in np.unique(places[:, 0]):
            here = places[:, 0] == index
            found.copy(rows[here], self._read(int(index)).take(places[here, 1]), self._columns)
        return found

    def _position(self, content_hash: str) -> int:
        """The place of a hash in the sorted ones, -1 where it is not known."""
        wanted = np.uint64(int(content_hash, 16))
        position = int(np.searchsorted(self._hashes, wanted))
        return position if position < len(self._hashes) and self._hashes[position] == wanted else -1

    def _read(self, index: int) -> pa.Table:
        # Catalogues keep their order, so the next row is nearly always in the row group just read.
        if index != getattr(self, "_last_index", None):
            path, number = self._groups[index]
            self._last_table = _row_group(path, number, self._columns)
            self._last_index = index
        return self._last_table


@dataclass(frozen=True)
class Earlier:
    """Files with vectors of one model in one precision."""

    files: tuple[Path, ...]
    precision: str | None


def reusable_files(embeddings: Path, label: str, fingerprint: str, precision: str | None) -> Earlier:
    """Earlier files with vectors of this very model: the vector file, and parts left by a kill.

    `precision` None takes any precision, but only that of the first file found.
    """
    candidates = [embeddings / "master_vectors.parquet", *sorted(embeddings.glob("parts/*/part-*.parquet"))]
    found = []
    for path in candidates:
        kinds = KINDS if path.parent == embeddings else PART_KINDS
        model = _provenance(path, kinds).models.get(label) if path.is_file() else None
        if model and model.fingerprint == fingerprint and precision in (None, model.precision):
            precision = model.precision
            found.append(path)
    return Earlier(tuple(found), precision)


def _provenance(path: Path, kinds: Sequence[str]) -> Provenance:
    try:
        provenance = read_provenance(path, kinds=kinds)
        for number in range(_row_groups(path)):
            _hashes(_row_group(path, number, ["content_hash"]))
    except (FurnclipError, ValueError, TypeError, OverflowError):
        return Provenance()  # unreadable or of another version: nothing in it can be used again
    return provenance


def _row_groups(path: Path) -> int:
    with open_parquet(path) as file:
        return int(file.metadata.num_row_groups)


def _row_group(path: Path, number: int, columns: Sequence[str]) -> pa.Table:
    with reading(path), open_parquet(path) as file:
        return file.read_row_group(number, columns=list(columns))


def _hashes(table: pa.Table) -> npt.NDArray[np.uint64]:
    return np.array([int(value, 16) for value in table["content_hash"].to_pylist()], dtype=np.uint64)
