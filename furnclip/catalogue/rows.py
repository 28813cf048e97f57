"""Rows of any supported file, streamed, every damaged one marked."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from furnclip.catalogue.sheets import is_our_sheet, unescape
from furnclip.errors import InputError

MAX_CELL_CHARS = 2**20
MAX_LINE_CHARS = 2**25
_DELIMITERS = ",;\t|"
_CHUNK_BYTES = 2**20
_BATCH_ROWS = 2048


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
                hint="mend that row in the file and run again",
            )
        yield record.fields


def read_records(path: Path) -> tuple[list[str], Iterator[Record]]:
    """Columns and streamed records of any supported format; damaged rows are marked, not dropped."""
    if not path.is_file():
        raise InputError(
            f"there is no catalogue `{path}`", hint="set `paths.products` in furnclip.toml to your file"
        )
    if path.stat().st_size == 0:
        raise InputError(f"`{path}` is empty", hint="export the catalogue again, with a header line")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        columns, records = _read_parquet(path)
    elif suffix in (".jsonl", ".ndjson"):
        columns, records = _read_jsonl(path)
    else:
        columns, records = _read_csv(path)
    _check_header(path, columns)
    return columns, records


def _check_header(path: Path, columns: list[str]) -> None:
    for name, count in Counter(columns).items():
        if count > 1:
            raise InputError(
                f"`{path}` has the column `{name}` twice", hint="rename one of the two columns in the file"
            )


def _read_csv(path: Path) -> tuple[list[str], Iterator[Record]]:
    encoding = detect_encoding(path)
    with path.open(encoding=encoding, newline="") as file:
        header_line = next(_lines(path, file), "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _detect_delimiter(header_line)
    rows = _csv_rows(path, encoding, delimiter)
    header = next(rows, None)
    if header is None or isinstance(header, str) or not any(cell.strip() for cell in header[1]):
        raise InputError(f"`{path}` has no header line", hint="the first line has to name the columns")
    columns = [unescape(cell).strip() or f"column_{index}" for index, cell in enumerate(header[1], start=1)]
    return columns, _csv_records(columns, rows)


def detect_encoding(path: Path) -> str:
    """`utf-8-sig`, `utf-16` (with its byte order) or `cp1252`, after reading the whole file once."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        candidates = ["utf-16"]
    elif b"\0" in head[:200]:
        candidates = ["utf-16-le" if head[1:2] == b"\0" else "utf-16-be"]
    else:
        candidates = ["utf-8-sig", "cp1252"]
    for encoding in candidates:
        if _decodes(path, encoding):
            return encoding
    raise InputError(
        f"`{path}` is neither UTF-8, UTF-16 nor cp1252 text", hint="save it as UTF-8 and run again"
    )


def _decodes(path: Path, encoding: str) -> bool:
    try:
        with path.open(encoding=encoding, newline="") as file:
            while file.read(_CHUNK_BYTES):
                pass
    except UnicodeError:
        return False
    return True


def _detect_delimiter(header_line: str) -> str:
    """The separator that the header uses most, outside quotes."""
    unquoted = "".join(header_line.split('"')[::2])
    return max(_DELIMITERS, key=unquoted.count)


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    while line := file.readline(MAX_LINE_CHARS):
        if len(line) >= MAX_LINE_CHARS:
            raise InputError(
                f"`{path}` has a line of over {MAX_LINE_CHARS:,} characters",
                hint="this is probably no CSV file; export the catalogue again",
            )
        yield line


def _csv_rows(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[int, list[str]] | str]:
    """(lines read so far, cells) for each row that is not blank, or a message where it cannot be parsed."""
    csv.field_size_limit(MAX_CELL_CHARS)
    with path.open(encoding=encoding, newline="") as file:
        reader = csv.reader(_lines(path, file), delimiter=delimiter)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield str(error)
                continue
            if cells:
                yield reader.line_num, cells


def _csv_records(columns: list[str], rows: Iterator[tuple[int, list[str]] | str]) -> Iterator[Record]:
    last_line = 1
    is_ours = is_our_sheet(columns)
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            yield Record(number, {}, "unreadable-row", row)
            continue
        line, cells = row
        if is_ours:
            cells = [unescape(cell) for cell in cells]
        values = dict(zip(columns, cells, strict=False))
        if len(cells) != len(columns):
            detail = f"{len(cells)} cells under {len(columns)} columns"
            if line > last_line + 1:
                detail += f" in lines {last_line + 1} to {line}; is a quote not closed?"
            yield Record(number, values, "wrong-number-of-cells", detail)
        else:
            yield Record(number, values)
        last_line = line


def _read_jsonl(path: Path) -> tuple[list[str], Iterator[Record]]:
    columns: dict[str, None] = {}
    for item in _json_lines(path):
        if isinstance(item, dict):
            columns.update(dict.fromkeys(item))
    if not columns:
        raise InputError(f"`{path}` holds no JSON object", hint="each line has to be one JSON object")
    return list(columns), _json_records(path, list(columns))


def _json_lines(path: Path) -> Iterator[Any]:
    """Each non-blank line's value; a message (str) where the line is no JSON object."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for line in _lines(path, file):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield str(error)
                continue
            yield value if isinstance(value, dict) else "not a JSON object"


def _json_records(path: Path, columns: list[str]) -> Iterator[Record]:
    for number, item in enumerate(_json_lines(path), start=1):
        if isinstance(item, dict):
            yield _checked_record(number, {name: cell_text(item.get(name)) for name in columns})
        else:
            yield Record(number, {}, "unreadable-row", item)


def _read_parquet(path: Path) -> tuple[list[str], Iterator[Record]]:
    import pyarrow
    import pyarrow.parquet

    try:
        columns = list(pyarrow.parquet.read_schema(path).names)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"`{path}` is not a Parquet file: {error}", hint="export the catalogue again"
        ) from None
    return columns, _parquet_records(path, columns)


def _parquet_records(path: Path, columns: list[str]) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for item in batch.to_pylist():
                    number += 1
                    yield _checked_record(number, {name: cell_text(item[name]) for name in columns})
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"`{path}` is damaged after row {number}: {error}", hint="export the catalogue again"
        ) from None


def _checked_record(number: int, fields: dict[str, str]) -> Record:
    """What `csv` checks by itself, for the other formats: size, and text that can be written again."""
    for name, value in fields.items():
        if len(value) > MAX_CELL_CHARS:
            return Record(number, {}, "unreadable-row", f"column `{name}` has {len(value):,} characters")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            return Record(number, {}, "unreadable-row", f"column `{name}` has half a character in it")
    return Record(number, fields)


def cell_text(value: object) -> str:
    """A cell of any type as the text a CSV would have: null is empty, lists are joined by `|`."""
    if value is None or value != value:  # NaN, the null of many exporters, is not equal to itself
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, list | tuple):
        return "|".join(cell_text(item) for item in value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
