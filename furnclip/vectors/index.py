"""The search table: a LanceDB table made from the vector file, in a folder or on S3.

In: `work/embeddings/master_vectors.parquet`. Out: `work/index.lance`, or `search.index`.

It holds the product columns, the shop's own, `keywords` (see `words`), `details` (what a search shows, as one
JSON text: reading ten columns takes twice the time of the search), the fused vectors and those of the images.
From `search.exact_below` products on each vector column has an IVF index; below that LanceDB compares every
vector. On two cores, with 512 numbers a vector, that takes 8 ms for 5,000 products, 12 for 10,000 and 90 for
100,000; the index takes 3, 4 and 6 (`tests/bench/search.py`). Up to `PACKED_FROM` products it keeps whole
vectors, so that what is missed lay in a partition that was not probed (`search.probes`).

The schema metadata carries the provenance of the vector file, the names of its parts and the vocabulary; what
`upsert` changed of them is in the metadata of `keywords`. A table is replaced by a new version of itself, so
readers of the old one are never disturbed.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.index import FTS, Bitmap, IvfFlat, IvfRq
from pydantic_core import from_json, to_json  # twice as fast as `json`

from furnclip.catalogue import ATTRIBUTES
from furnclip.config import Config, SearchConfig
from furnclip.errors import ConfigError, FurnclipError, InputError, MissingStageError, StorageError
from furnclip.vectors import parquet, words
from furnclip.vectors.parquet import AGAIN, PRODUCT_COLUMNS, SHOWN, Provenance, VectorFile, column_name
from furnclip.vectors.words import Field, Vocabulary

KEYWORDS = "keywords"
DETAILS = "details"
PROVENANCE, _VOCABULARY, PARTS = b"furnclip", b"furnclip_words", b"furnclip_parts"
_FILTERABLE = (*ATTRIBUTES, "split")
KEEP_OLD = timedelta(hours=1)  # for readers that opened the version before this one
_BATCH_ROWS = 1024
_TABLE = re.compile(r"(s3://[^/]+(/.*)?|(?!\w+://).*)/[^/]+\.lance", re.DOTALL)
# Products of each partition that its center is found with, and rounds of finding: a tenth of the time of
# LanceDB's own 256 and 50.
_SAMPLE_RATE = 64
# From so many products on the index holds one bit a number (RaBitQ): whole vectors of a million would fill
# the memory, and reading a third of them takes longer than a search may. Candidates are compared by vectors.
PACKED_FROM = 200_000
_MOST_ROUNDS = 20


@dataclass(frozen=True)
class IndexLocation:
    """Where the table is and what its storage wants to know."""

    uri: str
    options: Mapping[str, str]

    def connect(self) -> tuple[Any, str, Any | None]:
        """The LanceDB database that holds the table, the table's name in it, and the table if it is there."""
        folder, name = self.uri.removesuffix(".lance").rsplit("/", 1)
        database = lancedb.connect(folder, storage_options=dict(self.options))
        try:
            return database, name, database.open_table(name)
        except (ValueError, FileNotFoundError) as error:
            if "not found" in str(error).lower():
                return database, name, None
            raise


def index_location(config: Config) -> IndexLocation:
    """The table of these settings.

    Raises `InputError` for a name that is no table's, `StorageError` or `ConfigError` for a bucket about
    which LanceDB would retry for minutes or panic.
    """
    uri, storage = (config.search.index or str(config.paths.index)).rstrip("/"), config.storage
    if not _TABLE.fullmatch(uri):
        hint = "it is a folder or an `s3://` address ending in `.lance`, e.g. `s3://bucket/shop/index.lance`"
        raise InputError(f"`search.index` cannot be `{uri}`", hint=hint)
    if not uri.startswith("s3://"):
        return IndexLocation(uri, {})
    from furnclip.storage import S3Manager  # boto3, which a local table does not need

    options = {"timeout": f"{storage.timeout_s:g}s", "connect_timeout": "10s", "client_max_retries": "3"}
    if storage.endpoint_url:
        if not storage.endpoint_url.startswith(("http://", "https://")):
            hint = f"begin it with `https://` or `http://`, e.g. `https://{storage.endpoint_url}`"
            raise ConfigError(f"`storage.endpoint_url` cannot be `{storage.endpoint_url}`", hint=hint)
        options["endpoint"] = storage.endpoint_url
        options["allow_http"] = str(storage.endpoint_url.startswith("http://")).lower()
    if storage.region:
        options["region"] = storage.region
    bucket = uri.removeprefix("s3://").split("/")[0]
    with S3Manager.from_config(storage.model_copy(update={"bucket": bucket})) as manager:
        manager.check()
    return IndexLocation(uri, options)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """What LanceDB raises for a table or storage that it cannot use, panics included, as `StorageError`."""
    try:
        yield
    except FurnclipError:
        raise
    except BaseException as error:
        is_theirs = isinstance(error, ValueError | RuntimeError | OSError)
        if not is_theirs and type(error).__name__ != "PanicException":
            raise
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "unknown")
        remote = "check `storage.endpoint_url`, `storage.region`, the bucket and your credentials"
        raise StorageError(
            f"the search table `{uri}` cannot be used: {said[:300]}",
            hint=remote if uri.startswith("s3://") else f"remove `{uri}` and run `furnclip embed` again",
        ) from None


@dataclass(frozen=True)
class IndexReport:
    """The table as it is now."""

    uri: str
    exact: bool  # whether every vector is compared


def table_schema(provenance: Provenance, source: VectorFile | pa.Schema) -> pa.Schema:
    """The columns of a table made of a vector file, or of a table; its metadata are the provenance.

    Where products have several images, the table holds all of them in `image_clip_*`. Vectors of one image
    stay plain: lists of them take LanceDB three times the memory to index.
    """
    schema = source.schema if isinstance(source, VectorFile) else source
    texts = (*PRODUCT_COLUMNS, "missing_reason", KEYWORDS, DETAILS)
    stored = parquet.vector_schema(provenance)
    fields = [*(pa.field(name, pa.string()) for name in texts), *shop_fields(schema)]
    for label in provenance.models:
        fields.append(stored.field(column_name("vec", label)))
        image = stored.field(column_name("image", label))
        has_views = source.has_views() if isinstance(source, VectorFile) else holds_views(schema, image.name)
        fields.append(image.with_type(pa.list_(image.type)) if has_views else image)
    return pa.schema(fields, stored.metadata)


def holds_views(table: pa.Schema, column: str) -> bool:
    """Whether a table holds several images of a product in an image column."""
    return column in table.names and pa.types.is_list(table.field(column).type)


def shop_fields(schema: pa.Schema) -> list[pa.Field]:
    """The shop's own columns in a vector file or table, typed."""
    own = {*PRODUCT_COLUMNS, "missing_reason", KEYWORDS, DETAILS}
    return [field for field in schema if field.name not in own and kind_of(field) is not None]


def vocabulary_of(table: Any, *, where: str) -> Vocabulary:
    """The words of the table's products; raises `InputError` where they are damaged."""
    try:
        packed = base64.b64decode(told_by(table.schema)[_VOCABULARY])
        products, language, frequencies = from_json(zlib.decompress(packed))
        return Vocabulary(int(products), frequencies, language)
    except (KeyError, ValueError, TypeError, zlib.error):
        raise InputError(f"`{where}` does not say which words its products have", hint=AGAIN) from None


def kind_of(field: pa.Field) -> str | None:
    """`text`, `number`, `boolean`, `date` or `list`; None for a column that is none of a shop's, a vector."""
    return next((kind for kind, stored in parquet.COLUMN_TYPES.items() if stored == field.type), None)


def write_index(location: IndexLocation, vectors: Path, search: SearchConfig) -> IndexReport:
    """Make or replace the table from the vector file, then index it."""
    file = VectorFile(vectors)
    with explained(location.uri):
        provenance = parquet.provenance_of(file.schema.metadata, where=vectors)
        provenance = provenance.model_copy(update={"products": file.rows})
        fields = fields_of(file.schema)
        texts = file.batches([field.column for field in fields], rows=_BATCH_ROWS)
        products = (row for batch in texts for row in batch.to_pylist())
        vocabulary = Vocabulary.gather(products, fields, "" if search.language == "auto" else search.language)
        state = state_of(provenance, vocabulary, [path.name for path in parquet.part_paths(vectors)])
        schema = table_schema(provenance, file).with_metadata(state)
        sizes: Counter[str] = Counter()  # products of each group
        for batch in file.batches(["group"]):
            sizes.update(batch.column(0).to_pylist())
        maker, filled = TableRows(schema, file.schema, vocabulary), Counter[str]()

        def rows() -> Iterator[pa.RecordBatch]:
            for batch in file.batches(maker.columns, rows=_BATCH_ROWS):
                made = maker.batch(batch, sizes)
                # Counted on the way: LanceDB would read every vector to tell how many there are.
                filled.update({name: len(made) - made[name].null_count for name in schema.names})
                yield made

        database, name, earlier = location.connect()
        # Overwriting what is not there works too, but LanceDB warns about it.
        mode = "create" if earlier is None else "overwrite"
        table = database.create_table(name, rows(), schema=schema, mode=mode, on_bad_vectors="null")
        # Before the indexes: after them it would join the partitions again and copy every vector once more.
        table.optimize(cleanup_older_than=age_to_remove(earlier and last_written(earlier)))
        vectors_of = [column_name(kind, label) for label in provenance.models for kind in ("vec", "image")]
        is_exact = [_is_exact(table, name, filled[name], search) for name in vectors_of]
        for name in _FILTERABLE:
            table.create_index(name, config=Bitmap())
        # The words come stemmed. Last: `is_index_of` takes it as the sign of completion.
        words_index = FTS(
            base_tokenizer="whitespace",
            max_token_length=None,  # an id may be long
            stem=False,
            remove_stop_words=False,
            ascii_folding=False,
        )
        table.create_index(KEYWORDS, config=words_index)
    return IndexReport(location.uri, all(is_exact))


def state_of(provenance: Provenance, vocabulary: Vocabulary, parts: Sequence[str]) -> dict[bytes, bytes]:
    """What the metadata of the table say. `parts`: of the vector file that it holds."""
    known = to_json([vocabulary.products, vocabulary.language, vocabulary.frequencies])
    return {
        PROVENANCE: provenance.model_dump_json().encode(),
        _VOCABULARY: base64.b64encode(zlib.compress(known, 1)),
        PARTS: json.dumps(parts).encode(),
    }


def told_by(schema: pa.Schema) -> dict[bytes, bytes]:
    """The metadata of a table: those it was made with, and what upserts changed of them since."""
    place = schema.get_field_index(KEYWORDS)
    return {**(schema.metadata or {}), **((schema.field(place).metadata or {}) if place >= 0 else {})}


def last_written(table: Any) -> datetime:
    """When the last version of the table was written."""
    written: datetime = table.list_versions()[-1]["timestamp"]
    return written.astimezone()  # given as local time


def age_to_remove(last: datetime | None) -> timedelta:
    """From which age on versions go: never the one before, however old, because its readers have it open.

    last: when that one was written.
    """
    return KEEP_OLD if last is None else KEEP_OLD + (datetime.now(timezone.utc) - last)


def is_index_of(location: IndexLocation, key: str, search: SearchConfig) -> IndexReport | None:
    """The table, if it was made from the vector file with this key, in this language, and is complete.

    A damaged local table is none. Raises `StorageError` when the bucket refuses.
    """
    try:
        table, provenance = open_index(location)
        if provenance.key != key:
            return None
        language = vocabulary_of(table, where=location.uri).language
        with explained(location.uri):
            indexed = {name for index in table.list_indices() for name in index.columns}
    except (MissingStageError, InputError, StorageError) as error:
        if isinstance(error, StorageError) and location.options:
            raise
        return None
    if KEYWORDS not in indexed or search.language not in ("auto", language):
        return None
    return IndexReport(location.uri, exact=not any(name.startswith("vec_") for name in indexed))


def open_index(location: IndexLocation) -> tuple[Any, Provenance]:
    """The LanceDB table and what made its vectors.

    Raises `MissingStageError` where there is none, `InputError` where it is something else or not whole,
    and `StorageError` when it cannot be read or the bucket refuses.
    """
    with explained(location.uri):
        is_there = location.options or Path(location.uri).exists()  # connecting would make its folder
        table = location.connect()[-1] if is_there else None
        if table is None:
            raise MissingStageError(location.uri, command="furnclip embed")
        products = table.count_rows()
    provenance = parquet.provenance_of(told_by(table.schema), where=location.uri)
    parquet.check_columns(table.schema, table_schema(provenance, table.schema), where=location.uri)
    if provenance.products not in (None, products):
        raise InputError(
            f"the search table `{location.uri}` holds {products} of {provenance.products} products",
            hint="run `furnclip embed` again; it makes the table anew",
        )
    return table, provenance


def _is_exact(table: Any, column: str, products: int, search: SearchConfig) -> bool:
    """Make the IVF index of a column with vectors of so many products where it pays; whether it does not."""
    field = table.schema.field(column)
    make = vector_index(field, products, search.exact_below)
    if make:
        config = make(
            distance_type=distance_of(field),
            num_partitions=partitions_of(products),
            sample_rate=_SAMPLE_RATE,
            max_iterations=_MOST_ROUNDS,
        )
        table.create_index(column, config=config)
    return make is None


def vector_index(field: pa.Field, products: int, exact_below: int) -> type[IvfRq] | type[IvfFlat] | None:
    """The index that a column with so many vectors gets, or None."""
    if products < exact_below:
        return None
    return IvfRq if products >= PACKED_FROM and getattr(field.type, "list_size", 1) % 8 == 0 else IvfFlat


def distance_of(field: pa.Field) -> Literal["cosine", "dot"]:
    """How LanceDB compares the unit vectors of a column: of several views only by cosine."""
    return "cosine" if pa.types.is_list(field.type) else "dot"


class TableRows:
    """Makes rows of a table with a `schema` of those of a vector file with the columns of `stored`."""

    def __init__(self, schema: pa.Schema, stored: pa.Schema, vocabulary: Vocabulary) -> None:
        self._schema, self._fields, self._vocabulary = schema, fields_of(stored), vocabulary
        self._views = {  # columns with all images -> their names in the vector file
            name: name.replace("image", "views", 1)
            for name in schema.names
            if name.startswith("image_clip_") and holds_views(schema, name)
        }
        self._taken = [name for name in schema.names if name not in (KEYWORDS, DETAILS)]
        self.columns = [*self._taken, *self._views.values()]
        """what is needed of the vector file"""

    def batch(self, batch: pa.RecordBatch, sizes: Mapping[str, int]) -> pa.RecordBatch:
        """The rows. `sizes`: products of each group."""
        keywords, details = [], []
        own = [field.name for field in shop_fields(self._schema)]
        for row in batch.select([*SHOWN, *own]).to_pylist():
            keywords.append(self._vocabulary.keywords(row, self._fields))
            shown = {name: row[name] or "" for name in SHOWN}
            columns = {name: row[name] for name in own if row[name] is not None}
            shown |= {"variants": sizes[row["group"]] if row["group"] else 1, "columns": columns}
            details.append(json.dumps(shown, default=str))  # dates as ISO 8601
        columns = {name: batch.column(name) for name in self._taken} | {KEYWORDS: keywords, DETAILS: details}
        for name, views in self._views.items():  # of one image that alone
            image, kind = batch.column(name), self._schema.field(name).type
            ends = np.cumsum(np.asarray(image.is_valid()).astype(np.int32))
            offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
            alone = pa.ListArray.from_arrays(offsets, image.drop_null(), mask=image.is_null())
            columns[name] = pc.coalesce(batch.column(views).cast(kind), alone.cast(kind))
        return pa.RecordBatch.from_pydict(columns, schema=self._schema)


def fields_of(schema: pa.Schema) -> list[Field]:
    """The fields of texts that are indexed, of a vector file or table."""
    return words.fields_of({field.name: kind_of(field) or "" for field in shop_fields(schema)})


def quoted(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def partitions_of(products: int) -> int:
    """As many partitions as products in each, so that finding them costs as much as probing one."""
    return max(1, math.isqrt(products))
