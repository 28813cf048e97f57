"""Rows that belong together: several that make one product, and variations that lack what their parent says.

A row of furnclip's is a product's: `Record.file_rows` says how many rows of the file it is made of, so that
every row of the file is accounted for. Both readings leave a table that was read so as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from furnclip.catalogue.rows import Record, checked_record, joined


def merged(records: Iterable[Record], key: str, first: Collection[str], title: str = "") -> Iterator[Record]:
    """Records that follow each other and have the same `key` as one; what differs is joined by `|`.

    title: a column; where it is empty, a record belongs to the one above whatever its key is.
    In the columns `first` the first text counts. Damaged records, and those without a key, stay alone.
    """
    together: list[Record] = []
    for record in records:
        name = "" if record.reason else record.fields.get(key, "").strip()
        is_more = title and not record.reason and not record.fields.get(title, "").strip()
        if together and not is_more and name != together[0].fields[key].strip():
            yield _as_one(together, first)
            together = []
        if name or (together and is_more):
            together.append(record)
        else:
            yield record
    if together:
        yield _as_one(together, first)


def _as_one(records: Sequence[Record], first: Collection[str]) -> Record:
    if len(records) == 1:
        return records[0]
    fields = joined(item for record in records for item in record.fields.items())
    for name in first:
        fields[name] = next(filter(str.strip, (record.fields.get(name, "") for record in records)), "")
    return checked_record(records[0].row, fields)._replace(file_rows=len(records))


def with_parents(read: Callable[[], Iterable[Record]], parent: str, own: Sequence[str]) -> Iterator[Record]:
    """The records of `read`, variations with what only their parents say; each with its parent's id as group.

    parent: the column that names the parent, by its cell (or `id:` and its cell) in one of the columns `own`,
    the first of which has the id. Reads the file three times and holds the parents, which may come last.
    """
    named = {_reference(record, parent) for record in read()} - {""}
    parents: dict[str, Record] = {}
    for record in read():
        for name in own:
            if (reference := _reference(record, name)) in named and not record.reason:
                parents.setdefault(reference, record)
    for record in read():
        reference = _reference(record, parent)
        found = parents.get(reference)
        if found is None or record.reason:
            yield record._replace(group=reference or record.fields.get(own[0], "").strip())
            continue
        group = found.fields[own[0]].strip()
        inherited = {
            name: found.fields.get(name, "") if name not in own and not cell.strip() else cell
            for name, cell in record.fields.items()
        }
        yield record._replace(fields=inherited, group=group)


def _reference(record: Record, column: str) -> str:
    return record.fields.get(column, "").strip().removeprefix("id:").strip()
