"""Reading `master_vectors.parquet`, one file or a folder of parts; see the package for what is in it.

    master_vectors.parquet/part-HASH.parquet   the rows of one range of a shard, never written again
    master_vectors.parquet/_manifest.json      which parts count, in order, and what made them

Libraries that read Parquet take such a folder for one table, and leave out names that begin with `_`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, StringConstraints

from furnclip.catalogue import ATTRIBUTES
from furnclip.catalogue.columns import Column
from furnclip.errors import InputError, MissingStageError, ModelMismatchError
from furnclip.journal import MANIFEST_NAME, open_regular, parse_json, read_json
from furnclip.vectors.nearest import Floats, Integers, Mask

SHOWN = ("product_id", "title", "clean_title", *ATTRIBUTES, "group", "split", "image")  # to people
PRODUCT_COLUMNS = (*SHOWN, "content_hash")
_TEXTS = (*PRODUCT_COLUMNS, "missing_reason")
# names that the catalogue's own columns cannot have here or in the search table
RESERVED_COLUMNS = (*_TEXTS, "keywords", "details")
KINDS = ("image", "text", "vec", "views")
MODEL_KINDS = ("image", "text", "views")  # what a model says; `vec` is made of it
_METADATA_KEY = b"furnclip"
VECTOR_MANIFEST = f"_{MANIFEST_NAME}"
Dtype = Literal["fp32", "fp16"]
COLUMN_TYPES = {
    "text": pa.string(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "list": pa.list_(pa.string()),
}
_ARROW_TYPES = {"fp32": pa.float32(), "fp16": pa.float16()}
_SMALL_BYTES = 1 << 25
_MOST_TIMES_LARGER = 1000  # of ours, a file without images whose captions are all the same: some 200
AGAIN = "remove it and run `furnclip embed` again"


def column_name(kind: str, label: str) -> str:
    """`image_clip_base`, `text_clip_finetuned`, `vec_clip_base` ..."""
    return f"{kind}_clip_{label}"


class ModelProvenance(BaseModel):
    """Which model made the vectors of one label, and how."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    name: str  # hub id, folder or run name, as given to `load_clip`
    fingerprint: str  # of the weights and the preprocessing; equal fingerprints mean comparable vectors
    dimension: int
    image_px: int
    precision: str  # precision of the towers: `fp32` or `bf16`
    precision_reason: str = ""
    precision_cosine: float | None = None
    """lowest cosine to fp32 on the sample that was checked; null in fp32"""
    image_weight: float = 0.5  # weight of the image in `vec_clip_*`
    image_weight_reason: str = ""  # how the weight was chosen
    request_precision: float | None = None
    """mean average precision of short requests by `vec_clip_*` on validation: how far to trust meaning"""


class Provenance(BaseModel):
    """Everything that made a vector file; stored in its metadata."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    furnclip_version: str = ""
    key: str = ""  # hash of all inputs and settings; equal keys mean there is nothing to do
    dtype: Dtype = "fp32"  # number format of the stored vectors
    preprocessing: str = ""
    source: str = ""  # name of the catalogue file
    columns: tuple[Column, ...] = ()  # the shop's own, as they are in the file
    models: dict[Annotated[str, StringConstraints(pattern="^(base|finetuned)$")], ModelProvenance] = {}
    """by label: `base`, `finetuned`"""
    products: int | None = None  # rows of a complete search table; the vector file has its own count

    def require(self, label: str, fingerprint: str, *, where: Path | str) -> None:
        """Raise `ModelMismatchError` unless the vectors of `label` were made by that very model."""
        made_by = self.models.get(label)
        if made_by is None:
            raise ModelMismatchError(
                f"`{where}` has no {label} vectors, only {', '.join(self.models) or 'none'}",
                hint="run `furnclip embed` to add them",
            )
        if made_by.fingerprint != fingerprint:
            raise ModelMismatchError(
                f"the {label} vectors of `{where}` were made by `{made_by.name}` "
                f"({made_by.fingerprint}), not by the model asked for ({fingerprint})",
                hint="run `furnclip embed` with this model, or ask for the one that made the vectors",
            )


def vector_schema(provenance: Provenance, *, kinds: Sequence[str] = KINDS) -> pa.Schema:
    """The Arrow schema of a file with these models; parts in progress leave `vec` out of `kinds`."""
    value_type = _ARROW_TYPES[provenance.dtype]
    fields = [pa.field(name, pa.string()) for name in PRODUCT_COLUMNS]
    for column in provenance.columns:
        source = {b"source": column.source.encode()}
        fields.append(pa.field(column.name, COLUMN_TYPES[column.kind], metadata=source))
    for label, model in provenance.models.items():
        vector_type = pa.list_(value_type, model.dimension)
        for kind in kinds:
            data_type = pa.list_(vector_type) if kind == "views" else vector_type
            fields.append(pa.field(column_name(kind, label), data_type))
    fields.append(pa.field("missing_reason", pa.string()))
    return pa.schema(fields, metadata={_METADATA_KEY: provenance.model_dump_json().encode()})


def vector_array(vectors: Floats, present: Mask, dtype: Dtype) -> pa.FixedSizeListArray:
    """`vectors` (N, D) as an Arrow column that is null where not `present` (N,)."""
    values = np.where(present[:, None], vectors, 0).astype(np.float16 if dtype == "fp16" else np.float32)
    flat, side = pa.array(values.reshape(-1)), vectors.shape[1]
    return pa.FixedSizeListArray.from_arrays(flat, list_size=side, mask=pa.array(~present))


def views_array(views: Floats, counts: Integers, dtype: Dtype) -> pa.ListArray:
    """The views (V, D) of each product as an Arrow column of lists; null for those with one view or none.

    counts: (N,) views of each product.
    """
    several = counts > 1
    kept = vector_array(views[np.repeat(several, counts)], np.ones(int(counts[several].sum()), bool), dtype)
    offsets = pa.array(np.cumsum([0, *np.where(several, counts, 0)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, kept, mask=pa.array(~several))


@contextmanager
def open_parquet(path: Path, *, dictionaries: bool = False) -> Iterator[pq.ParquetFile]:
    """The file, open; with `dictionaries` its texts are read as such, each value once.

    Raises `MissingStageError` where there is none, and `InputError` that names the file where it is another
    one or, within the block, where its content cannot be decoded.
    """
    try:
        open_regular(path, what="the vector file").close()
    except FileNotFoundError:
        raise MissingStageError(path, command="furnclip embed") from None
    with _explained(path, "is not a Parquet file"):
        texts = _TEXTS if dictionaries else None
        # Buffered ahead, a reader of all rows keeps the whole file in memory.
        file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True, read_dictionary=texts)
    with file, _explained(path, "is damaged"):
        numbers = sum(getattr(field.type, "list_size", 1) for field in file.schema_arrow)
        _check_unpacked(path, 4 * numbers * file.metadata.num_rows)
        yield file


@contextmanager
def _explained(path: Path, problem: str) -> Iterator[None]:
    """What Arrow raises for content that it cannot read, as an `InputError` that names the file."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the content
        first_line = (str(error).splitlines() or [""])[0]
        raise InputError(f"`{path}` {problem}: {first_line[:200]}", hint=AGAIN) from None


def _check_unpacked(path: Path, size_bytes: int) -> None:
    """Raise `InputError` where a small file would take a lot of memory: that is none of ours."""
    packed_bytes = sum(part.stat().st_size for part in part_paths(path))
    if size_bytes > _SMALL_BYTES + _MOST_TIMES_LARGER * packed_bytes:
        taken = f"would take {size_bytes >> 20} MB of memory"
        raise InputError(f"`{path}` has {packed_bytes} bytes and {taken}", hint=AGAIN)


def provenance_of(metadata: Mapping[bytes, bytes] | None, *, where: Path | str) -> Provenance:
    """The provenance in schema metadata; raises `InputError` where there is none that can be read."""
    hint = "it was not written by this version of `furnclip embed`; run that to make it again"
    stored = (metadata or {}).get(_METADATA_KEY)
    if stored is None:
        raise InputError(f"`{where}` does not say which model made it", hint=hint)
    provenance = parse_json(stored, Provenance, what=f"the metadata of `{where}`", hint=hint)
    if not provenance.models:
        raise InputError(f"`{where}` holds no vectors", hint=AGAIN)
    return provenance


def check_columns(found: pa.Schema, wanted: pa.Schema, *, where: Path | str) -> None:
    """Raise `InputError` unless the `wanted` columns are there with their types."""
    for field in wanted:
        number = found.get_field_index(field.name)
        if number < 0:
            raise InputError(f"`{where}` has no column `{field.name}`", hint=AGAIN)
        data_type = found.field(number).type
        if pa.types.is_fixed_size_list(data_type):  # whether single numbers may be null does not count
            data_type = pa.list_(data_type.value_type, data_type.list_size)
        if data_type != field.type:
            problem = f"holds {data_type}, not {field.type}"
            raise InputError(f"column `{field.name}` of `{where}` {problem}", hint=AGAIN)


def read_provenance(path: Path, *, kinds: Sequence[str] = KINDS) -> Provenance:
    """Which models made the vectors in `path`, whose columns are checked; the rows are not read."""
    schema = VectorFile(path).schema
    provenance = provenance_of(schema.metadata, where=path)
    needed = provenance.model_copy(update={"columns": ()})  # a file of an earlier release has no others
    kinds = [kind for kind in kinds if kind != "views"]
    check_columns(schema, vector_schema(needed, kinds=kinds), where=path)
    return provenance


class Part(BaseModel):
    """One part of a vector file that is a folder."""

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^part-[0-9a-f]+\.parquet$")]
    source: str  # names the rows it was made from
    shard: str = ""  # names the shard that has them
    rows: int
    bytes: int
    missing: int
    """rows without an image vector"""


class VectorManifest(BaseModel):
    """Which parts are the vector file. It is written last."""

    model_config = ConfigDict(frozen=True)

    settings: str  # hash of models and settings: parts of others cannot be kept
    provenance: Provenance
    parts: tuple[Part, ...]
    stand_ins: dict[str, list[float]] = {}
    """by label, the mean image vector that stands in for a missing one"""
    changed: int = 0
    """products encoded since image weights and stand-ins were chosen"""


def read_vector_manifest(path: Path) -> VectorManifest | None:
    """The manifest of a vector file, None where it is one file. Raises `InputError` for a damaged one."""
    if not (path / VECTOR_MANIFEST).is_file():
        return None
    return read_json(path / VECTOR_MANIFEST, VectorManifest, what="the manifest", hint=AGAIN)


def part_paths(path: Path) -> list[Path]:
    """The Parquet files of a vector file, in order."""
    manifest = read_vector_manifest(path)
    return [path / part.name for part in manifest.parts] if manifest else [path]


class VectorFile:
    """A vector file, whatever the number of its parts; all of it raises as `open_parquet` does."""

    def __init__(self, path: Path) -> None:
        manifest = read_vector_manifest(path)
        self.paths = part_paths(path)
        with open_parquet(self.paths[0]) as first:
            self.schema: pa.Schema = first.schema_arrow
            self.rows: int = first.metadata.num_rows
        if manifest:
            self.rows = sum(part.rows for part in manifest.parts)
            told = manifest.provenance.model_dump_json().encode()
            self.schema = self.schema.with_metadata({_METADATA_KEY: told})

    def batches(self, columns: Sequence[str], rows: int = 65536) -> Iterator[pa.RecordBatch]:
        """The rows in order, at most so many at a time."""
        for path in self.paths:
            with open_parquet(path) as file:
                yield from file.iter_batches(batch_size=rows, columns=list(columns))

    def has_views(self) -> bool:
        """Whether some product has several images."""
        columns = [name for name in self.schema.names if name.startswith("views_clip_")]
        return any(len(views) > views.null_count for batch in self.batches(columns) for views in batch)


class VectorTable:
    """One vector file: its products, and its vectors as matrices.

    Columns are read when asked for; a row number means the same product in `products`, `matrix` and
    `present`. Raises `MissingStageError` where there is no file, and `InputError` for another one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.provenance = read_provenance(path)
        self._matrices: dict[str, tuple[Floats, Mask]] = {}
        self._file = VectorFile(path)
        self.columns: tuple[str, ...] = tuple(self._file.schema.names)

    def __len__(self) -> int:
        return self._file.rows

    @cached_property
    def products(self) -> list[dict[str, str | None]]:
        """One dict a row with everything but the vectors."""
        tables = []
        for path in self._file.paths:
            with open_parquet(path, dictionaries=True) as file:  # each text once, however often it occurs
                tables.append(file.read(columns=list(_TEXTS)).select(_TEXTS))
        table = pa.concat_tables(tables)
        chunks = [chunk for column in table.columns for chunk in column.chunks]
        lengths = [pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in chunks]
        _check_unpacked(self.path, sum(pc.sum(each).as_py() or 0 for each in lengths))
        rows: list[dict[str, str | None]] = table.cast(
            pa.schema([(n, pa.string()) for n in _TEXTS])
        ).to_pylist()
        return rows

    def matrix(self, name: str) -> Floats:
        """The vectors of column `name` as float32 (N, D); rows that have none are zero."""
        return self._vectors(name)[0]

    def present(self, name: str) -> Mask:
        """Which rows have a vector in column `name`, (N,)."""
        return self._vectors(name)[1]

    def _vectors(self, name: str) -> tuple[Floats, Mask]:
        if name in self._matrices:
            return self._matrices[name]
        labels = self.provenance.models
        vectors = [column_name(kind, label) for kind in ("image", "text", "vec") for label in labels]
        if name not in vectors:
            hint = f"vectors there: {', '.join(vectors)}"
            raise InputError(f"`{self.path}` has no column `{name}`", hint=hint)
        dimension = self._file.schema.field(name).type.list_size
        matrix = np.zeros((len(self), dimension), dtype=np.float32)  # (N, D)
        present = np.zeros(len(self), dtype=bool)
        start = 0
        for batch in self._file.batches([name]):
            stop = start + batch.num_rows
            matrix[start:stop], present[start:stop] = matrix_of(batch.column(0))
            start = stop
        self._matrices[name] = matrix, present
        return matrix, present


def matrix_of(column: pa.Array | pa.ChunkedArray) -> tuple[Floats, Mask]:
    """A column of fixed-size lists as float32 (N, D), zero where null, and which are there (N,)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    present = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    matrix = np.zeros((len(array), array.type.list_size), dtype=np.float32)
    # `flatten` leaves null rows out, so what remains belongs to the rows that are there.
    values = array.flatten().to_numpy(zero_copy_only=False)
    matrix[present] = values.reshape(-1, array.type.list_size)
    return matrix, present
