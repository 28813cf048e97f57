"""The only place that prints, and the one door for text of others: column names, file names, settings.

Such text may hold escapes that drive a terminal, letters that turn the line around, and keys; `clean_text`
takes them out, and everything printed here goes through it. Results go to stdout; messages and progress go to
stderr. Color never carries a meaning alone; `NO_COLOR` and plain pipes are honored.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.text import Text

    from furnclip.errors import FurnclipError

# What keys look like, in case a library quotes one in its message; then passwords inside addresses.
_SECRET_SHAPES = re.compile(
    r"(\bsk-[A-Za-z0-9_\-]{12,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|hf_[A-Za-z0-9]{8,}|(?<=Signature=)[0-9a-f]{16,}"
    r"|(?:(?<=Bearer )|(?<=Basic ))\S+"
    r"|(?<=://)[^\s/@`'\"]*:[^\s@`'\"]*(?=@)"
    r"|(?i:(?<=[?&]))(?i:[\w-]*(?:signature|credential|token|key|secret|password|sig)=)[^&\s`'\"]+)"
)
_LONGEST_WORD = 24  # that a table keeps whole
_FRAME_CELLS = 3  # around each column of a table
_SHORTEST_SECRET = 12  # a placeholder like `local` is a word of its own
_secrets: set[str] = set()


def hide(secret: str) -> None:
    """Never print this key, whatever quotes it: neither whole nor the readable pieces of a malformed one."""
    _secrets.update(part for part in re.findall(r"[!-~]+", secret) if len(part) >= _SHORTEST_SECRET)


def redact(text: str) -> str:
    """`text` with keys, signatures and passwords replaced by `***`."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _SECRET_SHAPES.sub(_starred, text)


def _starred(match: re.Match[str]) -> str:
    name, equals, _ = match[0].partition("=")
    return f"{name}=***" if equals and match.string[match.start() - 1 : match.start()] in "?&" else "***"


def clean_text(text: str) -> str:
    """Text for a terminal: no secrets, no control characters but line breaks."""
    return "\n".join(printable(line) for line in redact(text).split("\n"))


@cache
def stderr() -> Console:
    """The console for messages: notes, warnings, progress."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@cache
def stdout() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(highlight=False)


def replace_unprintable() -> None:
    """Print `?` for what the output's encoding does not have, as on a Windows pipe, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's or a test's stream may not have an encoding
            stream.reconfigure(errors="replace")


def flush() -> None:
    """Flush both streams; raises `BrokenPipeError` when the reader is gone."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def note(text: str) -> None:
    """Print a message on stderr."""
    stderr().print(clean_text(text), markup=False, soft_wrap=True)


def confirm(question: str) -> bool:
    """The user's yes or no to a question on the terminal; no where there is no terminal to answer at."""
    if sys.stdin is None or not sys.stdin.isatty() or not stderr().is_terminal:
        return False
    stderr().print(f"{one_line(question)} [y/N]: ", markup=False, soft_wrap=True, end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def warn(text: str) -> None:
    """Print a warning on stderr."""
    _print_labeled("warning: ", "yellow", clean_text(text))


@cache
def warn_once(text: str) -> None:
    """A warning on stderr, the first time only: the same file is read several times in a run."""
    warn(text)


def print_error(error: FurnclipError) -> None:
    """`error: ...` and `hint: ...`, one line each, on stderr."""
    _print_labeled("error: ", "red", one_line(error.message))
    _print_labeled("hint: ", "cyan", one_line(error.hint))


def _print_labeled(label: str, color: str, text: str) -> None:
    from rich.text import Text

    line = Text(label, style=f"{color} bold").append(text, style="default not bold")
    stderr().print(line, soft_wrap=True)


def one_line(text: str) -> str:
    """Text of others inside one line of ours."""
    return " ".join(clean_text(text).split())


def print_json(payload: Mapping[str, Any]) -> None:
    """A command's result as one JSON object on stdout."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False)
    encoding = sys.stdout.encoding or "ascii"
    # escaped where it could drive a terminal, or the output's encoding does not have it
    if not text.isprintable() or text.encode(encoding, "replace").decode(encoding) != text:
        text = json.dumps(payload, ensure_ascii=True, allow_nan=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def record(event: Mapping[str, Any]) -> None:
    """Write a line of a log on stderr, as JSON."""
    if sys.stderr is not None:
        sys.stderr.write(redact(json.dumps(event)) + "\n")


def say(text: str, *, wrap: bool = False) -> None:
    """Print plain lines as a result, on stdout.

    `wrap`: sentences, broken at blanks on a terminal; a path or command stays whole for whoever copies it.
    """
    wraps = wrap and stdout().is_terminal
    stdout().print(clean_text(text), markup=False, soft_wrap=not wraps)


def show_bytes(data: bytes) -> None:
    """Write an image as a terminal draws it, on stdout, in order with what was printed before."""
    stream = stdout().file
    stream.flush()
    buffer = getattr(stream, "buffer", None)
    if buffer is None:  # a text-only stream in a notebook or test
        stream.write(data.decode("utf-8", "replace"))
    else:
        buffer.write(data)
        buffer.flush()


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
    """Print a table as a result, on stdout; numbers are set flush right.

    Where the words of a row do not fit beside each other, each cell has a line of its own.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[Text(format_cell(cell)) for cell in row] for row in ([*columns], *rows)]
    widths = _column_widths(cells, stdout().width - _FRAME_CELLS * len(columns) - 1)
    if title:
        say(title, wrap=True)
    if not widths:
        for row in cells[1:]:
            pairs = zip(cells[0], row, strict=True)
            say("\n".join(("", *(f"{name}: {cell}".removeprefix(": ") for name, cell in pairs))), wrap=True)
        return say("")
    made = Table(box=box.SIMPLE_HEAD)
    for index, (name, width) in enumerate(zip(cells[0], widths, strict=True)):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        made.add_column(name, justify="right" if numeric else "left", overflow="fold", width=width)
    for row in cells[1:]:
        made.add_row(*row)
    stdout().print(made)


def _column_widths(cells: Sequence[Sequence[Text]], room: int) -> list[int]:
    """As wide as the longest word, with equal shares of what room is left; empty: too narrow."""
    measured = [[stdout().measure(cell) for cell in column] for column in zip(*cells, strict=True)]
    widths = [min(_LONGEST_WORD, max(cell.minimum for cell in column)) for column in measured]
    longest = [max(cell.maximum for cell in column) for column in measured]
    spare, left = room - sum(widths), len(widths)
    for index in sorted(range(left), key=lambda index: longest[index] - widths[index]):
        given = max(0, min(spare // left, longest[index] - widths[index]))
        widths[index], spare, left = widths[index] + given, spare - given, left - 1
    return widths if spare >= 0 else []


def format_cell(cell: object) -> str:
    """A table cell as text: None is a dash, a float has three decimals, control characters go."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3f}"
    return printable(str(cell))  # a product id may look like a key


def printable(text: str) -> str:
    """`text` without control characters, so that a product title cannot drive the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


class Meter(NamedTuple):
    """Counts work on a progress bar."""

    bar: Progress
    task: TaskID

    def advance(self, amount: float = 1) -> None:
        self.bar.advance(self.task, amount)

    def show(self, done: float, total: float, text: str = "") -> None:
        """So much of the work is done; `text`: another description."""
        self.bar.update(self.task, completed=done, total=total, description=one_line(text) or None)


@contextmanager
def progress(description: str, *, total: float | None, unit: str = "items") -> Iterator[Meter]:
    """A progress bar with rate and ETA on stderr, silent where that is not a terminal; `unit`: or "bytes"."""
    from rich import progress as shown

    count = (shown.MofNCompleteColumn(),)
    size = (shown.DownloadColumn(), shown.TransferSpeedColumn())
    with shown.Progress(
        shown.TextColumn("{task.description}", markup=False),
        shown.BarColumn(),
        *(size if unit == "bytes" else count),
        shown.TimeElapsedColumn(),
        shown.TextColumn("eta"),
        shown.TimeRemainingColumn(),
        console=stderr(),
        disable=not stderr().is_terminal,
        transient=True,
    ) as bar:
        yield Meter(bar, bar.add_task(one_line(description), total=total))
