"""CSV and its relatives: header, delimiter and rows, with every product accounted for.

A quote that is not closed properly would swallow the rows up to the next quote. `csv` is strict here: where a
quoted cell does not end at a delimiter or a line end, its quote is text and each line a row. So it is as well
where every line of a cell has the cells of a row and looks as the other rows do (`Table._fits`).

What we write is safe to open in a spreadsheet, which runs a cell such as `=HYPERLINK(...)` as a formula: on
its way out such a cell, or one with apostrophes before such a sign, gets an apostrophe in front, and loses it
on its way in.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import IO

from furnclip import console
from furnclip.catalogue.text import text_lines
from furnclip.errors import InputError

MAX_CELL_CHARS = 2**20
_DELIMITERS = ",;\t|"
_SAMPLE_LINES = 200
_SAMPLE_CHARS = 2**20
_PREAMBLE_LINES = 30
_MOST = 0.6
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_FILE_NAME = re.compile(r"\S*\.[A-Za-z]\w{2,4}|\S*[/\\]\S+")
_NAMES = re.compile(r"[a-z][a-z0-9_\t,;#.:\[\]=-]*", re.IGNORECASE)
_CODE = re.compile(r"[\w.\-/#]*\d[\w.\-/#]*")
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # and the full-width signs
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")

Row = tuple[list[str], str, str]  # cells; a reason and its detail where they cannot be used


class Table(Iterator[str]):
    """A file's header, and its rows: read strictly and, where that fails, line by line.

    Iterating gives the lines below the header to `csv`. Raises `InputError` where there is no header.
    """

    def __init__(self, path: Path) -> None:
        sample: list[str] = []
        with closing(text_lines(path)) as source:
            for line in islice(source, _SAMPLE_LINES):
                sample.append(line)
                if sum(map(len, sample)) > _SAMPLE_CHARS:
                    break
        declared = _SEPARATOR_LINE.fullmatch(sample[0].removeprefix("\ufeff")) if sample else None
        start = 1 if declared else 0
        self.delimiter = declared[1] if declared else _find_delimiter(sample, path.suffix)
        above = _lines_above_header(sample[start:], self.delimiter)
        if above:
            number = start + above + 1
            console.warn_once(f"the header of `{path}` is line {number}; the lines above it are skipped")
        self.header, count = _read_header(sample[start + above :], self.delimiter)
        if not count:
            raise InputError(f"`{path}` has no header line", hint="the first line has to name the columns")
        declared_rows = _declared_header(sample[start:])
        self._line = start + max(above + count, declared_rows[1] if declared_rows else 0)
        rows = (split_line(line, self.delimiter) for line in sample[self._line :])
        whole = [row for row in rows if len(row) == len(self.header)] or [[""] * len(self.header)]
        # what the cells of a column look like, where nearly all look alike
        self._kinds: list[re.Pattern[str] | None] = []
        for column in zip(*whole, strict=True):
            cells = list(filter(None, map(str.strip, column)))
            enough = max(2, len(cells) * _MOST)
            kinds = (
                kind for kind in (_FILE_NAME, _CODE) if sum(map(bool, map(kind.fullmatch, cells))) >= enough
            )
            self._kinds.append(next(kinds, None))
        self.first_line = self._line
        self._lines: Iterator[str] = islice(text_lines(path), self._line, None)
        self._waiting: deque[str] = deque()  # lines that a row had taken and gave back
        self._taken: list[str] = []
        self._in_doubt = False  # the next line may be the rest of a cell whose quote was refused

    @property
    def dialect(self) -> str:
        """By what its rows are told: equal lines below equal dialects are equal rows."""
        return repr((self.header, self.delimiter, self._kinds))

    def take(self, lines: Iterable[str]) -> None:
        """Read these lines for those below the header."""
        self._lines = iter(lines)

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else next(self._lines)
        self._taken.append(line)
        self._line += 1
        return line

    def rows(self) -> Iterator[Row]:
        """Every row below the header that is not blank."""
        csv.field_size_limit(MAX_CELL_CHARS)
        width = len(self.header)
        reader = csv.reader(self, delimiter=self.delimiter, strict=True)
        while True:
            self._taken.clear()
            first, problem = self._line + 1, ""
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells, problem = [], str(error)
            if len(cells) == width and len(self._taken) == 1 and not self._in_doubt:
                yield cells, "", ""
            elif problem or (len(self._taken) > 1 and all(map(self._is_row, self._taken))):
                yield self._literal(first, problem)
            elif len(self._taken) > 1:
                self._in_doubt = False
                yield self._counted(cells, f" in lines {first} to {self._line}; is a quote not closed?")
            elif cells:
                if len(cells) != width:  # `csv` knows no blanks around the quotes of a cell
                    cells = self._cells_of(self._taken[0])
                yield self._judged(cells, first) if self._in_doubt else self._counted(cells)

    def _fits(self, cells: Sequence[str]) -> bool:
        """Whether cells are as many as the columns and look as those of the other rows."""
        if len(cells) != len(self.header):
            return False
        pairs = [(cell, kind) for cell, kind in zip(cells, self._kinds, strict=True) if kind and cell.strip()]
        return bool(pairs) and all(kind.fullmatch(cell.strip()) for cell, kind in pairs)

    def _cells_of(self, line: str) -> list[str]:
        """The cells of one line; its quotes are text where that makes it a row as the others are."""
        cells = split_line(line, self.delimiter)
        plain = line.rstrip("\r\n").split(self.delimiter)
        return plain if len(cells) != len(self.header) and self._fits(plain) else cells

    def _is_row(self, line: str) -> bool:
        return line.count(self.delimiter) >= len(self.header) - 1 and self._fits(self._cells_of(line))

    def _literal(self, first: int, problem: str) -> Row:
        """The first line as a row whose quotes are text; the lines after it are read again."""
        line, *rest = self._taken
        self._waiting.extendleft(reversed(rest))
        self._line -= len(rest)
        cells = self._cells_of(line)
        if any(len(cell) > MAX_CELL_CHARS for cell in cells):
            return cells, "unreadable-row", problem
        return self._judged(cells, first)

    def _judged(self, cells: list[str], first: int) -> Row:
        """A line as a row, if it looks as the others do: it may be a piece of a cell with an open quote."""
        self._in_doubt = not self._fits(cells) if any(self._kinds) else len(cells) != len(self.header)
        problem = f"a quote in line {first} or above it is not closed"
        return (cells, "open-quote", problem) if self._in_doubt else (cells, "", "")

    def _counted(self, cells: list[str], where: str = "") -> Row:
        width = len(self.header)
        problem = f"{len(cells)} cells under {width} columns{where}"
        return (cells, "", "") if len(cells) == width else (cells, "wrong-number-of-cells", problem)


def _read_header(lines: Sequence[str], delimiter: str) -> tuple[list[str], int]:
    """The names of the columns, and how many lines they and blank lines above take; 0: there are none."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    with suppress(csv.Error):  # a quote that is not closed
        header = next((cells for cells in reader if any(map(str.strip, cells))), [])
        return header, reader.line_num if header else 0
    first = next(number for number, line in enumerate(lines) if line.strip())
    return split_line(lines[first], delimiter), first + 1


def _find_delimiter(lines: Sequence[str], suffix: str) -> str:
    """The one that the first line uses most outside quotes, unless that line is none of the table."""
    unquoted = ["".join(line.split('"')[::2]) for line in lines]
    first = next((text for text, line in zip(unquoted, lines, strict=True) if line.strip()), "")
    if suffix.lower() == ".tsv" and "\t" in first:
        return "\t"
    agreement = {}  # in how many lines a delimiter is as often as in most, and how often that is
    for delimiter in _DELIMITERS:
        counts = Counter(count for line in unquoted if (count := line.count(delimiter)))
        agreement[delimiter] = max(((lines, count) for count, lines in counts.items()), default=(0, 0))
    wanted = max(_DELIMITERS, key=first.count)
    best = max(_DELIMITERS, key=lambda delimiter: agreement[delimiter])
    is_sentence = first.count(wanted) < 2 and agreement[best][0] > 2 * agreement[wanted][0]
    return best if is_sentence or _lines_above_header(lines, wanted) else wanted


def _lines_above_header(lines: Sequence[str], delimiter: str) -> int:
    """Lines above the header that are no row of the table: a title, a date, an address."""
    if declared := _declared_header(lines):
        return declared[0]
    widths = Counter(len(split_line(line, delimiter)) for line in lines if line.strip())
    width = max(widths, key=lambda cells: (widths[cells], cells), default=1)
    if width < 2:
        return 0
    for number, line in enumerate(lines[:_PREAMBLE_LINES]):
        cells = split_line(line, delimiter)
        if sum(cell.lstrip("\ufeff").startswith("# ") for cell in cells) > 1:
            continue  # what its columns are for, as Facebook writes it
        filled = sum(bool(cell.strip()) for cell in cells)
        if filled > 1 and (filled > width // 3 or len(cells) != width):
            return number
    return 0


def _declared_header(lines: Sequence[str]) -> tuple[int, int] | None:
    """Of an Amazon flat file, told by its first line: the lines above its header, and above its rows."""
    first = lines[0] if lines else ""
    if not (first.lstrip('\ufeff"').startswith("TemplateType=") or "attributeRow=" in first):
        return None
    header, rows = (re.search(rf"\b{name}=(\d+)", first) for name in ("attributeRow", "dataRow"))
    above = (
        int(header[1]) - 1 if header else 2 if len(lines) > 2 and _NAMES.fullmatch(lines[2].strip()) else 1
    )
    return min(above, len(lines) - 1), int(rows[1]) - 1 if rows else 0


def split_line(line: str, delimiter: str) -> list[str]:
    """The cells of one line; a quote that does not enclose a whole cell is text."""
    end = re.escape(delimiter)
    cell = rf'(?:^|{end})(?: *"((?:[^"]|"")*)" *(?={end}|$)|([^{end}]*))'
    found = re.finditer(cell, line.rstrip("\r\n"))
    return [match[2] if match[1] is None else match[1].replace('""', '"') for match in found]


def write_row(file: IO[bytes], cells: Iterable[object]) -> None:
    """Add a row to a CSV file whose cells no spreadsheet runs as a formula; each as `str` writes it."""
    file.write(sheet_text([cells]).encode("utf-8"))


def sheet_text(rows: Iterable[Iterable[object]]) -> str:
    """A small table as the text of a CSV file, header included."""
    text = io.StringIO(newline="")
    # The default line end: with another one, `csv` leaves a lone carriage return unquoted.
    csv.writer(text).writerows([escape(str(cell)) for cell in row] for row in rows)
    return text.getvalue()


def escape(cell: str) -> str:
    """`cell` as a spreadsheet shows it without running it."""
    return "'" + cell if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def unescape(cell: str) -> str:
    """The text that `escape` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
