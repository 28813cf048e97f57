"""What a rater sees: text as lines of the terminal's own width, and the place for the image.

Pure: a `View` and a `Window` in, a `Frame` out. Nothing here knows which model is on which side.
Color is never the only carrier: rows are called A and B, keys stand in front of their meaning.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from furnclip.arena.lineup import Card, Query
from furnclip.arena.terminal import Window
from furnclip.console import printable
from furnclip.viewers import Box

_MIN_IMAGE_ROWS = 5
_TOO_SMALL = "too small a window to show both rows; make it larger, or quit with Q"
KEYS = (
    ("A", "is better", "wins", "row A answers the query better; which model it is stays hidden"),
    ("B", "is better", "wins", "row B answers the query better"),
    ("T", "tie", "tie", "both rows are equally good"),
    ("X", "both bad", "both bad", "both rows are bad"),
    ("N", "next, no vote", "skip", "next: you cannot or do not want to judge this one"),
    ("U", "undo", "undo", "undo your last vote and judge it again"),
    ("O", "open image", "open", "open the image in a window of the desktop"),
    ("?", "help", "help", "this help"),
    ("Q", "quit, statistics", "quit", "stop and see the statistics; `furnclip arena` continues from there"),
)
"""Key, its meaning, the same in short for narrow windows, and for the help."""


@dataclass(frozen=True)
class View:
    """Everything that can be on the screen."""

    query: Query
    results: tuple[Sequence[Card], Sequence[Card]]
    rater: str
    votes: int
    left: int
    message: str = ""
    images: bool = True
    max_cells: tuple[int, int] | None = None
    """columns and rows that the image may take; None: all that are free"""
    help: bool = False


@dataclass(frozen=True)
class Frame:
    """Lines to write, top to bottom, and where the image goes, if there is room for one."""

    lines: tuple[str, ...]
    box: Box | None
    usable: bool = True
    """off where the window is too small to show both rows: what is cut off cannot be judged"""


class Painter:
    """Turns Rich renderables into lines of a given width."""

    def __init__(self, cols: int, *, color: bool) -> None:
        self._console = Console(
            file=io.StringIO(),
            width=cols,
            height=1000,
            force_terminal=True,
            color_system="standard" if color else None,
            legacy_windows=False,
            highlight=False,
        )

    def lines(self, renderable: RenderableType) -> list[str]:
        with self._console.capture() as capture:
            # a bare Text would be joined into a new one, which forgets that it must not wrap
            self._console.print(Group(renderable), end="")
        return capture.get().splitlines()


def compose(view: View, window: Window, *, color: bool) -> Frame:
    """The screen for a view; the image's place is left empty."""
    painter = Painter(window.cols, color=color)
    above = painter.lines(_header(view)) + painter.lines(_query_line(view))
    below = painter.lines(_message(view)) + painter.lines(_keys(window.cols))
    if view.help:
        return Frame(_filled(above, painter.lines(_help()), below, window.rows), None)
    plain = painter.lines(_results(view, details=False))
    image_rows = window.rows - len(above) - len(plain) - len(below)
    if image_rows < 0:
        return Frame(tuple(wrap(_TOO_SMALL, window.cols)[: window.rows]), None, usable=False)
    if not view.images or image_rows < _MIN_IMAGE_ROWS:
        detailed = painter.lines(_results(view, details=True))
        fits = len(above) + len(detailed) + len(below) <= window.rows
        return Frame(_filled(above, detailed if fits else plain, below, window.rows), None)
    max_cols, max_rows = view.max_cells or (window.cols, image_rows)
    box = Box(
        cols=min(window.cols, max_cols),
        rows=min(image_rows, max_rows),
        left=0,
        top=len(above),
        window_cols=window.cols,
        window_rows=window.rows,
        cell_width_px=window.cell_width_px,
        cell_height_px=window.cell_height_px,
    )
    return Frame((*above, *[""] * image_rows, *plain, *below), box)


def _filled(above: list[str], middle: list[str], below: list[str], rows: int) -> tuple[str, ...]:
    """As many lines as the window has; the keys stay at the bottom whatever has to give way."""
    room = max(0, rows - len(above) - len(below))
    return (*above, *middle[:room], *[""] * (room - len(middle)), *below)[-rows:]


def _line(*parts: tuple[str, str]) -> Text:
    return Text.assemble(
        *((printable(text), style) for text, style in parts), no_wrap=True, overflow="ellipsis"
    )


def _header(view: View) -> RenderableType:
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(
        _line(("furnclip arena", "bold"), (f"  {view.rater}", "dim")),
        _line((f"{view.votes} vote{'' if view.votes == 1 else 's'}", "bold"), (f"  {view.left} left", "dim")),
    )
    return grid


def _query_line(view: View) -> Text:
    return _line(("query ", "bold"), (f"({view.query.kind}): ", "dim"), (view.query.text, "bold cyan"))


def _results(view: View, *, details: bool) -> RenderableType:
    """Both rows as columns side by side, best first."""
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in "AB":
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    where = ("", "") if details else (" upper row", " lower row")
    grid.add_row(
        *(_line((label, "bold reverse"), (place, "dim")) for label, place in zip("AB", where, strict=True))
    )
    for place in range(max(len(row) for row in view.results)):
        cards = [row[place] if place < len(row) else None for row in view.results]
        grid.add_row(*(_line((f"{place + 1} ", "dim"), (card.title, "")) if card else "" for card in cards))
        if details:
            grid.add_row(*(_line((f"  {card.detail}", "dim")) if card else "" for card in cards))
    return grid


def _message(view: View) -> Text:
    return _line((view.message, "dim"))


def _keys(cols: int) -> Text:
    """All keys, in long words where they fit on one line, else in short ones over several."""
    for column in (1, 2):
        entries = [(f"{key[0]} ", key[column]) for key in KEYS]
        if sum(len(key) + len(meaning) + 2 for key, meaning in entries) - 2 <= cols:
            break
    text = Text()
    used = 0
    for key, meaning in entries:
        width = len(key) + len(meaning)
        separator = "" if used == 0 else "  " if used + 2 + width <= cols else "\n"
        used = width if separator in ("", "\n") else used + 2 + width
        text.append(separator).append(key, style="bold").append(meaning, style="dim")
    return text


def _help() -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    grid.add_row("", "two models answered the same query: row A and row B, best first")
    for key, *_, meaning in KEYS:
        grid.add_row(key, meaning)
    grid.add_row("", "any key returns to the query and is not a vote")
    return grid
