"""Row groups on the disk, the vector file made of them, and vectors of earlier files that are still valid.

    work/embeddings/parts/KEY/plan.json            models and precision, decided once
    work/embeddings/parts/KEY/part-00000.parquet   one finished row group, without the fused vectors

KEY is a hash of every input, so a part under it is valid whichever run wrote it. A part is written
aside and renamed; where its file exists, its row group is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from furnclip import console
from furnclip.errors import FurnclipError
from furnclip.journal import replacing
from furnclip.vectors import PRODUCT_COLUMNS, Provenance, column_name, fuse, read_provenance
from furnclip.vectors.nearest import Floats, Mask
from furnclip.vectors.parquet import KINDS, matrix_of, open_parquet, vector_array, vector_schema

POLL_S = 0.2  # while another process is at work; the launcher ends all of them when one fails
PART_KINDS = ("image", "text")


class PartFolder:
    """The finished row groups of one key, of `count`."""

    def __init__(self, embeddings: Path, key: str, count: int) -> None:
        self.key = key
        self.count = count
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

    def tables(self) -> Iterator[pa.Table]:
        """Every row group, in order."""
        return map(self._read, range(self.count))

    def _read(self, number: int) -> pa.Table:
        with open_parquet(self.part(number)) as file:
            return file.read()


def write_row_groups(file: object, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write each table as one row group; the same tables always give the same bytes."""
    texts = [*PRODUCT_COLUMNS, "missing_reason"]
    options = {"compression": "zstd", "use_dictionary": texts, "write_page_checksum": True}
    with pq.ParquetWriter(file, schema, **options) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, table.num_rows))


def write_vectors(folder: PartFolder, provenance: Provenance, target: Path) -> None:
    """Write the vector file: every row group of `folder` with its fused vectors."""
    schema = vector_schema(provenance)

    def with_fused(table: pa.Table) -> pa.Table:
        columns = {name: table[name] for name in table.column_names}
        for label, model in provenance.models.items():
            image, image_there = matrix_of(table[column_name("image", label)])
            text, text_there = matrix_of(table[column_name("text", label)])
            fused = fuse(image, text, model.image_weight)
            columns[column_name("vec", label)] = vector_array(
                fused, image_there & text_there, provenance.dtype
            )
        return pa.Table.from_pydict(columns, schema=schema)

    with replacing(target) as file:
        write_row_groups(file, schema, map(with_fused, folder.tables()))


@dataclass
class Found:
    """Vectors of N rows as they were stored earlier; `known` (N,) marks those; the others are zero."""

    known: Mask
    vectors: dict[str, Floats]  # by kind, (N, D)
    present: dict[str, Mask]  # by kind, (N,)
    reasons: list[str]


class Known:
    """Image and text vectors of earlier files, found by content hash.

    Holds 16 bytes a row; the vectors stay on the disk until a row group needs them.
    """

    def __init__(self, embeddings: Path, label: str, fingerprint: str, precision: str | None) -> None:
        """Look for vectors of this very model, in the vector file and in parts left by a kill.

        `precision` None takes any precision, but only that of the first file found. What is unreadable or of
        another version is left out.
        """
        self.precision = precision
        self._columns = ["content_hash", *(column_name(kind, label) for kind in PART_KINDS), "missing_reason"]
        self._groups: list[tuple[Path, int]] = []
        hashes, places = [np.empty(0, dtype=np.uint64)], [np.empty((0, 2), dtype=np.int64)]
        parts = sorted(embeddings.glob("parts/*/part-*.parquet"))
        for path in filter(Path.is_file, [embeddings / "master_vectors.parquet", *parts]):
            try:
                provenance = read_provenance(path, kinds=KINDS if path.parent == embeddings else PART_KINDS)
                groups = _hashes(path)
            except (FurnclipError, ValueError, TypeError, OverflowError):
                continue
            model = provenance.models.get(label)
            if not model or model.fingerprint != fingerprint or self.precision not in (None, model.precision):
                continue
            self.precision = model.precision
            for number, found in enumerate(groups):
                index = np.full(len(found), len(self._groups))
                places.append(np.stack([index, np.arange(len(found))], axis=1))
                hashes.append(found)
                self._groups.append((path, number))
        self._hashes, first = np.unique(np.concatenate(hashes), return_index=True)  # ascending
        self._places = np.concatenate(places)[first]  # (rows, 2): row group, row in it
        self._last_read: tuple[int, pa.Table] = -1, None

    def __contains__(self, content_hash: str) -> bool:
        return self._position(content_hash) >= 0

    def look_up(self, hashes: Sequence[str], dimension: int) -> Found:
        """What is known of these rows; N rows that are zero and absent where nothing is."""
        count = len(hashes)
        positions = np.array([self._position(content_hash) for content_hash in hashes], dtype=np.int64)
        found = Found(
            known=positions >= 0,
            vectors={kind: np.zeros((count, dimension), dtype=np.float32) for kind in PART_KINDS},
            present={kind: np.zeros(count, dtype=bool) for kind in PART_KINDS},
            reasons=[""] * count,
        )
        known = np.flatnonzero(found.known)
        places = self._places[positions[known]]
        for index in np.unique(places[:, 0]):
            here = places[:, 0] == index
            rows, stored = known[here], self._read(int(index)).take(places[here, 1])
            for kind, name in zip(PART_KINDS, self._columns[1:3], strict=True):
                found.vectors[kind][rows], found.present[kind][rows] = matrix_of(stored[name])
            for row, reason in zip(rows, stored["missing_reason"].to_pylist(), strict=True):
                found.reasons[row] = reason or ""
        return found

    def _position(self, content_hash: str) -> int:
        """The place of a hash in the sorted ones, -1 where it is not known."""
        wanted = np.uint64(int(content_hash, 16))
        position = int(np.searchsorted(self._hashes, wanted))
        return position if position < len(self._hashes) and self._hashes[position] == wanted else -1

    def _read(self, index: int) -> pa.Table:
        # Catalogues keep their order, so the next row is nearly always in the row group just read.
        if index != self._last_read[0]:
            path, number = self._groups[index]
            with open_parquet(path) as file:
                self._last_read = index, file.read_row_group(number, columns=self._columns)
        return self._last_read[1]


def _hashes(path: Path) -> list[npt.NDArray[np.uint64]]:
    """The content hashes of each row group."""
    found = []
    with open_parquet(path) as file:
        for number in range(file.metadata.num_row_groups):
            column = file.read_row_group(number, columns=["content_hash"])["content_hash"]
            found.append(np.array([int(value, 16) for value in column.to_pylist()], dtype=np.uint64))
    return found
