"""Row groups on the disk, and the vector file made of them.

    work/embeddings/parts/KEY/plan.json            models and precision, decided once
    work/embeddings/parts/KEY/part-00000.parquet   one finished row group, without the fused vectors

KEY is a hash of every input, so a part under it is valid whichever run wrote it. A part is written
aside and renamed; where its file exists, its row group is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from furnclip import console
from furnclip.errors import FurnclipError
from furnclip.journal import replacing
from furnclip.vectors import (
    PRODUCT_COLUMNS,
    Floats,
    Provenance,
    column_name,
    fuse,
    unit,
    vector_array,
    vector_schema,
)
from furnclip.vectors.parquet import MODEL_KINDS, matrix_of, open_parquet


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
        schema = vector_schema(plan, kinds=MODEL_KINDS)
        for number in filter(self.is_done, numbers):
            try:
                table = self._read(number)
            except FurnclipError:
                table = None
            if table is None or table.num_rows != rows(number) or not table.schema.equals(schema):
                console.warn(f"`{self.part(number)}` is damaged and is made again")
                self.part(number).unlink()

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Every row group, in order."""
        return (self._read(number, columns) for number in range(self.count))

    def _read(self, number: int, columns: list[str] | None = None) -> pa.Table:
        with open_parquet(self.part(number)) as file:
            return file.read(columns=columns)


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
    stand_in = cache(partial(_mean_image, folder))

    def with_fused(table: pa.Table) -> pa.Table:
        columns = {name: table[name] for name in table.column_names}
        for label, model in provenance.models.items():
            image, has_image = matrix_of(table[column_name("image", label)])
            text, has_text = matrix_of(table[column_name("text", label)])
            fused = fuse(image, text, model.image_weight)  # of one that is missing, the other alone
            bare = has_text & ~has_image
            if bare.any():
                fused[bare] = fuse(stand_in(label), text[bare], min(model.image_weight, 0.5))
            columns[column_name("vec", label)] = vector_array(fused, has_image | has_text, provenance.dtype)
        return pa.Table.from_pydict(columns, schema=schema)

    with replacing(target) as file:
        write_row_groups(file, schema, map(with_fused, folder.tables()))


def _mean_image(folder: PartFolder, label: str) -> Floats:
    """The mean of all image vectors, (D,): what stands in for a missing image in a fused vector.

    Texts are far nearer to queries than images are, so by its text alone a product would come before every
    product that has an image.
    """
    column = column_name("image", label)
    tables = folder.tables(columns=[column])
    sums = [matrix_of(table[column])[0].sum(axis=0, dtype=np.float64) for table in tables]
    mean: Floats = unit(np.sum(sums, axis=0)[None])[0]
    return mean
