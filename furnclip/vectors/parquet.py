"""Reading and writing `master_vectors.parquet`; see the package for what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, StringConstraints

from furnclip.errors import InputError, MissingStageError, ModelMismatchError
from furnclip.journal import open_regular, parse_json
from furnclip.vectors.nearest import Floats

PRODUCT_COLUMNS = (
    "product_id",
    "title",
    "clean_title",
    "style",
    "material",
    "color",
    "object_type",
    "group",
    "split",
    "image",
    "content_hash",
)
_TEXTS = (*PRODUCT_COLUMNS, "missing_reason")
LABELS = ("base", "finetuned")
KINDS = ("image", "text", "vec")
METADATA_KEY = b"furnclip"
_LABEL = f"^({'|'.join(LABELS)})$"
Dtype = Literal["fp32", "fp16"]
_ARROW_TYPES = {"fp32": pa.float32(), "fp16": pa.float16()}
_SMALL_BYTES = 1 << 25
_MOST_TIMES_LARGER = (
    1000  # a file of ours whose products have neither images nor different captions: some 200
)
_UNREADABLE = (pa.ArrowException, UnicodeDecodeError, MemoryError, OSError)  # as Arrow raises them
_AGAIN = "remove it and run `furnclip embed` again"


def column_name(kind: str, label: str) -> str:
    """`image_clip_base`, `text_clip_finetuned`, `vec_clip_base` ..."""
    return f"{kind}_clip_{label}"


class ModelProvenance(BaseModel):
    """Which model made the vectors of one label, and how."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    name: str
    """hub id, folder or run name, as given to `load_clip`"""
    fingerprint: str
    """of the weights and the preprocessing; equal fingerprints mean comparable vectors"""
    dimension: int
    image_px: int
    precision: str
    """precision of the towers: `fp32` or `bf16`"""
    precision_reason: str = ""
    precision_cosine: float | None = None
    """lowest cosine to fp32 on the sample that was checked; null in fp32"""
    image_weight: float = 0.5
    """weight of the image in `vec_clip_*`"""
    image_weight_reason: str = ""
    """how the share was chosen"""


class Provenance(BaseModel):
    """Everything that made a vector file; stored in its metadata."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    furnclip_version: str = ""
    key: str = ""
    """hash of all inputs and settings; equal keys mean there is nothing to do"""
    dtype: Dtype = "fp32"
    """number format of the stored vectors"""
    preprocessing: str = ""
    source: str = ""
    """name of the catalogue file"""
    models: dict[Annotated[str, StringConstraints(pattern=_LABEL)], ModelProvenance] = {}
    """by label: `base`, `finetuned`"""
    products: int | None = None
    """rows of a complete search table; the vector file has its own count"""

    def metadata(self) -> dict[bytes, bytes]:
        """As Parquet or Lance schema metadata."""
        return {METADATA_KEY: self.model_dump_json().encode()}

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
    for label, model in provenance.models.items():
        vector_type = pa.list_(value_type, model.dimension)
        fields += [pa.field(column_name(kind, label), vector_type) for kind in kinds]
    fields.append(pa.field("missing_reason", pa.string()))
    return pa.schema(fields, metadata=provenance.metadata())


def vector_array(vectors: Floats, present: npt.NDArray[np.bool_], dtype: Dtype) -> pa.FixedSizeListArray:
    """`vectors` (N, D) as an Arrow column that is null where not `present` (N,)."""
    values = np.where(present[:, None], vectors, 0).astype(np.float16 if dtype == "fp16" else np.float32)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), list_size=vectors.shape[1], mask=pa.array(~present)
    )


def open_parquet(path: Path, *, dictionaries: bool = False) -> pq.ParquetFile:
    """The file, open; with `dictionaries` its texts are read as such, each value once.

    Raises `MissingStageError` where there is none, `InputError` for another file.
    """
    try:
        open_regular(path, what="the vector file").close()
    except FileNotFoundError:
        raise MissingStageError(path, command="furnclip embed") from None
    try:
        # Buffered ahead, a reader of all rows keeps the whole file in memory.
        file = pq.ParquetFile(
            path,
            pre_buffer=False,
            page_checksum_verification=True,
            read_dictionary=_TEXTS if dictionaries else None,
        )
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the content
        raise InputError(f"`{path}` is not a Parquet file: {error}", hint=_AGAIN) from None
    fields = [file.schema_arrow.field(number) for number in range(len(file.schema_arrow))]
    numbers = sum(getattr(field.type, "list_size", 1) for field in fields)
    check_unpacked(path, 4 * numbers * file.metadata.num_rows)
    return file


def check_unpacked(path: Path, size_bytes: int) -> None:
    """Raise `InputError` where a small file would take a lot of memory: that is none of ours."""
    packed_bytes = path.stat().st_size
    if size_bytes > _SMALL_BYTES + _MOST_TIMES_LARGER * packed_bytes:
        raise InputError(
            f"`{path}` has {packed_bytes} bytes and would take {size_bytes >> 20} MB of memory", hint=_AGAIN
        )


def decoded_texts(path: Path, table: pa.Table) -> pa.Table:
    """`table` with its texts as plain strings, if they fit: each is stored once, however often it occurs."""
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = table.column(number)
            lengths = [pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks]
            check_unpacked(path, sum(pc.sum(chunk).as_py() or 0 for chunk in lengths))
            table = table.set_column(number, field.with_type(pa.string()), column.cast(pa.string()))
    return table


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What Arrow raises for content that cannot be decoded, as an `InputError` that names the file."""
    try:
        yield
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the content
        first_line = (str(error).splitlines() or [""])[0]
        raise InputError(f"`{path}` is damaged: {first_line[:200]}", hint=_AGAIN) from None


def provenance_of(metadata: Mapping[bytes, bytes] | None, *, where: Path | str) -> Provenance:
    """The provenance in schema metadata; raises `InputError` where there is none that can be read."""
    hint = "it was not written by this version of `furnclip embed`; run that to make it again"
    stored = (metadata or {}).get(METADATA_KEY)
    if stored is None:
        raise InputError(f"`{where}` does not say which model made it", hint=hint)
    return parse_json(stored, Provenance, what=f"the metadata of `{where}`", hint=hint)


def check_columns(
    schema: pa.Schema,
    provenance: Provenance,
    *,
    where: Path | str,
    texts: Sequence[str] = _TEXTS,
    kinds: Sequence[str] = KINDS,
) -> None:
    """Raise `InputError` unless the columns are there with the types that the provenance promises."""
    wanted = {name: pa.string() for name in texts}
    for label, model in provenance.models.items():
        vector_type = pa.list_(_ARROW_TYPES[provenance.dtype], model.dimension)
        wanted |= {column_name(kind, label): vector_type for kind in kinds}
    for name, data_type in wanted.items():
        number = schema.get_field_index(name)
        if number < 0:
            raise InputError(f"`{where}` has no column `{name}`", hint=_AGAIN)
        if not _same_type(schema.field(number).type, data_type):
            raise InputError(
                f"column `{name}` of `{where}` holds {schema.field(number).type}, not {data_type}",
                hint=_AGAIN,
            )
    if not provenance.models:
        raise InputError(f"`{where}` holds no vectors", hint=_AGAIN)


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether they hold the same; the name and the nullability of a list's items do not count."""
    if pa.types.is_fixed_size_list(found) and pa.types.is_fixed_size_list(wanted):
        return bool(found.list_size == wanted.list_size and found.value_type == wanted.value_type)
    return bool(found == wanted)


def read_provenance(path: Path, *, kinds: Sequence[str] = KINDS) -> Provenance:
    """Which models made the vectors in `path`, whose columns are checked; the rows are not read."""
    with open_parquet(path) as file:
        provenance = provenance_of(file.schema_arrow.metadata, where=path)
        check_columns(file.schema_arrow, provenance, where=path, kinds=kinds)
    return provenance


def read_vectors(path: Path) -> VectorTable:
    """The vector file at `path`, columns read when asked for.

    Raises `MissingStageError` when it does not exist and `InputError` when it is something else.
    """
    return VectorTable(path, read_provenance(path))


class VectorTable:
    """One vector file: its products, and its vectors as matrices.

    A row number means the same product in `products`, `matrix` and `present`.
    """

    def __init__(self, path: Path, provenance: Provenance) -> None:
        self.path = path
        self.provenance = provenance
        with open_parquet(path) as file:
            self.columns: tuple[str, ...] = tuple(file.schema_arrow.names)
            self._count = int(file.metadata.num_rows)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def products(self) -> list[dict[str, str | None]]:
        """One dict a row with everything but the vectors."""
        names = [name for name in self.columns if name in (*PRODUCT_COLUMNS, "missing_reason")]
        with reading(self.path), open_parquet(self.path, dictionaries=True) as file:
            rows: list[dict[str, str | None]] = decoded_texts(self.path, file.read(columns=names)).to_pylist()
        return rows

    def matrix(self, name: str) -> Floats:
        """The vectors of column `name` as float32 (N, D); rows that have none are zero."""
        return self._vectors(name)[0]

    def present(self, name: str) -> npt.NDArray[np.bool_]:
        """Which rows have a vector in column `name`, (N,)."""
        return self._vectors(name)[1]

    def _vectors(self, name: str) -> tuple[Floats, npt.NDArray[np.bool_]]:
        if name not in self.columns:
            vectors = [column for column in self.columns if "_clip_" in column]
            raise InputError(
                f"`{self.path}` has no column `{name}`", hint=f"vectors there: {', '.join(vectors)}"
            )
        if name not in self._matrices:
            self._matrices[name] = self._read_matrix(name)
        return self._matrices[name]

    @cached_property
    def _matrices(self) -> dict[str, tuple[Floats, npt.NDArray[np.bool_]]]:
        return {}

    def _read_matrix(self, name: str) -> tuple[Floats, npt.NDArray[np.bool_]]:
        with reading(self.path), open_parquet(self.path) as file:
            dimension = file.schema_arrow.field(name).type.list_size
            matrix = np.zeros((self._count, dimension), dtype=np.float32)  # (N, D)
            present = np.zeros(self._count, dtype=bool)
            start = 0
            for batch in file.iter_batches(columns=[name]):
                stop = start + batch.num_rows
                matrix[start:stop], present[start:stop] = matrix_of(batch.column(0))
                start = stop
        return matrix, present


def matrix_of(column: pa.Array | pa.ChunkedArray) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """A column of fixed-size lists as float32 (N, D), zero where null, and which are there (N,)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    present = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    matrix = np.zeros((len(array), array.type.list_size), dtype=np.float32)
    # `flatten` leaves null rows out, so what remains belongs to the rows that are there.
    values = array.flatten().to_numpy(zero_copy_only=False)
    matrix[present] = values.reshape(-1, array.type.list_size)
    return matrix, present
