"""The only place that prints, and the one door for text of others: column names, file names, settings.

Such text may hold escapes that drive a terminal, letters that turn the line around, and keys; `clean_text`
takes them out, and everything printed here goes through it.

Results go to stdout; messages and progress go to stderr, so that `furnclip ... --json | jq`
always works. Color never carries a meaning alone; `NO_COLOR` and plain pipes are honoured.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from furnclip.errors import FurnclipError

# What keys look like, in case a library quotes one in its message; then passwords inside addresses.
_SECRET_SHAPES = re.compile(
    r"(\bsk-[A-Za-z0-9_\-]{12,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|hf_[A-Za-z0-9]{8,}|(?<=Signature=)[0-9a-f]{16,}"
    r"|(?:(?<=Bearer )|(?<=Basic ))\S+"
    r"|(?<=://)[^\s/@`'\"]*:[^\s@`'\"]*(?=@)"
    r"|(?i:(?<=[?&]))(?i:[\w-]*(?:signature|credential|token|key|secret|password|sig)=)[^&\s`'\"]+)"
)
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
    from rich.text import Text

    stderr().print(
        Text("warning: ", style="yellow bold").append(clean_text(text), style="default not bold"),
        soft_wrap=True,
    )


def print_error(error: FurnclipError) -> None:
    """`error: ...` and `hint: ...`, one line each, on stderr."""
    from rich.text import Text

    for label, style, text in (("error: ", "red bold", error.message), ("hint: ", "cyan bold", error.hint)):
        line = Text(label, style=style).append(one_line(text), style="default not bold")
        stderr().print(line, soft_wrap=True)


def one_line(text: str) -> str:
    """Text of others inside one line of ours."""
    return " ".join(clean_text(text).split())


def emit(payload: Mapping[str, Any], *, as_json: bool, human: Callable[[], None]) -> None:
    """A command's result: one JSON object on stdout, or what `human` prints."""
    if as_json:
        text = json.dumps(payload, ensure_ascii=False, allow_nan=False)
        # escaped where it could drive a terminal, or the output's encoding does not have it
        if not text.isprintable() or not _can_encode(text, sys.stdout.encoding):
            text = json.dumps(payload, ensure_ascii=True, allow_nan=False)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    else:
        human()


def _can_encode(text: str, encoding: str | None) -> bool:
    try:
        text.encode(encoding or "ascii")
    except UnicodeError:
        return False
    return True


def show(renderable: RenderableType) -> None:
    """Print a Rich renderable as a result, on stdout."""
    stdout().print(renderable)


def say(text: str) -> None:
    """Print a plain line as a result, on stdout."""
    stdout().print(clean_text(text), markup=False, soft_wrap=True)


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


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> Table:
    """A table to show or to redraw; numbers are set flush right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(clean_text(title)) if title else None, box=box.SIMPLE_HEAD, title_justify="left")
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        made.add_column(Text(printable(name)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(format_cell(cell)) for cell in row))
    return made


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
    """Print a table as a result, on stdout."""
    show(table(columns, rows, title=title))


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


class Meter:
    """Counts work on a progress bar; `advance` says how much was done."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, amount: float = 1) -> None:
        self._progress.advance(self._task, amount)

    def describe(self, description: str) -> None:
        self._progress.update(self._task, description=one_line(description))

    def set_total(self, total: float) -> None:
        self._progress.update(self._task, total=total)


@contextmanager
def progress(description: str, *, total: float | None, unit: str = "items") -> Iterator[Meter]:
    """A progress bar with rate and ETA on stderr, silent where stderr is not a terminal.

    `unit="bytes"` shows sizes and speed in bytes; anything else counts.
    """
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *amount,
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=stderr(),
        disable=not stderr().is_terminal,
        transient=True,
    ) as bar:
        yield Meter(bar, bar.add_task(one_line(description), total=total))
