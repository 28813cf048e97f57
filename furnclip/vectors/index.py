"""The search table: a LanceDB table made from the vector file, in a folder or on S3.

In: `work/embeddings/master_vectors.parquet`. Out: `work/index.lance`, or `search.index`.

It holds the product columns, `keywords` (everything one may search by word), `details` (what a search
shows, as one JSON text: reading ten columns takes twice the time of the search) and the fused vectors,
with an index on the words, one on each attribute that filters use, and from `search.exact_below` products
on an IVF index on each vector column; below that LanceDB compares every vector, which is exact. On two
cores, with 512 numbers a vector, that takes 8 ms for 5,000 products, 12 for 10,000 and 90 for 100,000; the
index takes 3, 4 and 6 (`tests/bench/search.py`).

The schema metadata carries the provenance of the vector file. A table is replaced by a new version of
itself, so readers of the old one are never disturbed, on S3 neither.

The IVF index keeps whole vectors in its partitions: what is returned is ordered by the exact cosine,
and what is missed lay in a partition that was not looked into (`search.probes`). Left to itself LanceDB
makes partitions of some 4,000 products, of which any useful number of probes is nearly all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
from lancedb.index import FTS, Bitmap, IvfFlat

from furnclip.catalogue import ATTRIBUTES
from furnclip.config import Config, SearchConfig
from furnclip.errors import ConfigError, FurnclipError, InputError, MissingStageError, StorageError
from furnclip.relevance import UNKNOWN
from furnclip.vectors.parquet import (
    PRODUCT_COLUMNS,
    Provenance,
    check_columns,
    column_name,
    open_parquet,
    provenance_of,
    reading,
)

KEYWORDS = "keywords"
DETAILS = "details"
SHOWN = ("product_id", "title", "clean_title", *ATTRIBUTES, "group", "split", "image")  # in `details`
_SEARCHABLE = ("title", "clean_title", *ATTRIBUTES)
_FILTERABLE = (*ATTRIBUTES, "split")
_KEEP_OLD = timedelta(hours=1)  # for readers that opened the version before this one
_BATCH_ROWS = 1024
# Products of each partition that its centre is found with, and rounds of finding: a tenth of the time of
# LanceDB's own 256 and 50.
_SAMPLE_RATE = 64
_MOST_ROUNDS = 20
_TABLE = re.compile(r"(s3://[^/]+(/.*)?|(?!\w+://).*)/[^/]+\.lance", re.DOTALL)


@dataclass(frozen=True)
class IndexLocation:
    """Where the table is and what its storage wants to know."""

    uri: str
    options: Mapping[str, str]

    @property
    def parent(self) -> str:
        return self.uri.rsplit("/", 1)[0]

    @property
    def table(self) -> str:
        return self.uri.rsplit("/", 1)[1].removesuffix(".lance")


@dataclass(frozen=True)
class IndexReport:
    """The table as it is now."""

    uri: str
    products: int
    exact: bool
    """whether every vector is compared"""


def index_location(config: Config) -> IndexLocation:
    """The table of these settings. Raises `InputError` for a name that is no table's."""
    uri = config.search.index or str(config.paths.index)
    uri = uri.rstrip("/")
    if not _TABLE.fullmatch(uri):
        raise InputError(
            f"`search.index` cannot be `{uri}`",
            hint="it is a folder or an `s3://` address ending in `.lance`, e.g. `s3://bucket/shop/index.lance`",
        )
    if uri.startswith("s3://"):
        _check_bucket(uri, config)
        return IndexLocation(uri, _storage_options(config))
    return IndexLocation(uri, {})


def _check_bucket(uri: str, config: Config) -> None:
    """Raise `StorageError` or `ConfigError` for what LanceDB would retry for minutes or panic about."""
    from furnclip.storage import S3Manager  # boto3, which a local table does not need

    endpoint_url = config.storage.endpoint_url
    if endpoint_url and not endpoint_url.startswith(("http://", "https://")):
        raise ConfigError(
            f"`storage.endpoint_url` cannot be `{endpoint_url}`",
            hint=f"begin it with `https://` or `http://`, e.g. `https://{endpoint_url}`",
        )
    bucket = uri.removeprefix("s3://").split("/")[0]
    storage = config.storage.model_copy(update={"bucket": bucket})
    with S3Manager.from_config(storage) as manager:
        manager.check()


def _storage_options(config: Config) -> dict[str, str]:
    storage = config.storage
    options = {"timeout": f"{storage.timeout_s:g}s", "connect_timeout": "10s", "client_max_retries": "3"}
    if storage.endpoint_url:
        options["endpoint"] = storage.endpoint_url
        options["allow_http"] = str(storage.endpoint_url.startswith("http://")).lower()
    if storage.region:
        options["region"] = storage.region
    return options


def write_index(location: IndexLocation, vectors: Path, search: SearchConfig) -> IndexReport:
    """Make or replace the table from the vector file, then index it."""
    with reading(vectors), open_parquet(vectors) as file, _explained(location):
        provenance = provenance_of(file.schema_arrow.metadata, where=vectors)
        provenance = provenance.model_copy(update={"products": file.metadata.num_rows})
        schema = _schema(provenance, file.schema_arrow)
        database = lancedb.connect(location.parent, storage_options=dict(location.options))
        # Overwriting what is not there works too, but LanceDB warns about it.
        mode = "create" if _open_table(database, location) is None else "overwrite"
        table = database.create_table(
            location.table, _batches(file, schema), schema=schema, mode=mode, on_bad_vectors="null"
        )
        _index(table, provenance, search)
    return _report(location, table)


def is_index_of(location: IndexLocation, key: str) -> IndexReport | None:
    """The table, if it was made from the vector file with this key and is complete; else None.

    A damaged local table is none. Raises `StorageError` when the bucket refuses.
    """
    try:
        table, provenance = open_index(location)
        with _explained(location):
            words = {name for index in table.list_indices() for name in index.columns}
    except StorageError:
        if location.options:
            raise
        return None
    except (MissingStageError, InputError):
        return None
    return _report(location, table) if provenance.key == key and KEYWORDS in words else None


def open_index(location: IndexLocation) -> tuple[Any, Provenance]:
    """The LanceDB table and what made its vectors.

    Raises `MissingStageError` where there is none, `InputError` where it is something else or not whole,
    and `StorageError` when it cannot be read or the bucket refuses.
    """
    with _explained(location):
        database = lancedb.connect(location.parent, storage_options=dict(location.options))
        table = _open_table(database, location)
        if table is None:
            raise MissingStageError(location.uri, command="furnclip embed")
        products = table.count_rows()
    provenance = provenance_of(table.schema.metadata, where=location.uri)
    texts = (*PRODUCT_COLUMNS, "missing_reason", KEYWORDS, DETAILS)
    check_columns(table.schema, provenance, where=location.uri, texts=texts, kinds=("vec",))
    if provenance.products not in (None, products):
        raise InputError(
            f"the search table `{location.uri}` holds {products} of {provenance.products} products",
            hint="run `furnclip embed` again; it makes the table anew",
        )
    return table, provenance


def _open_table(database: Any, location: IndexLocation) -> Any | None:
    """The table, or None where there is none."""
    try:
        return database.open_table(location.table)
    except (ValueError, FileNotFoundError) as error:
        if "not found" in str(error).lower():
            return None
        raise


def _schema(provenance: Provenance, stored: pa.Schema) -> pa.Schema:
    fields = [pa.field(name, pa.string()) for name in (*PRODUCT_COLUMNS, "missing_reason", KEYWORDS, DETAILS)]
    fields += [stored.field(column_name("vec", label)) for label in provenance.models]
    return pa.schema(fields, metadata=provenance.metadata())


def _batches(file: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    names = [name for name in schema.names if name not in (KEYWORDS, DETAILS)]
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=names):
        rows = batch.select(SHOWN).to_pylist()
        made = {KEYWORDS: map(_words, rows), DETAILS: map(_details, rows)}
        columns = [
            pa.array(made[name], pa.string()) if name in made else batch.column(name) for name in schema.names
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _words(row: Mapping[str, str | None]) -> str:
    """Everything that a product can be found by, each text once."""
    texts = [(row[name] or "").strip() for name in _SEARCHABLE]
    return " ".join(dict.fromkeys(text for text in texts if text.lower() not in UNKNOWN))


def _details(row: Mapping[str, str | None]) -> str:
    return json.dumps({name: value or "" for name, value in row.items()})


def _index(table: Any, provenance: Provenance, search: SearchConfig) -> None:
    # Before the indexes: after them it would join the small partitions again and copy every vector once more.
    table.optimize(cleanup_older_than=_KEEP_OLD)
    for label in provenance.models:
        column = column_name("vec", label)
        products = table.count_rows(f"{column} IS NOT NULL")
        if products >= search.exact_below:
            table.create_index(column, config=_partitioned(products))
    for name in _FILTERABLE:
        table.create_index(name, config=Bitmap())
    table.create_index(KEYWORDS, config=FTS())  # last: `is_index_of` takes it as the sign of completion


def partitions_of(products: int) -> int:
    """As many partitions as products in each, so that finding them costs as much as looking into one."""
    return max(1, math.isqrt(products))


def _partitioned(products: int) -> IvfFlat:
    return IvfFlat(
        distance_type="dot",
        num_partitions=partitions_of(products),
        sample_rate=_SAMPLE_RATE,
        max_iterations=_MOST_ROUNDS,
    )


def _report(location: IndexLocation, table: Any) -> IndexReport:
    indexed = {name for index in table.list_indices() for name in index.columns}
    exact = not any(name.startswith("vec_") for name in indexed)
    return IndexReport(location.uri, table.count_rows(), exact)


@contextmanager
def _explained(location: IndexLocation) -> Iterator[None]:
    """What LanceDB raises as one of our errors."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, FurnclipError) or not is_broken(error):
            raise
        raise broken_table(location.uri, error) from None


def is_broken(error: BaseException) -> bool:
    """Whether LanceDB raises this for a table or storage that it cannot use, panics included."""
    return isinstance(error, ValueError | RuntimeError | OSError) or type(error).__name__ == "PanicException"


def broken_table(uri: str, error: BaseException) -> StorageError:
    """The error a user should see for one of LanceDB's."""
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "unknown")
    remote = "check `storage.endpoint_url`, `storage.region`, the bucket and your credentials"
    return StorageError(
        f"the search table `{uri}` cannot be used: {first_line[:300]}",
        hint=remote if uri.startswith("s3://") else f"remove `{uri}` and run `furnclip embed` again",
    )
