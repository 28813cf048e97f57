"""Rows of any supported file, streamed, with damaged ones marked; the kind of file is told by its content."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from furnclip.catalogue.delimited import MAX_CELL_CHARS, Layout, find_layout, read_cells
from furnclip.catalogue.sheets import is_our_sheet, unescape
from furnclip.catalogue.text import (
    KINDS_HINT,
    find_encoding,
    first_bytes,
    is_damaged,
    repaired,
    tell_once,
    text_lines,
)
from furnclip.catalogue.typed import ImageStore, NoText, cell_text, read_json, read_parquet
from furnclip.errors import InputError

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
_JSON_ARRAY = re.compile(r"\s*\[\s*[{\]]")
_JSON_OBJECT = re.compile(r'\s*\{\s*(["}]|$)')


class Record(NamedTuple):
    """One row as read; `reason` and `detail` are filled when its cells cannot be trusted."""

    row: int
    fields: dict[str, str]
    reason: str = ""
    detail: str = ""


def read_rows(path: Path) -> tuple[list[str], Iterator[dict[str, str]]]:
    """Columns and streamed rows. Raises `InputError` at a row whose cells do not fit the columns."""
    columns, records = read_records(path)
    return columns, _sound_rows(path, records)


def _sound_rows(path: Path, records: Iterable[Record]) -> Iterator[dict[str, str]]:
    for record in records:
        if record.reason:
            raise InputError(
                f"row {record.row} of `{path}`: {record.detail}",
                hint="fix that row in the file and run again",
            )
        yield record.fields


def read_records(path: Path, images: ImageStore | None = None) -> tuple[list[str], Iterator[Record]]:
    """Columns and streamed records of any supported format; damaged rows are marked, not dropped.

    `images`: where to put images that are inside the file.
    """
    if not path.exists():
        raise InputError(
            f"there is no catalogue `{path}`", hint="set `paths.products` in furnclip.toml to your file"
        )
    if not path.is_file():  # opening a pipe would wait for ever
        raise InputError(f"the catalogue `{path}` is not a file", hint="set `paths.products` to a file")
    if path.stat().st_size == 0:
        raise InputError(f"`{path}` is empty", hint="export the catalogue again, with a header line")
    columns, records = _read(path, images)
    for name, count in Counter(columns).items():
        if count > 1:
            raise InputError(
                f"`{path}` has the column `{name}` twice", hint="rename one of the two columns in the file"
            )
    return columns, records


def _read(path: Path, images: ImageStore | None) -> tuple[list[str], Iterator[Record]]:
    head, suffix = first_bytes(path), path.suffix.lower()
    if head.startswith(b"PAR1") or suffix == ".parquet":
        columns, rows = read_parquet(path)
        return columns, _typed_records(columns, rows, images)
    kind = next((kind for magic, kind in _OTHER_KINDS.items() if head.startswith(magic)), "")
    if kind:
        raise InputError(f"`{path}` is {kind}, not a catalogue", hint=KINDS_HINT)
    text = head.decode(find_encoding(path).name, "replace").removeprefix("\ufeff")
    if text.lstrip().startswith("<"):
        raise InputError(f"`{path}` is XML or HTML, not a catalogue", hint=KINDS_HINT)
    is_array = _JSON_ARRAY.match(text) is not None
    if is_array or suffix in (".jsonl", ".ndjson", ".json") or _JSON_OBJECT.match(text):
        if not is_array:
            _check_json_lines(path, suffix)
        columns, rows = read_json(path, is_array=is_array)
        return columns, _typed_records(columns, rows, images)
    layout = find_layout(path)
    names = [unescape(cell).strip() for cell in layout.header]
    columns = [name or f"column_{index}" for index, name in enumerate(names, start=1)]
    return columns, _csv_records(path, columns, layout)


def _check_json_lines(path: Path, suffix: str) -> None:
    """Refuses one object that is spread over lines, or that holds the rows in one of its fields."""
    with closing(text_lines(path)) as lines:
        first = next((line for line in lines if line.strip()), "")
        is_alone = not any(line.strip() for line in lines)
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        value = None
        if suffix in (".jsonl", ".ndjson"):
            return  # its broken lines are told one by one
    fields = value if isinstance(value, dict) and is_alone else {}
    table = next((name for name in fields if _is_table(fields[name])), None)
    is_inside = table is not None and (len(fields) == 1 or table in _TABLES)
    if value is None or is_inside:
        raise InputError(
            f"`{path}` is one JSON object" + (f"; its rows are in `{table}`" if is_inside else ""),
            hint="save its rows as a JSON array, or as one object a line",
        )


def _is_table(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, dict) for item in value)


def _csv_records(path: Path, columns: list[str], layout: Layout) -> Iterator[Record]:
    is_ours, is_clean = is_our_sheet(columns), find_encoding(path).is_clean
    for number, row in enumerate(read_cells(path, layout), start=1):
        cells = [unescape(cell) for cell in row.cells] if is_ours else row.cells
        fields = dict(zip(columns, cells, strict=False))
        if row.reason:
            yield Record(number, _writable(fields), row.reason, row.problem)
        elif len(cells) != len(columns):
            first, last = row.lines
            detail = f"{len(cells)} cells under {len(columns)} columns"
            detail += f" in lines {first} to {last}; is a quote not closed?" if last > first else ""
            yield Record(number, _writable(fields), "wrong-number-of-cells", detail)
        else:
            yield Record(number, fields) if is_clean else _checked_record(number, fields)


def _typed_records(
    columns: Sequence[str], rows: Iterator[dict[str, Any] | str], images: ImageStore | None
) -> Iterator[Record]:
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            yield Record(number, {}, "unreadable-row", row)
            continue
        fields, problem = {}, ""
        for name in columns:
            value = row.get(name)
            if isinstance(value, str):
                fields[name] = value
                continue
            try:
                fields[name] = _typed_cell(name, value, images)
            except ValueError as error:
                fields[name], problem = "", f"column `{name}` {error}"
        checked = _checked_record(number, fields)
        yield checked._replace(reason="unreadable-row", detail=problem) if problem else checked


def _typed_cell(name: str, value: object, images: ImageStore | None) -> str:
    try:
        return images.cell(value) if images and name == images.column else cell_text(value)
    except NoText:
        tell_once(f"column `{name}` holds bytes that are no text; they are left out")
        return ""


def _checked_record(number: int, fields: dict[str, str]) -> Record:
    """A record whose cells fit a CSV: not too large, and text that can be written again."""
    for name, value in fields.items():
        if len(value) > MAX_CELL_CHARS:
            detail = f"column `{name}` has {len(value):,} characters, at most {MAX_CELL_CHARS:,}"
            return Record(number, _writable(fields), "unreadable-row", detail)
        if is_damaged(value):
            detail = f"column `{name}` has something in it that is no text"
            return Record(number, _writable(fields), "unreadable-row", detail)
    return Record(number, fields)


def _writable(fields: dict[str, str]) -> dict[str, str]:
    """What of a damaged row can stand in a list of rejected rows."""
    return {name: repaired(value) if len(value) <= MAX_CELL_CHARS else "" for name, value in fields.items()}
