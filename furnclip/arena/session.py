"""Voting in a terminal: one screen a trial, one key a vote.

`compose` is pure: a `View` and a `Window` in, a `Frame` out. It does not know which model is on which side.

A key counts only while its trial is on the screen with its image: what was typed before is thrown away, and
so is what comes within the first moments after, a bounce or a second thought about the screen before.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import wrap
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from furnclip.arena.app import ArenaApp, Trial
from furnclip.arena.lineup import Card, JudgedQuery
from furnclip.arena.sheet import AHEAD, DrawingQueue, Drawn
from furnclip.arena.terminal import CTRL_C, Terminal
from furnclip.arena.votes import OUTCOMES
from furnclip.console import printable
from furnclip.viewers import Box, Viewer, ViewerSetting, Window, detect, open_on_desktop

# No judgment takes less than this; a bouncing key or a reply of the terminal comes faster.
_ARMING_S = 0.25
_MENTION_AFTER_S = 0.15  # waiting for an image is mentioned only after this
_POLL_S = 0.05
_IDLE_S = 0.2  # between looks at the window's size
_MIN_IMAGE_ROWS = 5
_QUERY_ROWS = 4  # about as many are filled by the longest query shown whole
_TOO_SMALL = "too small a window to show both rows; make it larger, or quit with Q"
_CLEAR = b"\x1b[0m\x1b[2J\x1b[1;1H"
_QUIT = ("Q", CTRL_C)
# Key, its meaning, the same in short for narrow windows, and for the help.
_KEYS = (
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


@dataclass(frozen=True)
class View:
    """Everything that can be on the screen."""

    query: JudgedQuery
    results: tuple[Sequence[Card], Sequence[Card]]
    rater: str
    votes: int
    left: int
    message: str = ""
    images: bool = True
    max_cells: tuple[int, int] | None = None  # columns and rows that the image may take; None: all
    help: bool = False


class Frame(NamedTuple):
    """Lines to write, top to bottom, and where the image goes, if there is room for one."""

    lines: tuple[str, ...]
    box: Box | None
    usable: bool = True  # off where the window is too small: what is cut off cannot be judged


def compose(view: View, window: Window, *, color: bool) -> Frame:
    """The screen for a view; the image's place is left empty."""
    votes = (f"{view.votes} vote{'' if view.votes == 1 else 's'}", "bold")
    header = Table.grid(expand=True)
    header.add_column(no_wrap=True, overflow="ellipsis")
    header.add_column(justify="right", no_wrap=True)
    rater = _line(("furnclip arena", "bold"), (f"  {view.rater}", "dim"))
    header.add_row(rater, _line(votes, (f"  {view.left} left", "dim")))
    asked = (("query ", "bold"), (f"({view.query.kind}): ", "dim"), (view.query.text, "bold cyan"))
    query = _line(*asked, wraps=True)
    query.truncate(_QUERY_ROWS * window.cols, overflow="ellipsis")
    above = _painted(Group(header, query), window, color=color)
    below = _painted(Group(_line((view.message, "dim")), _keys(window.cols)), window, color=color)
    plain = _painted(_results(view, details=False), window, color=color)
    image_rows = window.rows - len(above) - len(plain) - len(below)
    if view.help:
        middle = _painted(_help(), window, color=color)
    elif image_rows < 0:
        return Frame(tuple(wrap(_TOO_SMALL, window.cols)[: window.rows]), None, usable=False)
    elif not view.images or image_rows < _MIN_IMAGE_ROWS:
        detailed = _painted(_results(view, details=True), window, color=color)
        middle = detailed if len(above) + len(detailed) + len(below) <= window.rows else plain
    else:
        max_cols, max_rows = view.max_cells or (window.cols, image_rows)
        cols, rows = min(window.cols, max_cols), min(image_rows, max_rows)
        box = Box(cols, rows, left=0, top=len(above), window=window)
        return Frame((*above, *[""] * image_rows, *plain, *below), box)
    # the keys stay at the bottom whatever has to give way
    room = max(0, window.rows - len(above) - len(below))
    filled = (*above, *middle[:room], *[""] * (room - len(middle)), *below)
    return Frame(filled[-window.rows :], None)


def _painted(renderable: RenderableType, window: Window, *, color: bool) -> list[str]:
    """Lines of the window's width."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=window.cols,
        height=1000,
        force_terminal=True,
        color_system="standard" if color else None,
        legacy_windows=False,
    )
    # a bare Text would be joined into a new one, which forgets that it must not wrap
    console.print(Group(renderable), end="", highlight=False)
    return file.getvalue().splitlines()


def _line(*parts: tuple[str, str], wraps: bool = False) -> Text:
    words = ((printable(text), style) for text, style in parts)
    return Text.assemble(*words, no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")


def _results(view: View, *, details: bool) -> RenderableType:
    """Both rows as columns side by side, best first."""
    grid, labels = Table.grid(expand=True, padding=(0, 1)), []
    for _ in "AB":
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for label, where in (("A", " upper row"), ("B", " lower row")):
        labels.append(_line((label, "bold reverse"), ("" if details else where, "dim")))
    grid.add_row(*labels)
    for place, cards in enumerate(zip_longest(*view.results), start=1):
        grid.add_row(*(_line((f"{place} ", "dim"), (card.title, "")) if card else "" for card in cards))
        if details:
            grid.add_row(*(_line((f"  {card.detail}", "dim")) if card else "" for card in cards))
    return grid


def _keys(cols: int) -> Text:
    """All keys, in long words where they fit on one line, else in short ones over several."""
    for column in (1, 2):
        entries = [(f"{key[0]} ", key[column]) for key in _KEYS]
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
    for key, *_, meaning in _KEYS:
        grid.add_row(key, meaning)
    grid.add_row("", "any key returns to the query and is not a vote")
    return grid


class Session:
    """One rater at one terminal."""

    def __init__(self, app: ArenaApp, terminal: Terminal, images: DrawingQueue, *, color: bool) -> None:
        self._app, self._terminal, self._images, self._color = app, terminal, images, color
        cols, _, rows = app.config.arena.viewer_size.partition("x")
        self._max_cells = (int(cols), int(rows)) if rows else None  # `auto`
        self._message = "which row answers the query better, A or B? press ? for help"
        self._help = self._quitting = False

    def run(self, *, max_votes: int | None = None) -> None:
        """Vote until the rater quits, everything is judged, or `max_votes` were cast in this sitting."""
        enough = None if max_votes is None else self._app.votes_cast + max_votes
        while (trial := self._app.trial) is not None and not self._quitting:
            if enough is not None and self._app.votes_cast >= enough:
                return
            self._show(trial)

    def _show(self, trial: Trial) -> None:
        """Show a trial and wait for what makes this screen out of date: a vote, help, a new size."""
        window, drawn = self._terminal.window(), None
        frame = self._frame(trial, window)
        if frame.box is not None:
            drawn = self._wait_for(self._images.start(trial, frame.box))
            if drawn is None or self._terminal.window() != window:
                return
            if failures := drawn[0].failures:  # a message to show, and perhaps no viewer left
                self._message = f"{'; '.join(failures)}; now {drawn[0].viewer}"
                frame = self._frame(trial, window)
        # the whole screen in one piece, the image last
        text = "".join(f"\x1b[{number};1H{line}" for number, line in enumerate(frame.lines, start=1))
        image = drawn[0].data if drawn is not None and frame.box is not None else b""
        self._terminal.write(_CLEAR + self._images.viewer.erasing + text.encode() + image + b"\x1b[0m")
        self._app.question()  # the clock of the vote starts when there is something to see
        if frame.box is not None:
            for expected in self._app.judging.expected(AHEAD):
                self._images.start(expected, frame.box, ahead=True)
        self._terminal.drop_pending()
        self._listen(frame, window, drawn)

    def _frame(self, trial: Trial, window: Window) -> Frame:
        view = View(
            query=trial.query,
            results=trial.results,
            rater=self._app.rater,
            votes=self._app.votes_cast,
            left=self._app.judging.left,
            message=self._message,
            images=bool(self._images.viewer.candidates),
            max_cells=self._max_cells,
            help=self._help,
        )
        return compose(view, window, color=self._color)

    def _wait_for(self, drawing: Future[Drawn]) -> Drawn | None:
        """The image; None when the rater quits while it is drawn."""
        if not wait([drawing], _MENTION_AFTER_S).done:
            self._terminal.write(_CLEAR + b"drawing the images ...   Q quit")
        while not drawing.done():
            if set(self._terminal.read(_POLL_S)).intersection(_QUIT):
                self._quitting = True
                return None
        return drawing.result()

    def _listen(self, frame: Frame, window: Window, drawn: Drawn | None) -> None:
        armed_at_s = time.monotonic() + _ARMING_S
        while self._terminal.window() == window:
            keys = self._terminal.read(_IDLE_S)
            if time.monotonic() < armed_at_s or not frame.usable:
                keys = [key for key in keys if key in _QUIT]
            # One screen, one key: what follows in the same moment was not meant for the next screen.
            if keys and self._press(keys[0], drawn):
                return

    def _press(self, key: str, drawn: Drawn | None) -> bool:
        """Handle a key; whether the screen is out of date."""
        if key in _QUIT and not (self._help and key == "Q"):
            self._quitting = True
        elif self._help or key == "?":
            self._help = not self._help
        elif key in OUTCOMES:
            count = self._app.vote(key)
            self._message = "skipped" if key == "N" else f"vote {count} saved: {OUTCOMES[key]}"
        elif key == "U":
            self._message = "vote undone, judge it again" if self._app.undo() else "nothing to undo"
        elif key == "O":
            self._message = open_on_desktop(drawn[1]) if drawn else "there is no image to open"
        else:
            return False
        return True


def vote_in_terminal(app: ArenaApp, *, viewer: ViewerSetting = "auto", max_votes: int | None = None) -> None:
    """Let a rater vote in this process's terminal, until they quit or nothing is left.

    Raises `InputError` where the models agreed on every query, `UsageError` where there is no terminal,
    `TerminalGone` when it is closed.
    """
    app.lineup.require_difference()
    if app.trial is None:
        return
    plan = detect(viewer)
    viewing = Viewer(plan, timeout_s=app.config.arena.viewer_timeout_s)
    with Terminal() as terminal, DrawingQueue(viewing, app.config.paths.cache / "arena") as images:
        Session(app, terminal, images, color=plan.colors != "none").run(max_votes=max_votes)
