"""JSON, Parquet and XML: cells that are not text become the text or the image file that a CSV would have.

Lists are joined by `|`; of `{language, value}` lists one language is taken; of an object its value or
address, or else `name: value` pairs. An XML feed is streamed; a document type with entities is refused: those
can grow without bound or read other files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from xml.parsers import expat

from furnclip import console
from furnclip.catalogue.text import (
    MAX_LINE_CHARS,
    content_hash,
    text_chunks,
    text_lines,
    unpacked,
    unreadable,
)
from furnclip.errors import InputError
from furnclip.journal import replacing

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_LANGUAGE = re.compile("[a-z]{2}([-_][A-Za-z]{2})?")
_LANGUAGE_KEYS = ("language_tag", "language", "lang", "locale")
_ADDRESS_KEYS = ("src", "url", "href", "path", "file", "filename")
_VALUE_KEYS = ("value", "amount", "text", "name", "title", "label", *_ADDRESS_KEYS)
# The list of rows in one object, such as `{"data": {"products": [{`.
_TABLE = re.compile(
    r'(?<!\\)"(products|items|rows|data|results|offers|entries|articles|records|docs|nodes)"\s*:\s*(?=\[\s*\{)'
)
_VARIANTS = ("variants", "offers")
_TABLE_CHARS = 2**12  # of a name, its colon and its bracket, however they are spaced
_FIRST_ITEM = re.compile(r"[ \t\r\n]*\[(?![ \t\r\n]*\])[ \t\r\n]*")
_NEXT_ITEM = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_DEEPEST = 16
_CHUNK_CHARS = 2**16
_BATCH_ROWS = 256  # a repeated value of megabytes is small in the file and large in a batch
_MOST_VALUES_A_BYTE = 50
_MOST_BYTES_A_BYTE = 200
_UNSUSPECTED = 2**20
_ITEMS = ("item", "entry", "product", "offer", "shopitem")  # elements that are a product, in any case
_CHUNK_BYTES = 2**16


class NoText(ValueError):
    """A cell holds bytes that are no text."""


class ImageStore(NamedTuple):
    """Where image bytes of the image columns go: files in `root / folder`; None: they are only named."""

    columns: tuple[str, ...]
    root: Path | str | None
    folder: str

    def cell(self, value: object, language: str, depth: int = 0) -> str:
        """As `cell_text`; image bytes are written once, under the hash of their content."""
        if isinstance(value, list | tuple) and depth < _DEEPEST:
            return "|".join(filter(None, (self.cell(item, language, depth + 1) for item in value)))
        if isinstance(value, dict):
            image = next((value[key] for key in ("bytes", *_ADDRESS_KEYS) if value.get(key)), None)
            return cell_text(value, language) if image is None else self.cell(image, language, depth + 1)
        return self._kept(value) if isinstance(value, bytes) else cell_text(value, language)

    def _kept(self, content: bytes) -> str:
        """The name of the file in which the content of an image is now, or would be."""
        name = f"{self.folder}/{content_hash(content)}.img"
        if self.root is None:
            with suppress(UnicodeDecodeError):
                return content.decode("utf-8")
            return name
        if isinstance(self.root, str):
            raise InputError(
                f"the images in `{self.columns[0]}` cannot be written to `{self.root}`",
                hint="set `paths.images` to a folder: furnclip writes the images of this file there",
            )
        if not (self.root / name).exists():
            folder = self.root / self.folder
            console.warn_once(f"the images in column `{self.columns[0]}` are written to `{folder}`")
            with replacing(self.root / name, durable=False) as file:
                file.write(content)
        return name


def cell_text(value: object, language: str = "en", depth: int = 0) -> str:
    """A cell of any type as the text a CSV would have. Raises `ValueError` where there is no such text."""
    if value is None or value != value:  # NaN, the null of many exporters, is not equal to itself
        return ""
    if isinstance(value, str):
        return value
    if depth > _DEEPEST:
        raise ValueError("is nested too deeply")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            if b"\0" not in value:
                return value.decode("utf-8")
        raise NoText
    if isinstance(value, list | tuple):
        texts = (cell_text(item, language, depth + 1) for item in _one_language(value, language))
        return "|".join(filter(None, texts))
    return _text_of_object(value, language, depth) if isinstance(value, dict) else str(value)


def _one_language(items: Sequence[Any], language: str) -> Sequence[Any]:
    """Of the same text in several languages those in one: the preferred, English, or the first."""
    tags = []
    for item in items:
        named = [item[key] for key in _LANGUAGE_KEYS if item.get(key)] if isinstance(item, dict) else []
        if not named:
            return items
        tags.append(str(named[0]))
    wanted = min(tags, key=partial(_distance, language), default="")
    return [item for item, tag in zip(items, tags, strict=True) if tag == wanted]


def _distance(language: str, tag: str) -> int:
    """How far a language tag is from the preferred one."""
    wanted, found = (text.lower().replace("-", "_") for text in (language, tag))
    near = (found == wanted, found.startswith(wanted), found[:2] == wanted[:2], found.startswith("en"))
    return (*near, True).index(True)


def _text_of_object(value: Mapping[Any, object], language: str, depth: int) -> str:
    for key in _VALUE_KEYS:
        if value.get(key) is not None:
            return cell_text(value[key], language, depth + 1)
    if value and all(_LANGUAGE.fullmatch(str(key)) for key in value):
        nearest = min(value, key=lambda key: _distance(language, str(key)))
        return cell_text(value[nearest], language, depth + 1)
    if len(value) == 1:
        return cell_text(next(iter(value.values())), language, depth + 1)
    pairs = (
        (key, cell_text(item, language, depth + 1))
        for key, item in value.items()
        if not isinstance(item, bytes)
    )
    return ", ".join(f"{key}: {text}" for key, text in pairs if text)


def read_json(
    path: Path, kind: Literal["array", "lines", "object"]
) -> tuple[list[str], Iterator[dict[str, Any] | str]]:
    """Columns, in the order in which they first occur, and every object; a message where there is none."""
    read = _json_lines if kind == "lines" else partial(_array_items, is_inside=kind == "object")
    items = map(_with_variants, read(path))
    columns = list(dict.fromkeys(name for item in items if isinstance(item, dict) for name in item))
    if not columns:
        raise unreadable(path, "holds no JSON object", hint="each line has to be one JSON object")
    return columns, map(_with_variants, read(path))


def _with_variants(row: dict[str, Any] | str) -> dict[str, Any] | str:
    """A row with columns such as `variants_price` for what its variants say."""
    if isinstance(row, str):
        return row
    found: dict[str, list[object]] = {}
    for name in _VARIANTS:
        items = row.get(name)
        for item in items if isinstance(items, list) else [items]:
            for key, value in item.items() if isinstance(item, dict) else ():
                if isinstance(value, str | int | float):
                    found.setdefault(f"{name}_{key}", []).append(value)
    return {**row, **{name: value for name, value in found.items() if name not in row}}


def _json_lines(path: Path) -> Iterator[dict[str, Any] | str]:
    for line in filter(str.strip, text_lines(path)):
        try:
            value = json.loads(line)
            yield value if isinstance(value, dict) else "not a JSON object"
        except (ValueError, RecursionError) as error:
            yield str(error)


def has_table(path: Path) -> bool:
    """Whether one JSON object has the list of the rows in it."""
    return any(True for _ in _from_table(path))


def _from_table(path: Path) -> Iterator[str]:
    """The text of one JSON object from the list of its rows on."""
    text, is_there = "", False
    for chunk in text_chunks(path):
        text += chunk
        if match := None if is_there else _TABLE.search(text):
            text, is_there = text[match.end() :], True
        if is_there:
            yield text
        text = "" if is_there else text[-_TABLE_CHARS:]


def _array_items(path: Path, *, is_inside: bool = False) -> Iterator[dict[str, Any] | str]:
    """The items of one large array. For a value that is half there, the text is doubled until it is whole."""
    text, at, number, wanted_chars = "", 0, 0, _CHUNK_CHARS
    for chunk in chain(_from_table(path) if is_inside else text_chunks(path), ("",)):
        text, at = text[at:] + chunk, 0
        if chunk and len(text) < wanted_chars:
            continue
        while match := (_NEXT_ITEM if number else _FIRST_ITEM).match(text, at):
            try:
                value, at = _DECODER.raw_decode(text, match.end())
            except (ValueError, RecursionError) as error:
                problem = str(error)
                break
            number += 1
            yield value if isinstance(value, dict) else "not a JSON object"
        rest_chars = len(text) - at
        wanted_chars = max(_CHUNK_CHARS, 2 * rest_chars)
        if rest_chars > MAX_LINE_CHARS or (not match and text[at:].strip()):
            break
    if match or text[at:].lstrip("[ \t\r\n")[:1] != "]":
        problem = problem if match else "a comma is missing"
        raise unreadable(path, f"is damaged at item {number + bool(match)} of its JSON array: {problem}")


def read_parquet(path: Path) -> tuple[list[str], Iterator[dict[str, Any] | str]]:
    """Columns and rows. Raises `InputError` for a file that unpacks to more than any catalogue has."""
    import pyarrow
    import pyarrow.parquet

    size_bytes = path.stat().st_size
    most_bytes = max(_UNSUSPECTED, _MOST_BYTES_A_BYTE * size_bytes)
    most_values = max(_UNSUSPECTED, _MOST_VALUES_A_BYTE * size_bytes)
    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns, metadata = list(file.schema_arrow.names), file.metadata
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                unpacked = chunk.total_uncompressed_size
                values = max(chunk.num_values, metadata.num_rows)
                if unpacked > most_bytes or values > most_values:
                    problem = (
                        f"has {size_bytes:,} bytes, but its column `{chunk.path_in_schema}` "
                        f"unpacks to {unpacked:,} bytes in {values:,} values"
                    )
                    raise unreadable(path, problem, hint="this is no catalogue; export it again")
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(path, f"is not a Parquet file: {error}") from None
    return columns, _parquet_rows(path, file)


def _parquet_rows(path: Path, file: pyarrow.parquet.ParquetFile) -> Iterator[dict[str, Any] | str]:
    import pyarrow

    number = 0
    try:
        with file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in _rows_of(batch):
                    number += 1
                    yield row
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(path, f"is damaged after row {number}: {error}") from None


def _rows_of(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | str]:
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError) as error:  # a date beyond the year 9999 somewhere in it
        if batch.num_rows == 1:
            yield f"a value cannot be read: {error}"
            return
        for index in range(batch.num_rows):
            yield from _rows_of(batch.slice(index, 1))


# --- XML


def read_xml(path: Path) -> tuple[list[str], Iterator[dict[str, Any] | str]]:
    """Columns, in the order in which they first occur, and every product as a row."""
    columns = list(dict.fromkeys(name for row in _feed_rows(path) for name in row))
    if not columns:
        hint = "furnclip reads RSS and Atom feeds for Google Merchant Center; export it as one, or as CSV"
        raise unreadable(path, "is XML or HTML without products", hint=hint)
    return columns, _feed_rows(path)


def _feed_rows(path: Path) -> Iterator[dict[str, Any]]:
    reader = _Feed()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler, parser.EntityDeclHandler = reader.text, reader.refuse
    try:
        with unpacked(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                parser.Parse(chunk, False)
                yield from reader.taken()
            parser.Parse(b"", True)
    except (expat.ExpatError, ValueError) as error:
        raise unreadable(path, f"is damaged: {error}") from None
    yield from reader.taken()


class _Feed:
    """What a parser calls: elements of a product, by their names without prefix, become its columns."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._open: list[tuple[str, dict[str, list[Any]], list[str]]] = []  # name, children, texts

    def taken(self) -> list[dict[str, Any]]:
        """The products read since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def refuse(self, name: str, *_: object) -> None:
        raise ValueError(f"it declares the entity `{name}`")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._open and name.rpartition(":")[2].lower() not in _ITEMS:
            return
        if len(self._open) > _DEEPEST:
            raise ValueError("it is nested too deeply")
        address = next((attributes[key] for key in ("href", "url", "src") if key in attributes), "")
        is_address = self._open and address and attributes.get("rel", "alternate") == "alternate"
        children: dict[str, list[Any]] = (
            {} if self._open else {key: [value] for key, value in attributes.items()}
        )
        self._open.append((name, children, [address] if is_address else []))

    def text(self, data: str) -> None:
        if self._open:
            self._open[-1][2].append(data)

    def end(self, name: str) -> None:
        if not self._open:
            return
        name, children, texts = self._open.pop()
        if not self._open:
            self._rows.append({key: value for key, (_, value) in _by_name(children).items()})
            return
        value: Any = {key: inner for key, (_, inner) in _by_name(children).items()} or "".join(texts).strip()
        self._open[-1][1].setdefault(name, []).append(value)


def _by_name(children: dict[str, list[Any]]) -> dict[str, tuple[str, Any]]:
    """Children by their names without prefix; of two, `g:title` wins over `title`."""
    found: dict[str, tuple[str, Any]] = {}
    for name, values in children.items():
        prefix, _, local = name.rpartition(":")
        value = values[0] if len(values) == 1 else values
        if value != "" and (local not in found or prefix == "g"):
            found[local] = prefix, value
    return found
