"""A night's change in the search table: rows that differ are merged into it, those that are gone deleted.

What differs is told by the parts of the vector file: the table names those that it was made of, and a part
that is in both needs no reading. So the work grows with the change. Every step is a version of the table of
its own and can be done again; the last one says that the table is in line. Readers keep the version that they
opened.

LanceDB compares what no index holds yet. To bring indices up to date it writes all of them, so that waits
until more than one product in `_INDEXED_IN` is outside of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from furnclip.config import SearchConfig
from furnclip.errors import FurnclipError
from furnclip.vectors.index import (
    DETAILS,
    KEYWORDS,
    PROVENANCE,
    IndexLocation,
    IndexReport,
    TableRows,
    age_to_remove,
    explained,
    holds_views,
    last_written,
    open_index,
    parts_of,
    shop_fields,
    shop_fields_of,
    state_of,
    told_by,
    vector_index,
    vocabulary_of,
)
from furnclip.vectors.parquet import (
    PRODUCT_COLUMNS,
    Provenance,
    VectorFile,
    open_vectors,
    part_paths,
    provenance_of,
)

_INDEXED_IN = 200
_MOST_VERSIONS = 100  # each holds the vocabulary
_MOST_CHANGED = 0.2  # of the products; with more, the table is made anew
_IDS_AT_ONCE = 1000
_TARGET, _SINCE = b"furnclip_target", b"furnclip_since"
"""of an upsert that was begun: the key that it leads to, and when the version before it was written"""


def update_index(location: IndexLocation, vectors: Path, search: SearchConfig) -> IndexReport | None:
    """Merge what changed in the vector file into the table; None where it has to be made anew."""
    try:
        table, made = open_index(location)
        vocabulary = vocabulary_of(table, where=location.uri)
    except FurnclipError:
        return None
    with open_vectors(vectors) as file, explained(location.uri):
        wanted = provenance_of(file.schema.metadata, where=vectors).model_copy(update={"products": file.rows})
        before, now = parts_of(table), [path.name for path in part_paths(vectors)]
        gone, come = sorted({*before} - {*now}), sorted({*now} - {*before})
        can = (
            _leads_to(table, made, wanted)
            and search.language in ("auto", vocabulary.language)
            and not {*before}.isdisjoint(now)
            and all((vectors / name).is_file() for name in gone)
            and _has_its_indices(table, file.rows, search.exact_below)
            and all(_has_room(table.schema, vectors / name) for name in come)
        )
        if not can:
            return None
        change = _compare(vectors, gone, come, file)
        if len(change.changed) + len(change.deleted) > _MOST_CHANGED * file.rows:
            return None
        since = _begin(table, made, wanted)
        vocabulary = vocabulary.changed(change.old, change.new, shop_fields_of(file.schema))
        maker = TableRows.of(table.schema, file.schema, vocabulary)
        sizes, others = _groups(table, change)
        for batch in _batches(vectors, come, maker.columns):
            _merge(table, maker.batch(batch.filter(pc.is_in(batch["product_id"], change.moved)), sizes))
        for rows in others:
            _merge(table, rows)
        for start in range(0, len(change.deleted), _IDS_AT_ONCE):
            table.delete(_among("product_id", change.deleted[start : start + _IDS_AT_ONCE]))
        _tidy(table, file.rows, since)
        _note(table, state_of(wanted, vocabulary, now))
    return IndexReport(location.uri, exact=not any(map(_is_vector, table.list_indices())))


@dataclass(frozen=True)
class _Change:
    """Products that differ, as they were and as they are. `changed` are merged, `deleted` deleted."""

    old: list[dict[str, Any]]
    new: list[dict[str, Any]]

    @cached_property
    def changed(self) -> list[str]:
        return [row["product_id"] for row in self.new]

    @cached_property
    def deleted(self) -> list[str]:
        return sorted({row["product_id"] for row in self.old}.difference(self.changed))

    @cached_property
    def moved(self) -> pa.Array:
        """All that the table has otherwise, or will have."""
        return pa.array(sorted({*self.changed, *self.deleted}), pa.string())


def _compare(vectors: Path, gone: Sequence[str], come: Sequence[str], file: VectorFile) -> _Change:
    """How the rows of some parts differ from those of others. Vectors follow from the hash of the content.

    Of a product without an image the vector may differ all the same. Holds a number a row.
    """
    columns = [*PRODUCT_COLUMNS, "missing_reason", *(field.name for field in shop_fields(file.schema))]

    def rows(names: Iterable[str]) -> Iterator[dict[str, Any]]:
        for batch in _batches(vectors, names, columns):
            yield from batch.to_pylist()

    old = {row["product_id"]: hash(repr(row)) for row in rows(gone)}
    new = {row["product_id"]: hash(repr(row)) for row in rows(come) if not row["missing_reason"]}
    same = {key for key, told in new.items() if old.get(key) == told}
    return _Change(*([row for row in rows(names) if row["product_id"] not in same] for names in (gone, come)))


def _leads_to(table: Any, made: Provenance, wanted: Provenance) -> bool:
    """Whether the same models made both, and no upsert to something else was begun."""
    told = {"key": wanted.key, "products": wanted.products, "furnclip_version": wanted.furnclip_version}
    begun = told_by(table.schema).get(_TARGET, b"").decode() if made.products is None else wanted.key
    return begun == wanted.key and made.model_copy(update=told) == wanted


def _begin(table: Any, made: Provenance, wanted: Provenance) -> str:
    """Note that an upsert has begun; when the version before it was written.

    Its rows are no longer as many as it says: readers who come now must not take it for damaged.
    """
    if made.products is None:  # and goes on
        return told_by(table.schema)[_SINCE].decode()
    since = last_written(table).isoformat()
    unfinished = made.model_copy(update={"products": None}).model_dump_json().encode()
    _note(table, {PROVENANCE: unfinished, _TARGET: wanted.key.encode(), _SINCE: since.encode()})
    return since


def _is_vector(index: Any) -> bool:
    return str(index.columns[0]).startswith("vec_")


def _has_its_indices(table: Any, products: int, exact_below: int) -> bool:
    """Whether a table made anew would have an index of the same kind on its vectors."""
    there = {index.columns[0]: str(index.index_type) for index in table.list_indices()}
    for name in filter(lambda name: name.startswith("vec_"), table.schema.names):
        make = vector_index(table.schema.field(name), products, exact_below)
        if there.get(name) != (make and make.__name__):
            return False
    return KEYWORDS in there


def _has_room(table: pa.Schema, part: Path) -> bool:
    """Whether the table can hold the images of a part: several of a product, or one of each."""
    if any(holds_views(table, name) for name in table.names):
        return True
    with open_vectors(part) as file:
        return not file.has_views()


def _batches(vectors: Path, parts: Iterable[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of some parts."""
    for name in parts:
        with open_vectors(vectors / name) as part:
            yield from part.batches(columns)


def _groups(table: Any, change: _Change) -> tuple[Counter[str], list[pa.Table]]:
    """How many products each group of the changed ones has now, and the rows of others to be told so."""
    names = sorted({row["group"] for row in (*change.old, *change.new)} - {""})
    sizes = Counter(row["group"] for row in change.new)
    others = []
    for start in range(0, len(names), _IDS_AT_ONCE):
        among = _among("group", names[start : start + _IDS_AT_ONCE])
        found = table.search().where(among).limit(table.count_rows()).to_arrow()
        found = found.filter(pc.invert(pc.is_in(found["product_id"], change.moved)))
        sizes.update(found["group"].to_pylist())
        others.append(found)
    return sizes, [_counted(rows, sizes) for rows in others]


def _counted(rows: pa.Table, sizes: Mapping[str, int]) -> pa.Table:
    """The rows whose details have another number of variants, with the right one."""
    details = [json.loads(text) for text in rows[DETAILS].to_pylist()]
    counts = [sizes[group] for group in rows["group"].to_pylist()]
    differs = [each["variants"] != count for each, count in zip(details, counts, strict=True)]
    told = [json.dumps({**each, "variants": count}) for each, count in zip(details, counts, strict=True)]
    place = rows.schema.get_field_index(DETAILS)
    return rows.set_column(place, rows.schema.field(place), pa.array(told, pa.string())).filter(differs)


def _merge(table: Any, rows: pa.Table | pa.RecordBatch) -> None:
    if len(rows):
        merge = table.merge_insert("product_id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(rows)


def _among(column: str, values: Iterable[str]) -> str:
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"`{column}` IN ({quoted})"


def _tidy(table: Any, products: int, since: str) -> None:
    """Take all rows into the indices, and remove versions from before `since`, where it pays."""
    outside = table.index_stats(f"{KEYWORDS}_idx").num_unindexed_rows
    if outside * _INDEXED_IN > products or len(table.list_versions()) > _MOST_VERSIONS:
        table.optimize(cleanup_older_than=age_to_remove(datetime.fromisoformat(since)))


def _note(table: Any, state: Mapping[bytes, bytes]) -> None:
    told = {name.decode(): value.decode() for name, value in state.items()}
    table.update_field_metadata({"path": KEYWORDS, "metadata": told})
