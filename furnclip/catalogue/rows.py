"""Rows of any supported file, streamed, with damaged ones marked; rows that make one product, or a family.

A column of the catalogue that has the name of one of ours is called `raw_NAME` in our files
(and `raw_NAME` is called `raw_raw_NAME`), so no two columns have one name.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from furnclip import console
from furnclip.catalogue.columns import (
    is_published,
    known_as,
    known_names,
    needs_parent,
    plain_name,
    short_name,
)
from furnclip.catalogue.delimited import MAX_CELL_CHARS, Table, unescape
from furnclip.catalogue.structured import (
    ImageStore,
    NoText,
    cell_text,
    has_table,
    read_json,
    read_parquet,
    read_xml,
)
from furnclip.catalogue.text import KINDS_HINT, find_encoding, first_bytes, text_lines, unreadable
from furnclip.errors import HOW_TO_BEGIN, InputError

_OTHER_KINDS = {
    b"PK\x03\x04": "a spreadsheet (.xlsx) or another zip archive",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet (.xls)",
    b"%PDF": "a PDF document",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"SQLite format 3": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
}
_TABLES = ("products", "items", "rows", "data", "results")
_NO_TEXT = re.compile("[\ud800-\udfff]")  # a byte that was none, or half a character in JSON
_JSON_ARRAY = re.compile(r"\s*\[\s*[{\]]")
_OPTIONS = re.compile(r"\s*\[[A-Z]{1,3}\][^=]+=.*", re.DOTALL)  # in place of a variant's name, in BigCommerce
_FREE = "0., "  # what a price of nothing has in it
_VARIATION = re.compile(r"(?:\A|\|)\s*sku=([^,|]+)")  # in the cell of a parent, as Magento writes them
_JSON_OBJECT = re.compile(r'\s*\{\s*(["}]|$)')

ATTRIBUTES = ("style", "material", "color", "object_type")
UNKNOWN = "unknown"  # the value of an attribute that neither title nor image tells
CLEAN_COLUMNS = ("clean_title", *ATTRIBUTES, "queries", "clean_source")
REPEATED_HEADER = "repeated-header", "the row has the names of columns in it"
REJECT_COLUMNS = ("rejected_reason", "rejected_detail")
_OURS = re.compile(f"(raw_)*({'|'.join((*CLEAN_COLUMNS, *REJECT_COLUMNS))})")


class Record(NamedTuple):
    """One row as read; `reason` and `detail` are filled when its cells cannot be trusted."""

    row: int
    fields: dict[str, str]
    reason: str = ""
    detail: str = ""
    file_rows: int = 1  # rows of the file that make this one
    group: str = ""  # id of the product that this one is a variation of; empty where a column tells
    inherited: frozenset[str] = frozenset()  # columns of a variation whose cells are its parent's
    options: tuple[str, ...] = ()  # what its own cells for color, size and the like say


def read_records(
    path: Path, images: ImageStore | None = None, *, language: str = "en", lines: Iterable[str] | None = None
) -> tuple[list[str], Iterator[Record]]:
    """Columns and streamed records of any supported format; damaged rows are marked, not dropped.

    `images`: where to put images inside the file. `lines`: of a table, instead of those below its header.
    """
    if not path.exists():
        raise InputError(f"there is no catalogue `{path}`", hint=HOW_TO_BEGIN)
    if not path.is_file():  # opening a pipe would wait for ever
        raise InputError(f"the catalogue `{path}` is not a file", hint="set `paths.products` to a file")
    if path.stat().st_size == 0:
        raise InputError(f"`{path}` is empty", hint="export the catalogue again, with a header line")
    columns, records = _read(path, images, language, lines)
    for name, count in Counter(columns).items():
        if count > 1:
            hint = "rename one of the two columns in the file"
            raise InputError(f"`{path}` has the column `{name}` twice", hint=hint)
    return columns, records


def kind_of_file(path: Path) -> str:
    """`parquet`, `xml`, `json array`, `json lines` or `table`. Raises `InputError` for anything else."""
    head, suffix = first_bytes(path), path.suffix.lower()
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return "parquet"
    kind = next((kind for magic, kind in _OTHER_KINDS.items() if head.startswith(magic)), "")
    if kind:
        raise InputError(f"`{path}` is {kind}, not a catalogue", hint=KINDS_HINT)
    text = head.decode(find_encoding(path)[0], "replace").removeprefix("\ufeff")
    if text.lstrip().startswith("<"):
        return "xml"
    if _JSON_ARRAY.match(text):
        return "json array"
    is_json = suffix in (".jsonl", ".ndjson", ".json") or _JSON_OBJECT.match(text)
    return "json lines" if is_json else "table"


def _read(
    path: Path, images: ImageStore | None, language: str, lines: Iterable[str] | None
) -> tuple[list[str], Iterator[Record]]:
    kind = kind_of_file(path)
    if kind != "table":
        if kind == "parquet":
            columns, rows = read_parquet(path)
        elif kind == "xml":
            columns, rows = read_xml(path)
        else:
            inside = "array" if kind == "json array" else _json_kind(path, path.suffix.lower())
            columns, rows = read_json(path, inside)
        return columns, _typed_records(columns, rows, images, language)
    table = Table(path)
    if lines is not None:
        table.take(lines)
    names = [unescape(cell).strip() for cell in table.header]
    columns = [name or f"column_{index}" for index, name in enumerate(names, start=1)]
    records = _csv_records(columns, table, is_clean=find_encoding(path)[1])
    again = {name for name, count in Counter(columns).items() if count > 1}
    if all(plain_name(name) in known_names()["header"]["repeated"] for name in again):
        columns = list(dict.fromkeys(columns))
    return columns, records


def _json_kind(path: Path, suffix: str) -> Literal["lines", "object"]:
    """Whether JSON is an object a line, or one that has the rows in a list; refuses one without."""
    with closing(text_lines(path)) as lines:
        first = next((line for line in lines if line.strip()), "")
        is_alone = not any(line.strip() for line in lines)
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        value = None
        if suffix in (".jsonl", ".ndjson"):
            return "lines"  # its broken ones are reported one by one
    fields = value if isinstance(value, dict) and is_alone else {}
    while len(fields) == 1 and isinstance(inner := next(iter(fields.values())), dict):
        fields = inner
    lists = [name for name, field in fields.items() if isinstance(field, list) and field]
    table = next((name for name in lists if all(isinstance(item, dict) for item in fields[name])), None)
    is_inside = table is not None and (len(fields) == 1 or table in _TABLES)
    if value is not None and not is_inside:
        return "lines"
    if not has_table(path):
        problem = "is one JSON object" + (f"; its rows are in `{table}`" if table else "")
        raise unreadable(path, problem, hint="save its rows as a JSON array, or as one object a line")
    return "object"


def _csv_records(columns: list[str], table: Table, *, is_clean: bool) -> Iterator[Record]:
    is_ours, last = is_our_sheet(columns), table.header[-1]
    for number, (cells, reason, detail) in enumerate(table.rows(), start=1):
        texts = list(map(unescape, cells)) if is_ours else cells
        fields = dict(zip(columns, texts, strict=False))
        if len(fields) < len(texts) and len(texts) == len(columns):
            fields = joined(zip(columns, texts, strict=True))
        if cells[-1] == last and [cells[0].lstrip("\ufeff"), *cells[1:]] == table.header:
            reason, detail = REPEATED_HEADER
        if reason:
            yield Record(number, _writable(fields), reason, detail)
        else:
            yield Record(number, fields) if is_clean else checked_record(number, fields)


def joined(cells: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The cells by their columns; those of one column that differ are joined by `|`."""
    found: dict[str, dict[str, None]] = {}
    for name, cell in cells:
        found.setdefault(name, {}).update({cell: None} if cell.strip() else {})
    return {name: "|".join(texts) for name, texts in found.items()}


def merged(records: Iterable[Record], key: str, first: Collection[str], title: str = "") -> Iterator[Record]:
    """Records that follow each other and have the same `key` as one; what differs is joined by `|`.

    title: a column; where it is empty, a record belongs to the one above whatever its key is.
    In the columns `first` the first text counts. Damaged records, and those without a key, stay alone.
    """
    together: list[Record] = []
    for record in records:
        name = "" if record.reason else record.fields.get(key, "").strip()
        is_more = title and not record.reason and not _OPTIONS.sub("", record.fields.get(title, "")).strip()
        if together and not is_more and name != together[0].fields[key].strip():
            yield _as_one(together, first)
            together = []
        if name or (together and is_more):
            together.append(record)
        else:
            yield record
    if together:
        yield _as_one(together, first)


def said_once(columns: Iterable[str], published: Sequence[str]) -> Sequence[str]:
    """The columns that say whether a product is in the shop, if its first row does so for its variants."""
    stores = known_names()["header"]["store"]
    return () if any(plain_name(name) in stores for name in columns) else published


def _as_one(records: Sequence[Record], first: Collection[str]) -> Record:
    if len(records) == 1:
        return records[0]
    fields = joined(item for record in records for item in record.fields.items())
    for name in first:
        fields[name] = next(filter(str.strip, (record.fields.get(name, "") for record in records)), "")
    return checked_record(records[0].row, fields)._replace(file_rows=len(records))


def with_parents(
    read: Callable[[], Iterable[Record]], parent: str, own: Sequence[str], published: Collection[str] = ()
) -> Iterator[Record]:
    """The records of `read`, variations with what only their parents say; each with its parent's id as group.

    The column itself says that id too, of parents as well: what reads it later need not know the parents.
    A parent without a price has those of its variations, as a product of several rows has.
    parent: the column that names the parent by its cell in one of the columns `own`, the first of which has
    the id (`id:7`: in the column `id`); or, in the parent's row, its variations (`sku=a,size=S|sku=b`).
    published: columns in which a parent speaks for its variations as well.
    Reads the file three times and holds the parents, which may come last.
    """
    families = _Families(parent, own, published)
    families.hold_parents(read(), families.names_of_parents(read()))
    yield from map(families.complete, read())


class _Parent(NamedTuple):
    id: str
    cells: dict[str, str]  # those that a variation may take
    options: list[str]  # columns that tell its variations apart
    hidden: dict[str, str]  # the cells by which the shop does not show it
    prices: dict[tuple[str, str], None]  # of its variations: columns and cells


class _Families:
    """Which records are variations of which, and what their parents say."""

    def __init__(self, parent: str, own: Sequence[str], published: Collection[str]) -> None:
        self._column, self._id_column, self._published = parent, own[0], published
        self._own = {name: "id:" if plain_name(name) == "id" else "" for name in own}
        self._parent_of: dict[str, str] = {}  # of variations that their parents name
        self._parents: dict[str, _Parent] = {}

    def names_of_parents(self, records: Iterable[Record]) -> set[str]:
        """What variations call their parents, without `id:`."""
        named = set()
        for record in records:
            named.add(self._reference(record).removeprefix("id:"))
            for variation in _VARIATION.findall(record.fields.get(self._column, "")):
                if variation not in self._parent_of or not self._hidden(record):
                    self._parent_of[variation] = self._id(record)
        return named.union(self._parent_of.values()) - {""}

    def hold_parents(self, records: Iterable[Record], named: set[str]) -> None:
        """Take note of all parents, and of the prices of their variations."""
        prices, priced = defaultdict[str, dict[tuple[str, str], None]](dict), list[str]()
        for record in records:
            fields = record.fields
            is_shown = not record.reason and all(map(needs_parent, self._hidden(record).values()))
            if is_shown and (reference := self._reference(record)):
                for name in (priced := priced or _prices(tuple(fields))):
                    if fields[name].strip(_FREE):
                        prices[reference][name, fields[name]] = None
            if record.reason or named.isdisjoint(fields[name].strip() for name in self._own):
                continue
            # In a sheet of ours variations have it already; its parents say what any variation costs.
            spoken = () if is_our_sheet(tuple(fields)) else fields.items()
            cells = {name: cell for name, cell in spoken if cell.strip() and name not in self._own}
            found = _Parent(self._id(record), cells, _options(tuple(fields)), self._hidden(record), {})
            for name, sign in self._own.items():
                self._parents.setdefault(sign + fields[name].strip(), found)
        for reference, offers in prices.items():
            if parent := self._find(reference):
                parent.prices.update(offers)

    def _id(self, record: Record) -> str:
        return record.fields.get(self._id_column, "").strip()

    def _hidden(self, record: Record) -> dict[str, str]:
        fields, names = record.fields, self._published
        return {name: cell for name in names if not is_published(cell := fields.get(name, ""))}

    def _reference(self, record: Record) -> str:
        """What a variation calls its parent; empty for any other record."""
        if self._parent_of and (found := self._parent_of.get(self._id(record))):
            return found
        cell = record.fields.get(self._column, "").strip()
        return "" if cell == "0" or cell.startswith("sku=") else cell

    def _find(self, reference: str) -> _Parent | None:
        return self._parents.get(reference) or self._parents.get(f"id:{reference}")

    def complete(self, record: Record) -> Record:
        """A record with its group, and with what its parent or its variations say."""
        fields, reference, itself = record.fields, self._reference(record), self._id(record)
        found = self._find(reference) if reference else self._parents.get(self._own[self._id_column] + itself)
        if found is None or record.reason:
            return record._replace(group=reference.removeprefix("id:") or itself)
        if found.id == itself:
            prices = joined(found.prices)
            more = {name: prices[name] for name in prices if not fields[name].strip(_FREE)}
            return record._replace(fields=fields | more | {self._column: itself}, group=itself)
        more = {name: cell for name, cell in found.cells.items() if not fields[name].strip()} | found.hidden
        if self._parent_of:
            hidden = self._hidden(record)
            more |= {name: found.cells.get(name, "") for name, cell in hidden.items() if needs_parent(cell)}
        options = tuple(
            cell.strip()
            for name in found.options
            if (cell := fields[name]) != found.cells.get(name) and any(map(str.isalpha, cell))
        )
        fields = {**fields, **more, self._column: found.id}
        return Record(record.row, fields, "", "", record.file_rows, found.id, frozenset(more), options)


@lru_cache(maxsize=64)
def _prices(columns: tuple[str, ...]) -> list[str]:
    shorts = {short_name(name): name for name in reversed(columns)}
    return [shorts[name] for name in known_as(known_names()["columns"]["price"], shorts, "price")]


@lru_cache(maxsize=64)
def _options(columns: tuple[str, ...]) -> list[str]:
    """The columns that say what tells the variations of a product apart."""
    words = set(known_names()["words"]["option"])
    return [name for name in columns if not words.isdisjoint(plain_name(name).split("_"))]


def _typed_records(
    columns: Sequence[str], rows: Iterator[dict[str, Any] | str], images: ImageStore | None, language: str
) -> Iterator[Record]:
    empty = dict.fromkeys(columns, "")
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            yield Record(number, {}, "unreadable-row", row)
            continue
        fields, problem = {**empty, **row}, ""
        for name, value in fields.items():
            if isinstance(value, str):
                continue
            fields[name] = ""
            try:
                to_text = images.cell if images and name in images.columns else cell_text
                fields[name] = to_text(value, language)
            except NoText:
                console.warn_once(f"column `{name}` holds bytes that are no text; they are left out")
            except ValueError as error:
                problem = f"column `{name}` {error}"
        checked = checked_record(number, fields)
        yield checked._replace(reason="unreadable-row", detail=problem) if problem else checked


def checked_record(number: int, fields: dict[str, str]) -> Record:
    """A record whose cells fit a CSV: not too large, and text that can be written again."""
    whole = "".join(fields.values())
    if len(whole) <= MAX_CELL_CHARS and (whole.isascii() or not _NO_TEXT.search(whole)):
        return Record(number, fields)
    for name, value in fields.items():
        problem = "has something in it that is no text" if _NO_TEXT.search(value) else ""
        if len(value) > MAX_CELL_CHARS:
            problem = f"has {len(value):,} characters, at most {MAX_CELL_CHARS:,}"
        if problem:
            return Record(number, _writable(fields), "unreadable-row", f"column `{name}` {problem}")
    return Record(number, fields)


def _writable(fields: dict[str, str]) -> dict[str, str]:
    """What of a damaged row can stand in a list of rejected rows."""
    short = {name: value if len(value) <= MAX_CELL_CHARS else "" for name, value in fields.items()}
    return {name: _NO_TEXT.sub("\ufffd", value) for name, value in short.items()}


def is_our_sheet(columns: Sequence[str]) -> bool:
    """Whether a header is that of `cleaned.csv` or `rejected.csv`, whatever the file is called."""
    return any(tuple(columns[-len(ours) :]) == ours for ours in (CLEAN_COLUMNS, REJECT_COLUMNS))


def renamed_column(name: str) -> str:
    """What the catalogue's column `name` is called in our files."""
    return f"raw_{name}" if _OURS.fullmatch(name) else name
