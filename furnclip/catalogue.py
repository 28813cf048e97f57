"""Reading product catalogues as shops write them, a row at a time.

Input: `products.csv` (also `.tsv`, `.jsonl`, `.parquet`) or `work/clean/cleaned.csv`.
Output: a stream of `Product` and `Rejection`; no row is dropped without one of the two.

Rules that a row is judged by:

* UTF-8 with or without BOM, UTF-16, and where neither fits cp1252; `,` `;` tab or `|` between cells.
* An id has to be there, printable, and new: the first row with an id keeps it, later ones are rejected.
* A row needs as many cells as the header; a cell over `MAX_CELL_CHARS` is refused.
* Pictures lie inside the picture folder: no `..`, no link or absolute path that leads out of it.

`content_hash` decides everywhere in furnclip whether something "is already done".
"""

from __future__ import annotations

import csv
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from furnclip.errors import ConfigError, InputError, nearest
from furnclip.images import BrokenImage

if TYPE_CHECKING:
    from furnclip.config import DataPaths

ATTRIBUTES = ("style", "material", "color", "object_type")
CLEAN_COLUMNS = ("clean_title", *ATTRIBUTES, "clean_source")
MAX_CELL_CHARS = 2**20
MAX_LINE_CHARS = 2**25
MAX_ID_CHARS = 200

_DELIMITERS = ",;\t|"
_UNKNOWN = frozenset({"", "unknown", "none", "nan", "null", "n/a", "na", "other", "-"})
_CHUNK_BYTES = 2**20
_BATCH_ROWS = 2048


@dataclass(frozen=True)
class Product:
    """One usable row. `row` counts from 1, without the header; `fields` has every column as written."""

    row: int
    product_id: str
    title: str
    images: tuple[str, ...]
    group: str
    fields: dict[str, str]


@dataclass(frozen=True)
class Rejection:
    """One row that cannot be used; `reason` is a short stable word for counting."""

    row: int
    product_id: str
    reason: str
    detail: str
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One row as read; `reason` and `detail` are filled when its cells cannot be trusted."""

    row: int
    fields: dict[str, str]
    reason: str = ""
    detail: str = ""


def catalogue_path(paths: DataPaths) -> Path:
    """The cleaned catalogue where there is one, else the raw one."""
    return paths.cleaned if paths.cleaned.is_file() else paths.products


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
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise InputError(
            f"`{path}` has the column `{twice[0]}` twice", hint="rename one of the two columns in the file"
        )


# --- CSV and TSV


def _read_csv(path: Path) -> tuple[list[str], Iterator[Record]]:
    encoding = detect_encoding(path)
    with path.open(encoding=encoding, newline="") as file:
        header_line = next(_lines(path, file), "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _detect_delimiter(header_line)
    rows = _csv_rows(path, encoding, delimiter)
    header = next(rows, None)
    if header is None or isinstance(header, str) or not any(cell.strip() for cell in header[1]):
        raise InputError(f"`{path}` has no header line", hint="the first line has to name the columns")
    columns = [cell.strip() or f"column_{index}" for index, cell in enumerate(header[1], start=1)]
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
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            yield Record(number, {}, "unreadable-row", row)
            continue
        line, cells = row
        values = dict(zip(columns, cells, strict=False))
        if len(cells) != len(columns):
            detail = f"{len(cells)} cells under {len(columns)} columns"
            if line > last_line + 1:
                detail += f" in lines {last_line + 1} to {line}; is a quote not closed?"
            yield Record(number, values, "wrong-number-of-cells", detail)
        else:
            yield Record(number, values)
        last_line = line


# --- JSON lines and Parquet


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


# --- products


def read_products(path: Path, paths: DataPaths) -> Iterator[Product | Rejection]:
    """Every row as a product or as a rejection with its reason, in file order, streamed.

    Raises `InputError` for a file that cannot be read and `ConfigError` for a column that is not
    there, both before the first row.
    """
    columns, records = read_records(path)
    _check_columns(path, columns, paths)
    return _judge(records, paths)


def _check_columns(path: Path, columns: list[str], paths: DataPaths) -> None:
    for setting in ("id_column", "title_column", "image_column", "group_column"):
        wanted = getattr(paths, setting)
        if wanted and wanted not in columns:
            close = nearest(wanted, columns)
            advice = f'set `paths.{setting} = "{close}"`' if close else f"set `paths.{setting}`"
            raise ConfigError(
                f"`{path}` has no column `{wanted}`", hint=f"{advice}; columns there: {', '.join(columns)}"
            )


def _judge(records: Iterable[Record], paths: DataPaths) -> Iterator[Product | Rejection]:
    seen: set[int] = set()  # 64-bit hashes: a million ids take 80 MB as strings in a dict, a third as these
    for record in records:
        product_id = record.fields.get(paths.id_column, "").strip()
        reason, detail = record.reason, record.detail
        if not reason:
            reason, detail = _id_problem(product_id, seen)
        if reason:
            yield Rejection(record.row, product_id[:MAX_ID_CHARS], reason, detail, record.fields)
            continue
        seen.add(_id_number(product_id))
        yield Product(
            row=record.row,
            product_id=product_id,
            title=record.fields[paths.title_column].strip(),
            images=_picture_names(record.fields[paths.image_column]),
            group=record.fields[paths.group_column].strip() if paths.group_column else "",
            fields=record.fields,
        )


def _id_problem(product_id: str, seen: set[int]) -> tuple[str, str]:
    if not product_id:
        return "no-id", "the id is empty"
    if len(product_id) > MAX_ID_CHARS or not product_id.isprintable():
        return "bad-id", f"an id is printable and has at most {MAX_ID_CHARS} characters"
    if _id_number(product_id) in seen:
        return "duplicate-id", f"`{product_id}` is the id of an earlier row"
    return "", ""


def _id_number(product_id: str) -> int:
    return int(content_hash(product_id), 16)


def _picture_names(cell: str) -> tuple[str, ...]:
    return tuple(name for part in cell.split("|") if (name := part.strip()))


# --- pictures of a product


def find_image(product: Product, image_root: Path) -> Path:
    """The product's first picture that is there. Raises `BrokenImage` when there is none."""
    return find_images(product, image_root)[0]


def find_images(product: Product, image_root: Path) -> list[Path]:
    """Every picture of the product that is there, as listed. Raises `BrokenImage` when there is none."""
    problem = BrokenImage("missing", "the row names no picture", hint="fill the picture column")
    found = []
    for name in reversed(product.images):
        try:
            found.append(_inside(name, image_root))
        except BrokenImage as error:
            problem = error  # of several, the first one is what the user will look at
    if not found:
        raise problem
    return found[::-1]


def _inside(name: str, image_root: Path) -> Path:
    relative = name.replace("\\", "/")
    if "://" in relative:
        raise BrokenImage("outside", f"`{name}` is a web address", hint="download the pictures to the folder")
    if ".." in Path(relative).parts:
        raise BrokenImage("outside", f"`{name}` leads out of the picture folder")
    root = _resolved(image_root)
    try:
        path = (root / relative).resolve()
        if not path.is_relative_to(root):
            raise BrokenImage("outside", f"`{name}` leads out of the picture folder `{image_root}`")
        if not path.exists():
            raise BrokenImage("missing", f"there is no picture `{name}` in `{image_root}`")
        if not path.is_file():
            raise BrokenImage("not-a-file", f"`{name}` is not a file")
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, a loop of links
        raise BrokenImage("missing", f"`{name}` is not the name of a picture ({error})") from None
    return path


@lru_cache(maxsize=8)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


# --- words


def default_caption(fields: Mapping[str, str], *, title: str = "") -> str:
    """The fixed caption of a product: for `KEY.txt`, for evaluation and for text vectors.

    "a photo of a walnut mid-century sideboard": attributes that the title does not say yet, then the
    title, in lower case. `title` is used where there is no `clean_title`; without it, the column
    `title`. Empty when nothing is known.
    """
    name = _known(fields, "clean_title") or title.strip().lower() or _known(fields, "title")
    name = " ".join(name.split()) or _known(fields, "object_type")
    words = [_known(fields, attribute) for attribute in ("style", "color", "material")]
    extra = [word for word in dict.fromkeys(words) if word and word not in name]
    described = " ".join([*extra, name]).strip()
    kind = _known(fields, "object_type")
    if not described:
        return ""
    return f"a photo of {described}" + (f", {kind}" if kind and kind not in described else "")


def _known(fields: Mapping[str, str], name: str) -> str:
    value = " ".join(fields.get(name, "").lower().split())
    return "" if value in _UNKNOWN else value


def normalised_title(title: str) -> str:
    """The title without case, accents' spelling, punctuation and doubled spaces, for comparing."""
    folded = unicodedata.normalize("NFKC", title).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def content_hash(*parts: bytes | str) -> str:
    """16 hex digits over the parts; ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
