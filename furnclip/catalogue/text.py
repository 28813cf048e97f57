"""Text files of any encoding, as lines: what no encoding explains is marked, never guessed over.

UTF-8, UTF-16 and UTF-32 are recognized by their bytes. In a file that is mostly UTF-8, a line that is not
stays marked, so that its row alone is rejected. Any other file is read in the one encoding that fits it best,
which is announced once; its lines that are UTF-8 after all are read as UTF-8.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import re
import unicodedata
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, cast

from furnclip import console
from furnclip.errors import InputError
from furnclip.journal import open_regular

MAX_LINE_CHARS = 2**25
_HTML = re.compile(r"</?[A-Za-z][^<>]*>|<!--|&(#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]\w+);")
# `[vc_row]`, `[caption id="1"]`, `[/tabs]`: what a page builder puts its own parts for
_SHORTCODE = re.compile(r"""\[(/?)([a-z][\w-]*)(\s(?:[^][\"']|"[^"]*"|'[^']*')*)?/?\]""")
_ATTRIBUTE = re.compile(r"\s[\w-]+=\S")
_BUILDERS_NAME = re.compile(r"[a-z]+(_[a-z]+)+")
# fmt: off
_INLINE = frozenset((
    "a", "abbr", "b", "cite", "code", "em", "font", "i", "mark", "q", "s", "small", "span", "strong", "sub",
    "sup", "u",
))
# fmt: on
_MARKING = "furnclip-mark"
KINDS_HINT = (
    "furnclip reads CSV and TSV (.gz as well), JSON, JSON lines and Parquet; export it as one of them"
)
_CHUNK_BYTES = 2**20
_SAMPLE_BYTES = 2**16
_GZIP = b"\x1f\x8b"
_SINGLE_BYTE = ("cp1250", "cp1251", "cp1253", "koi8_r", "mac_roman", "cp850")
_MULTI_BYTE = ("gb18030", "cp932", "euc_jp", "big5", "cp949")
# What Western text has beside letters: quotes, dashes, the euro, trade marks, degrees, fractions ...
_WESTERN_SIGNS = frozenset("€…“”•—™\u00a0\u2013\u2018\u2019£§©«®°±²³\u00b4·¹º»¼½¾¿\u00d7".encode("cp1252"))
_WESTERN_SHARE = 0.7
_WITH_SHARP_S = re.compile(b"([\xe4\xf6\xfc])\xdf")  # two letters that stand together in German words
_FEWEST_BYTES = 6  # fewer tell too little; several encodings fit

# One character that UTF-8 does not have, for bytes that are no text in the file's encoding.
codecs.register_error(_MARKING, lambda error: ("\udcff", getattr(error, "end", 0)))


def text_lines(path: Path) -> Generator[str, None, None]:
    """The lines of a text file with their ends, of any kind. Raises `InputError` for what is no text."""
    encoding, _ = find_encoding(path)
    if encoding.startswith("utf"):
        yield from _lines(path, encoding)
        return
    # Latin-1 keeps every byte: lines are told apart first, each is decoded then.
    for line in _lines(path, "latin-1"):
        yield line if line.isascii() else _decode_line(line.encode("latin-1"), encoding)


def text_chunks(path: Path) -> Iterator[str]:
    """The same text in pieces, for a file whose lines may be as long as it is."""
    encoding, _ = find_encoding(path)
    if not encoding.startswith("utf"):
        yield from text_lines(path)
        return
    with unpacked(path) as file, io.TextIOWrapper(file, encoding, _MARKING, newline="") as text:
        while chunk := text.read(_CHUNK_BYTES):
            yield chunk


def find_encoding(path: Path) -> tuple[str, bool]:
    """How to decode a file, found by reading all of it, and whether no byte is in doubt."""
    stat = path.stat()
    return _find_encoding(path, (stat.st_size, stat.st_mtime_ns, stat.st_ino))


@lru_cache(maxsize=16)
def _find_encoding(path: Path, _state: tuple[int, ...]) -> tuple[str, bool]:
    head = first_bytes(path)
    if wide := _wide_encoding(head):
        return wide, False
    if head.count(0) > len(head) / 20:
        raise InputError(f"`{path}` is not a text file", hint=KINDS_HINT)
    with unpacked(path) as file, suppress(UnicodeDecodeError):
        for _ in codecs.iterdecode(iter(partial(file.read, _CHUNK_BYTES), b""), "utf-8"):
            pass
        return "utf-8-sig", True
    if sum(byte < 32 and byte not in b"\t\n\r\f\v" for byte in head) > len(head) / 20:
        raise InputError(f"`{path}` is not a text file", hint=KINDS_HINT)
    return _doubtful_encoding(path), False


def _doubtful_encoding(path: Path) -> str:
    """How to decode a file that is not UTF-8, or not all of it; announced once."""
    utf8_lines = other_lines = 0
    sample = bytearray()
    for line in _lines(path, "latin-1"):
        if line.isascii():
            continue
        data = line.encode("latin-1")
        try:
            data.decode("utf-8")
            utf8_lines += 1
        except UnicodeDecodeError:
            other_lines += 1
            sample += data[: _SAMPLE_BYTES - len(sample)]
    if utf8_lines >= other_lines:
        rejected = "are not UTF-8 as the others are; their rows are rejected"
        console.warn_once(f"{other_lines} lines of `{path}` {rejected}")
        return "utf-8-sig"
    name = _legacy_encoding(bytes(sample))
    if not name:
        problem = "is not UTF-8, and its encoding cannot be told"
        raise unreadable(path, problem, hint="save it as UTF-8 and run again")
    console.warn_once(
        f"`{path}` is not UTF-8 but looks like {name}, and is read as that; save it as UTF-8 to be sure"
    )
    return name


def unreadable(path: Path, problem: str, *, hint: str = "export the catalogue again") -> InputError:
    return InputError(f"`{path}` {problem}", hint=hint)


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked where it is gzipped."""
    try:
        with open_regular(path, what="the catalogue") as file:
            packed = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            yield cast(IO[bytes], gzip.GzipFile(fileobj=file)) if packed else file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"`{path}` is damaged: {error}", hint="export or download it again") from None


def is_packed(path: Path) -> bool:
    with open_regular(path, what="the catalogue") as file:
        return file.read(len(_GZIP)) == _GZIP


def first_bytes(path: Path, count: int = 4096) -> bytes:
    """How a file begins, unpacked."""
    with unpacked(path) as file:
        return file.read(count)


def _wide_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32, by the byte order mark or because it reads as text with ASCII characters in it."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for name in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        text = head[: len(head) // 4 * 4].decode(name, "replace")
        # A character with a zero at its end is rare, and frequent where the bytes are not aligned.
        strange = sum(character == "\ufffd" or ord(character) % 256 == 0 for character in text)
        if sum(map(str.isascii, text)) > len(text) / 5 and strange < len(text) / 50:
            return name
    return ""


def _legacy_encoding(sample: bytes) -> str:
    """Western, by bytes that stand alone as accented letters do, or what fits best; empty if nothing does."""
    sample = _WITH_SHARP_S.sub(rb"\1s", sample)
    alone = total = 0
    for before, byte, after in zip(b"\n" + sample, sample, sample[1:] + b"\n", strict=False):
        if byte < 0x80:
            continue
        total += 1
        if before < 0x80 and after < 0x80:
            is_letter = byte >= 0xC0 and bytes((before, after)).strip(b"\t ,;|\"'").isalpha()
            alone += is_letter or byte in _WESTERN_SIGNS
    if alone / max(1, total) >= _WESTERN_SHARE:
        return "cp1252"
    if total < _FEWEST_BYTES:
        return ""
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=[*_MULTI_BYTE, *_SINGLE_BYTE]).best()
    return best.encoding if best else ""


def _decode_line(line: bytes, encoding: str) -> str:
    with suppress(UnicodeDecodeError):
        text = line.decode("utf-8")
        # Two bytes of a character in GBK and its like can be UTF-8 by accident, three and three hardly can.
        if encoding not in _MULTI_BYTE or not any("\x7f" < character < "\u0800" for character in text):
            return text.removeprefix("\ufeff")
    return line.decode(encoding, _MARKING)


def _lines(path: Path, encoding: str) -> Iterator[str]:
    with unpacked(path) as file, io.TextIOWrapper(file, encoding, _MARKING, newline="") as text:
        while line := text.readline(MAX_LINE_CHARS):
            if len(line) >= MAX_LINE_CHARS:
                raise unreadable(path, f"has a line of over {MAX_LINE_CHARS:,} characters", hint=KINDS_HINT)
            yield line


def normalized_title(title: str) -> str:
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
    """A text without HTML, escaped once or twice, and shortcodes, on one line; any other is only stripped."""
    for _ in range(2):
        if not _HTML.search(text):
            break
        words = _Words()
        words.feed(text)
        words.close()
        text = " ".join("".join(words.parts).split())
    plain = _without_shortcodes(text) if "[" in text else text
    return text.strip() if plain == text else " ".join(plain.split())


def _without_shortcodes(text: str) -> str:
    """Brackets go that end with `[/name]`, have attributes or a builder's name; `[EU]`, `[2-pack]` stay."""
    closed = {code[2] for code in _SHORTCODE.finditer(text) if code[1]}

    def put(code: re.Match[str]) -> str:
        _, name, more = code.groups(default="")
        is_code = name in closed or _ATTRIBUTE.search(more) or (not more and _BUILDERS_NAME.fullmatch(name))
        return " " if is_code else code[0]

    return _SHORTCODE.sub(put, text)
