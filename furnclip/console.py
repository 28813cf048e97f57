"""The only place that prints.

Results go to stdout; talk, warnings and progress go to stderr, so that `furnclip ... --json | jq`
always works. Colour is never the only carrier of a meaning; `NO_COLOR` and plain pipes are honoured.
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

# What keys look like, in case a library quotes one in its message.
_SECRET_SHAPES = re.compile(
    r"(sk-[A-Za-z0-9_\-]{6,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|(?<=Bearer )\S+|(?<=Signature=)[0-9a-f]{16,})"
)


def redact(text: str) -> str:
    """`text` with anything that looks like an API key or signature replaced by `***`."""
    return _SECRET_SHAPES.sub("***", text)


@cache
def stderr() -> Console:
    """The console for talk: notes, warnings, progress."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@cache
def stdout() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(highlight=False)


def note(text: str) -> None:
    """Say something in passing, on stderr."""
    stderr().print(redact(text), markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Say what the user should look at, on stderr."""
    from rich.text import Text

    stderr().print(
        Text("warning: ", style="yellow bold").append(redact(text), style="default not bold"), soft_wrap=True
    )


def print_error(error: FurnclipError) -> None:
    """`error: ...` and `hint: ...`, one line each, on stderr."""
    from rich.text import Text

    for label, style, text in (("error: ", "red bold", error.message), ("hint: ", "cyan bold", error.hint)):
        line = Text(label, style=style).append(_one_line(redact(text)), style="default not bold")
        stderr().print(line, soft_wrap=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def emit(payload: Mapping[str, Any], *, as_json: bool, human: Callable[[], None]) -> None:
    """A command's result: one JSON object on stdout, or what `human` prints."""
    if as_json:
        sys.stdout.write(json.dumps(payload, ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()
    else:
        human()


def show(renderable: RenderableType) -> None:
    """Print a Rich renderable as a result, on stdout."""
    stdout().print(renderable)


def say(text: str) -> None:
    """Print a plain line as a result, on stdout."""
    stdout().print(redact(text), markup=False, soft_wrap=True)


def show_bytes(data: bytes) -> None:
    """Write a picture as a terminal draws it, on stdout, in order with what was printed before."""
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

    made = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        made.add_column(name, justify="right" if numeric else "left", overflow="fold")
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
    return printable(str(cell))


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
        self._progress.update(self._task, description=description)

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
        TextColumn("{task.description}"),
        BarColumn(),
        *amount,
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=stderr(),
        disable=not stderr().is_terminal,
        transient=True,
    ) as bar:
        yield Meter(bar, bar.add_task(description, total=total))
