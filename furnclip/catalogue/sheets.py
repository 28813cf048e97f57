"""CSV files of our own: safe to open in a spreadsheet, and read back as what was written.

A spreadsheet runs a cell such as `=HYPERLINK(...)` as a formula, so such a cell gets an apostrophe in
front on its way out, and loses it on its way in. A cell that begins with apostrophes before a formula sign
gets one more, so every text comes back as it was, `-A1` and `'-A1` alike. Numbers stay numbers.

A column of the catalogue that has the name of one of ours is called `raw_NAME` in our files (and
`raw_NAME` is called `raw_raw_NAME`), so no two columns have one name.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from furnclip.catalogue.words import CLEAN_COLUMNS

REJECT_COLUMNS = ("rejected_reason", "rejected_detail")
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # and the full-width signs
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_OURS = re.compile(f"(raw_)*({'|'.join((*CLEAN_COLUMNS, *REJECT_COLUMNS))})")


class SheetWriter:
    """Writes CSV rows whose cells no spreadsheet runs as a formula."""

    def __init__(self, text: IO[str]) -> None:
        # The default line end: with another one, `csv` leaves a lone carriage return unquoted.
        self._writer = csv.writer(text)

    def write_row(self, cells: Iterable[object]) -> None:
        self._writer.writerow([escape(str(cell)) for cell in cells])


@contextmanager
def sheet_in(file: IO[bytes]) -> Iterator[SheetWriter]:
    """A writer of UTF-8 rows into a binary file that stays open."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        yield SheetWriter(text)
    finally:
        text.detach()


def sheet_text(rows: Iterable[Iterable[object]]) -> str:
    """A small table as the text of a CSV file, header included."""
    text = io.StringIO(newline="")
    writer = SheetWriter(text)
    for row in rows:
        writer.write_row(row)
    return text.getvalue()


def escape(cell: str) -> str:
    """`cell` as a spreadsheet shows it without running it."""
    return "'" + cell if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def unescape(cell: str) -> str:
    """The text that `escape` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def is_our_sheet(columns: Sequence[str]) -> bool:
    """Whether a header is that of `cleaned.csv` or `rejected.csv`, whatever the file is called."""
    return any(tuple(columns[-len(ours) :]) == ours for ours in (CLEAN_COLUMNS, REJECT_COLUMNS))


def renamed_column(name: str) -> str:
    """What the catalogue's column `name` is called in our files."""
    return f"raw_{name}" if _OURS.fullmatch(name) else name


def original_column(name: str) -> str:
    """What `renamed_column` was given."""
    return name[4:] if name.startswith("raw_") and _OURS.fullmatch(name) else name
