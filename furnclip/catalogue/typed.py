"""JSON and Parquet: cells that are not text become the text or the image file that a CSV would have.

Lists are joined by `|`; of `{language, value}` lists one language is taken; of an object its value or
address, or else `name: value` pairs. Image bytes, as Hugging Face data sets have them, become files in the
image folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from furnclip.catalogue.text import MAX_LINE_CHARS, tell_once, text_chunks, text_lines
from furnclip.catalogue.words import content_hash
from furnclip.errors import InputError
from furnclip.journal import replacing

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_LANGUAGE = re.compile("[a-z]{2}([-_][A-Za-z]{2})?")
_LANGUAGE_KEYS = ("language_tag", "language", "lang", "locale")
_ADDRESS_KEYS = ("src", "url", "href", "path", "file", "filename")
_VALUE_KEYS = ("value", "text", "name", "title", "label", *_ADDRESS_KEYS)
_WHITE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_DEEPEST = 16
_CHUNK_CHARS = 2**16
_BATCH_ROWS = 256  # a repeated value of megabytes is small in the file and large in a batch
_MOST_VALUES_A_BYTE = 50
_MOST_BYTES_A_BYTE = 200
_UNSUSPECTED = 2**20


class NoText(ValueError):
    """A cell holds bytes that are no text."""


class ImageStore(NamedTuple):
    """Where image bytes of the image column go: files in `root / folder`, named in the cells."""

    column: str
    root: Path
    folder: str

    def cell(self, value: object, depth: int = 0) -> str:
        """As `cell_text`; image bytes are written once, under the hash of their content."""
        if isinstance(value, list | tuple) and depth < _DEEPEST:
            return "|".join(filter(None, (self.cell(item, depth + 1) for item in value)))
        if isinstance(value, dict):
            image = next((value[key] for key in ("bytes", *_ADDRESS_KEYS) if value.get(key)), None)
            return cell_text(value) if image is None else self.cell(image, depth + 1)
        return self._written(value) if isinstance(value, bytes) else cell_text(value)

    def _written(self, image: bytes) -> str:
        name = f"{self.folder}/{content_hash(image)}.img"
        if not (self.root / name).exists():
            tell_once(f"the images in column `{self.column}` are written to `{self.root / self.folder}`")
            with replacing(self.root / name, durable=False) as file:
                file.write(image)
        return name


def cell_text(value: object, depth: int = 0) -> str:
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
        return _text_of_bytes(value)
    if isinstance(value, list | tuple):
        texts = (cell_text(item, depth + 1) for item in _one_language(value))
        return "|".join(filter(None, texts))
    if isinstance(value, dict):
        return _text_of_object(value, depth)
    return str(value)


def _text_of_bytes(value: bytes) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise NoText from None
    if "\0" in text:
        raise NoText
    return text


def _one_language(items: Sequence[object]) -> Sequence[object]:
    """Of the same text in several languages those in one: the first English one, or else the first."""
    tags = [_language(item) for item in items]
    if not items or not all(tags):
        return items
    wanted = next((tag for tag in tags if tag.lower().startswith("en")), tags[0])
    return [item for item, tag in zip(items, tags, strict=True) if tag == wanted]


def _language(item: object) -> str:
    if not isinstance(item, dict):
        return ""
    return next((str(item[key]) for key in _LANGUAGE_KEYS if item.get(key)), "")


def _text_of_object(value: Mapping[Any, object], depth: int) -> str:
    for key in _VALUE_KEYS:
        if value.get(key) is not None:
            return cell_text(value[key], depth + 1)
    if value and all(_LANGUAGE.fullmatch(str(key)) for key in value):
        return cell_text(value[min(value, key=lambda key: not str(key).startswith("en"))], depth + 1)
    pairs = ((key, cell_text(item, depth + 1)) for key, item in value.items() if not isinstance(item, bytes))
    return ", ".join(f"{key}: {text}" for key, text in pairs if text)


def read_json(path: Path, *, is_array: bool) -> tuple[list[str], Iterator[dict[str, Any] | str]]:
    """Columns, in the order in which they first occur, and every object; a message where there is none."""
    read = _array_items if is_array else _json_lines
    columns: dict[str, None] = {}
    for item in read(path):
        if isinstance(item, dict):
            columns.update(dict.fromkeys(item))
    if not columns:
        raise InputError(f"`{path}` holds no JSON object", hint="each line has to be one JSON object")
    return list(columns), read(path)


def _json_lines(path: Path) -> Iterator[dict[str, Any] | str]:
    for line in text_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield str(error)
            continue
        yield value if isinstance(value, dict) else "not a JSON object"


def _array_items(path: Path) -> Iterator[dict[str, Any] | str]:
    """The items of one large array, a few at a time."""
    buffer, number = _Buffer(text_chunks(path)), 0
    buffer.skip("[")
    while not buffer.skip("]"):
        if number and not buffer.skip(","):
            raise _damaged_array(path, number, "a comma is missing")
        number += 1
        value = buffer.decode(partial(_damaged_array, path, number))
        yield value if isinstance(value, dict) else "not a JSON object"


def _damaged_array(path: Path, number: int, detail: str) -> InputError:
    return InputError(
        f"`{path}` is damaged at item {number} of its JSON array: {detail}", hint="export the catalogue again"
    )


class _Buffer:
    """Text that is read as far as the next value needs it."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self._text = ""
        self._at = 0

    def skip(self, sign: str) -> bool:
        """Skip white space and, where it comes next, `sign`."""
        while True:
            self._at = _WHITE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._more():
                break
        found = self._text.startswith(sign, self._at)
        self._at += len(sign) * found
        return found

    def decode(self, failed: Callable[[str], InputError]) -> Any:
        """The value that comes next. What is half there is read on, doubling the text each time."""
        self.skip("")
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise failed(str(error)) from None
            except ValueError as error:
                if len(self._text) - self._at > MAX_LINE_CHARS or not self._more():
                    raise failed(str(error)) from None
                continue
            self._at = end
            return value

    def _more(self) -> bool:
        wanted = max(_CHUNK_CHARS, len(self._text) - self._at)
        parts = [self._text[self._at :]]
        while wanted > 0 and (chunk := next(self._chunks, "")):
            parts.append(chunk)
            wanted -= len(chunk)
        self._text, self._at = "".join(parts), 0
        return len(parts) > 1


def read_parquet(path: Path) -> tuple[list[str], Iterator[dict[str, Any] | str]]:
    """Columns and rows. Raises `InputError` for a file that unpacks to more than any catalogue has."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            _check_size(path, file.metadata)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"`{path}` is not a Parquet file: {error}", hint="export the catalogue again"
        ) from None
    return columns, _parquet_rows(path)


def _check_size(path: Path, metadata: pyarrow.parquet.FileMetaData) -> None:
    size_bytes = path.stat().st_size
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            unpacked = chunk.total_uncompressed_size
            values = max(chunk.num_values, metadata.num_rows)
            if (unpacked > _UNSUSPECTED and unpacked > _MOST_BYTES_A_BYTE * size_bytes) or (
                values > _UNSUSPECTED and values > _MOST_VALUES_A_BYTE * size_bytes
            ):
                raise InputError(
                    f"`{path}` has {size_bytes:,} bytes, but its column `{chunk.path_in_schema}` unpacks to "
                    f"{unpacked:,} bytes in {values:,} values",
                    hint="this is no catalogue; export it again",
                )


def _parquet_rows(path: Path) -> Iterator[dict[str, Any] | str]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in _rows_of(batch):
                    number += 1
                    yield row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"`{path}` is damaged after row {number}: {error}", hint="export the catalogue again"
        ) from None


def _rows_of(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | str]:
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):  # a date beyond the year 9999 somewhere in it
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except (ValueError, OverflowError) as error:
                yield f"a value cannot be read: {error}"
