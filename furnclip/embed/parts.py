"""Row groups on the disk, and the vector file made of them.

    work/embeddings/parts/KEY/plan.json            models and precision, decided once
    work/embeddings/parts/KEY/part-00000.parquet   one finished row group, without the fused vectors

KEY is a hash of every input; where the file of a part exists, its row group is done.

Up to `ONE_FILE` row groups become one vector file, more a folder with a part a row group, whose name says
what it holds: what is made of a shard that did not change is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from furnclip import console
from furnclip.catalogue import content_hash
from furnclip.embed.encoding import RowGroup
from furnclip.errors import FurnclipError
from furnclip.journal import keep_copy, move_file, replacing, sync_folder, write_text
from furnclip.vectors import Floats, Provenance, column_name, fuse, parquet, unit, vector_array, vector_schema
from furnclip.vectors.parquet import MODEL_KINDS, VECTOR_MANIFEST, Part, VectorManifest, matrix_of

ONE_FILE = 16  # row groups


class PartFolder:
    """The finished row groups of one key. `kept`: parts of the vector file that hold theirs already."""

    def __init__(
        self, embeddings: Path, key: str, groups: Sequence[RowGroup], kept: Mapping[int, Path]
    ) -> None:
        self.key, self.groups, self.kept = key, groups, kept
        self.path = embeddings / "parts" / key
        self.plan = self.path / "plan.json"

    def part(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.parquet"

    def is_done(self, number: int) -> bool:
        return number in self.kept or self.part(number).is_file()

    def drop_damaged(self, numbers: Sequence[int], plan: Provenance) -> None:
        """Remove parts that are there and cannot be used, so that they are made again."""
        schema = vector_schema(plan, kinds=MODEL_KINDS)
        for number in numbers:
            if number in self.kept or not self.is_done(number):
                continue
            with suppress(FurnclipError):
                table = self.read(number)
                if table.num_rows == len(self.groups[number].rows) and table.schema.equals(schema):
                    continue
            console.warn(f"`{self.part(number)}` is damaged and is made again")
            self.part(number).unlink()

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Every row group, in order."""
        return (self.read(number, columns) for number in range(len(self.groups)))

    def read(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """A row group."""
        with parquet.open_parquet(self.kept.get(number, self.part(number))) as file:
            return file.read(columns=columns)


def write_row_groups(file: object, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write each table as one row group; the same tables always give the same bytes."""
    texts = [*parquet.PRODUCT_COLUMNS, "missing_reason"]
    options = {"compression": "zstd", "use_dictionary": texts, "write_page_checksum": True}
    with pq.ParquetWriter(file, schema, **options) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, table.num_rows))


class VectorWriter:
    """Makes the vector file of the row groups of `folder`.

    `stand_ins`: by label the mean image, (D,), where it was computed before.
    """

    def __init__(
        self, folder: PartFolder, provenance: Provenance, settings: str, stand_ins: Mapping[str, list[float]]
    ) -> None:
        self._folder, self._provenance, self._settings = folder, provenance, settings
        self._stand_ins = dict(stand_ins)
        self._weights = repr([(label, model.image_weight) for label, model in provenance.models.items()])

    def write(self, target: Path, *, earlier: Sequence[Part], changed: int) -> None:
        """Write it. `earlier`: parts that may be there already."""
        if len(self._folder.groups) <= ONE_FILE:
            if (target / VECTOR_MANIFEST).is_file():
                shutil.rmtree(target)
            with replacing(target) as file:
                schema = vector_schema(self._provenance)
                write_row_groups(file, schema, map(self._fused, self._folder.tables()))
            return
        there, staged = {part.name: part for part in earlier}, self._folder.path / "whole"
        parts = [self._part(number, there, staged) for number in range(len(self._folder.groups))]
        manifest = VectorManifest(
            settings=self._settings,
            provenance=self._provenance,
            parts=tuple(parts),
            stand_ins=self._stand_ins,
            changed=changed,
        )
        if target.is_file():
            target.unlink()
        target.mkdir(exist_ok=True)
        for part in parts:  # together: for those who read the folder as it is
            if part.name not in there:
                move_file(staged / part.name, target / part.name)
        sync_folder(target)
        write_text(target / VECTOR_MANIFEST, manifest.model_dump_json())

    def _part(self, number: int, there: Mapping[str, Part], staged: Path) -> Part:
        """A part, written aside unless it is there."""
        group = self._folder.groups[number]
        source = group.source
        names = [self._name(source, has_bare=has_bare) for has_bare in (False, True)]
        if known := next(filter(None, map(there.get, names)), None):
            return known.model_copy(update={"shard": group.shard})
        table = self._folder.read(number)
        missing = len(table) - table["missing_reason"].null_count
        table = self._fused(table)
        name = self._name(source, has_bare=missing > 0)  # the stand-ins are known by now
        path = staged / name
        with replacing(path) as file:
            write_row_groups(file, vector_schema(self._provenance.model_copy(update={"key": ""})), [table])
        rows, size_bytes = len(table), path.stat().st_size
        return Part(name=name, source=source, shard=group.shard, rows=rows, bytes=size_bytes, missing=missing)

    def _name(self, source: str, *, has_bare: bool) -> str:
        stand_ins = repr(sorted(self._stand_ins.items())) if has_bare else ""
        return f"part-{content_hash(source, self._settings, self._weights, stand_ins)}.parquet"

    def _fused(self, table: pa.Table) -> pa.Table:
        """A row group with its fused vectors."""
        schema = vector_schema(self._provenance)
        columns = {name: table[name] for name in table.column_names}
        for label, model in self._provenance.models.items():
            image, has_image = matrix_of(table[column_name("image", label)])
            text, has_text = matrix_of(table[column_name("text", label)])
            fused = fuse(image, text, model.image_weight)  # of one that is missing, the other alone
            bare = has_text & ~has_image
            if bare.any():
                fused[bare] = fuse(self._stand_in(label), text[bare], min(model.image_weight, 0.5))
            columns[column_name("vec", label)] = vector_array(
                fused, has_image | has_text, self._provenance.dtype
            )
        return pa.Table.from_pydict(columns, schema=schema)

    def _stand_in(self, label: str) -> Floats:
        """The mean of all image vectors, (D,): what stands in for a missing image in a fused vector.

        Texts are far nearer to queries than images are, so by its text alone a product would come before
        every product that has an image.
        """
        if label not in self._stand_ins:
            column = column_name("image", label)
            tables = self._folder.tables(columns=[column])
            sums = [matrix_of(table[column])[0].sum(axis=0, dtype=np.float64) for table in tables]
            self._stand_ins[label] = unit(np.sum(sums, axis=0)[None])[0].tolist()
        return np.array(self._stand_ins[label], dtype=np.float32)


def copy_vectors(source: Path, target: Path) -> None:
    """Give a vector file a second name, without a second copy of its parts where the disk can do that."""
    manifest = parquet.read_vector_manifest(source)
    if manifest is None:
        if (target / VECTOR_MANIFEST).is_file():
            shutil.rmtree(target)
        keep_copy(source, target)
        return
    if target.is_file():
        target.unlink()
    target.mkdir(exist_ok=True)
    for part in manifest.parts:
        if not (target / part.name).exists():
            keep_copy(source / part.name, target / part.name)
    keep_copy(source / VECTOR_MANIFEST, target / VECTOR_MANIFEST)
    drop_old_parts(target)


def drop_old_parts(vectors: Path) -> None:
    """Remove parts that the manifest of a vector file no longer names."""
    manifest = parquet.read_vector_manifest(vectors)
    if manifest:
        current = {part.name for part in manifest.parts}
        for path in vectors.glob("part-*.parquet"):
            if path.name not in current:
                path.unlink()
