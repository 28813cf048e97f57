"""Markup: HTML in cells becomes the text that it shows, and an XML feed becomes rows.

A feed is RSS or Atom with `g:` names as for Google Merchant Center, or anything that holds `<product>`s. It
is streamed; a document type with entities is refused, since those can grow without bound or read other files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.parsers import expat

from furnclip.catalogue.text import unpacked
from furnclip.errors import InputError

_HTML = re.compile(r"</?[A-Za-z][^<>]*>|<!--|&(#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]\w+);")
# fmt: off
_INLINE = frozenset((
    "a", "abbr", "b", "cite", "code", "em", "font", "i", "mark", "q", "s", "small", "span", "strong", "sub",
    "sup", "u",
))
# fmt: on
_ITEMS = ("item", "entry", "product", "offer", "shopitem")  # in any case
_CHUNK_BYTES = 2**16
_DEEPEST = 16
_AGAIN = "export the catalogue again"


class _Words(HTMLParser):
    """The text of a piece of HTML; what a browser would not show is left out."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.parts.append("" if tag in _INLINE else " ")
        self._hidden = self._hidden or (tag if tag in ("script", "style") else "")

    def handle_endtag(self, tag: str) -> None:
        self.parts.append("" if tag in _INLINE else " ")
        self._hidden = "" if tag == self._hidden else self._hidden

    def handle_data(self, data: str) -> None:
        self.parts.append("" if self._hidden else data)


def plain_text(text: str) -> str:
    """A text without HTML, escaped once or twice, on one line; one without HTML is only stripped."""
    for _ in range(2):
        if not _HTML.search(text):
            break
        words = _Words()
        words.feed(text)
        words.close()
        text = " ".join("".join(words.parts).split())
    return text.strip()


def read_xml(path: Path) -> tuple[list[str], Iterator[dict[str, Any] | str]]:
    """Columns, in the order in which they first occur, and every product as a row."""
    columns: dict[str, None] = {}
    for row in _rows(path):
        columns.update(dict.fromkeys(row))
    if not columns:
        raise InputError(
            f"`{path}` is XML or HTML without products",
            hint="furnclip reads RSS and Atom feeds for Google Merchant Center; export it as one, or as CSV",
        )
    return list(columns), iter(_rows(path))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
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
        raise InputError(f"`{path}` is damaged: {error}", hint=_AGAIN) from None
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
