"""A night's change in the search table: rows that differ are merged into it, those that are gone deleted.

The table names the parts of the vector file that it was made of, and a part that is still there needs no
reading. Every step is a version of the table of its own and can be done again; the last one says that the
table is in line. LanceDB compares what no index holds yet; to bring indices up to date it writes all of
them, so that waits until more than one product in `_INDEXED_IN` is outside of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from furnclip.config import SearchConfig
from furnclip.errors import FurnclipError
from furnclip.vectors import index
from furnclip.vectors.index import DETAILS, KEYWORDS, IndexLocation, IndexReport, TableRows, told_by
from furnclip.vectors.parquet import PRODUCT_COLUMNS, Provenance, VectorFile, part_paths, provenance_of

_INDEXED_IN = 200
_MOST_VERSIONS = 100  # each holds the vocabulary
_MOST_CHANGED = 0.2  # of the products; with more, the table is made anew
_IDS_AT_ONCE, _ROWS_AT_ONCE = 1000, 1000
_TARGET, _SINCE = b"furnclip_target", b"furnclip_since"
"""of an upsert that was begun: the key that it leads to, and when the version before it was written"""


def update_index(location: IndexLocation, vectors: Path, search: SearchConfig) -> IndexReport | None:
    """Merge what changed in the vector file into the table; None where it has to be made anew."""
    try:
        table, made = index.open_index(location)
        vocabulary = index.vocabulary_of(table, where=location.uri)
    except FurnclipError:
        return None
    file = VectorFile(vectors)
    with index.explained(location.uri):
        wanted = provenance_of(file.schema.metadata, where=vectors).model_copy(update={"products": file.rows})
        before: list[str] = json.loads(told_by(table.schema).get(index.PARTS, b"[]"))
        now = [path.name for path in part_paths(vectors)]
        gone, come = sorted({*before} - {*now}), sorted({*now} - {*before})
        # for several images of a product; otherwise the table has one of each
        has_room = any(index.holds_views(table.schema, name) for name in table.schema.names)
        can = (
            vectors.is_dir()  # one file has the same name whatever it holds
            and _leads_to(table, made, wanted)
            and search.language in ("auto", vocabulary.language)
            and not {*before}.isdisjoint(now)
            and all((vectors / name).is_file() for name in gone)
            and _has_its_indices(table, file.rows, search.exact_below)
            and (has_room or not any(VectorFile(vectors / name).has_views() for name in come))
        )
        if not can:
            return None
        old, new = _compare(vectors, gone, come, file)
        changed = {row["product_id"] for row in new}
        deleted = sorted({row["product_id"] for row in old} - changed)
        if len(changed) + len(deleted) > _MOST_CHANGED * file.rows:
            return None
        since = _begin(table, made, wanted)
        vocabulary = vocabulary.changed(old, new, index.fields_of(file.schema))
        maker = TableRows(table.schema, file.schema, vocabulary)
        moved = pa.array(sorted(changed.union(deleted)), pa.string())  # what the table has otherwise
        sizes, others = _groups(table, old, new, moved)
        for batch in _batches(vectors, come, maker.columns):
            rows = maker.batch(batch.filter(pc.is_in(batch["product_id"], moved)), sizes)
            others.append(pa.Table.from_batches([rows]))
            if sum(map(len, others)) > _ROWS_AT_ONCE:
                others = _merge(table, others)
        _merge(table, others)
        for start in range(0, len(deleted), _IDS_AT_ONCE):
            table.delete(_among("product_id", deleted[start : start + _IDS_AT_ONCE]))
        if not _tidy(table, file.rows, since):
            return None
        _note(table, index.state_of(wanted, vocabulary, now))
        indexed = [found.columns[0] for found in table.list_indices()]
    return IndexReport(location.uri, exact=not any(name.startswith("vec_") for name in indexed))


_Rows = list[dict[str, Any]]


def _compare(
    vectors: Path, gone: Sequence[str], come: Sequence[str], file: VectorFile
) -> tuple[_Rows, _Rows]:
    """The rows of some parts that differ from those of others, as they were and as they are.

    Vectors follow from the hash of the content; of a product without an image they may differ all the same.
    Holds a number a row.
    """
    columns = [*PRODUCT_COLUMNS, "missing_reason", *(field.name for field in index.shop_fields(file.schema))]

    def rows(names: Iterable[str]) -> Iterator[dict[str, Any]]:
        for batch in _batches(vectors, names, columns):
            yield from batch.to_pylist()

    old = {row["product_id"]: hash(repr(row)) for row in rows(gone)}
    new = {row["product_id"]: hash(repr(row)) for row in rows(come) if not row["missing_reason"]}
    same = {key for key, told in new.items() if old.get(key) == told}
    was, now = ([row for row in rows(names) if row["product_id"] not in same] for names in (gone, come))
    return was, now


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
    since = index.last_written(table).isoformat()
    unfinished = made.model_copy(update={"products": None}).model_dump_json().encode()
    _note(table, {index.PROVENANCE: unfinished, _TARGET: wanted.key.encode(), _SINCE: since.encode()})
    return since


def _has_its_indices(table: Any, products: int, exact_below: int) -> bool:
    """Whether a table made anew would have an index of the same kind on its vectors."""
    there = {found.columns[0]: str(found.index_type) for found in table.list_indices()}
    for name in filter(lambda name: name.startswith("vec_"), table.schema.names):
        make = index.vector_index(table.schema.field(name), products, exact_below)
        if there.get(name) != (make and make.__name__):
            return False
    return KEYWORDS in there


def _batches(vectors: Path, parts: Iterable[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of some parts."""
    for name in parts:
        yield from VectorFile(vectors / name).batches(columns)


def _groups(table: Any, old: _Rows, new: _Rows, moved: pa.Array) -> tuple[Counter[str], list[pa.Table]]:
    """How many products each group of the changed ones has now, and the rows of others to be told so."""
    names = sorted({row["group"] for row in (*old, *new)} - {""})
    sizes = Counter(row["group"] for row in new)
    others = []
    for start in range(0, len(names), _IDS_AT_ONCE):
        among = _among("group", names[start : start + _IDS_AT_ONCE])
        found = table.search().where(among).limit(table.count_rows()).to_arrow()
        found = found.filter(pc.invert(pc.is_in(found["product_id"], moved)))
        sizes.update(found["group"].to_pylist())
        others.append(found)
    return sizes, [_counted(rows, sizes) for rows in others]


def _counted(rows: pa.Table, sizes: Mapping[str, int]) -> pa.Table:
    """The rows whose details have another number of variants, with the right one."""
    details = [json.loads(text) for text in rows[DETAILS].to_pylist()]
    told = [{**each, "variants": sizes[each["group"]]} for each in details]
    place, made = rows.schema.get_field_index(DETAILS), pa.array(map(json.dumps, told), pa.string())
    differs = [each != before for each, before in zip(told, details, strict=True)]
    return rows.set_column(place, rows.schema.field(place), made).filter(differs)


def _merge(table: Any, parts: Sequence[pa.Table]) -> list[pa.Table]:
    """Merge rows, of which none are left then: each merge looks through the ids of all products."""
    if any(map(len, parts)):
        rows = pa.concat_tables([part.cast(table.schema) for part in parts])
        merge = table.merge_insert("product_id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(rows, on_bad_vectors="null")  # a product without an image has none
    return []


def _among(column: str, values: Iterable[str]) -> str:
    return f"`{column}` IN ({', '.join(map(index.quoted, values))})"


def _tidy(table: Any, products: int, since: str) -> bool:
    """Take rows into the indices and remove versions from before `since`, where it pays; whether that worked.

    LanceDB 0.40 cannot add to an index of vectors where none of the new rows has one.
    """
    outside = table.index_stats(f"{KEYWORDS}_idx").num_unindexed_rows
    if outside * _INDEXED_IN > products or len(table.list_versions()) > _MOST_VERSIONS:
        try:
            table.optimize(cleanup_older_than=index.age_to_remove(datetime.fromisoformat(since)))
        except (RuntimeError, ValueError, OSError) as error:
            # It misses the file that it would have written of the new rows, where none has a vector.
            if "not found" not in str(error).lower():
                raise
            return False
    return True


def _note(table: Any, state: Mapping[bytes, bytes]) -> None:
    told = {name.decode(): value.decode() for name, value in state.items()}
    table.update_field_metadata({"path": KEYWORDS, "metadata": told})
