"""Voting in a terminal: one screen a trial, one key a vote.

A key counts only while its trial is on the screen with its image: what was typed before is thrown
away, and so is what comes within the first moments after, which is a bounce or a second thought
about the screen before. The next trials' images are drawn while the rater looks at this one.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from furnclip.arena.app import ArenaApp
from furnclip.arena.keys import CTRL_C
from furnclip.arena.screen import Frame, View, compose
from furnclip.arena.sheet import Sheets
from furnclip.arena.state import Trial
from furnclip.arena.terminal import Terminal, Window
from furnclip.arena.votes import OUTCOMES
from furnclip.viewers import Box, Drawing, Viewer, ViewerSetting, desktop_command, detect, open_on_desktop

# No judgment takes less than this; a bouncing key or a reply of the terminal comes faster.
ARMING_S = 0.25
_AHEAD = 2  # trials whose images are drawn before they are needed: fast raters need the second
_MAX_DRAWINGS = _AHEAD + 2  # besides them the one on the screen, and the one before, for undoing
_MENTION_AFTER_S = 0.15  # waiting for an image is mentioned only after this
_POLL_S = 0.05
_IDLE_S = 0.5
_CLEAR = b"\x1b[0m\x1b[2J\x1b[1;1H"
_QUIT = ("Q", CTRL_C)


@dataclass(frozen=True)
class DrawnSheet:
    """A drawing for the terminal, and the sheet that it shows."""

    drawing: Drawing
    sheet: Path


class DrawingQueue:
    """Draws sheets in the background, one at a time; keeps those shown last and those prepared."""

    def __init__(self, folder: Path, viewer: Viewer) -> None:
        self.viewer = viewer
        self._sheets = Sheets(folder)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._started: dict[tuple[Trial, Box], Future[DrawnSheet]] = {}

    def __enter__(self) -> DrawingQueue:
        return self

    def __exit__(self, *exception: object) -> None:
        self.viewer.stop()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def start(self, trial: Trial, box: Box) -> Future[DrawnSheet]:
        """The drawing of the trial on the screen, begun earlier or before all others."""
        if (trial, box) not in self._started:
            self._started = {key: drawing for key, drawing in self._started.items() if not drawing.cancel()}
        return self.prepare(trial, box)

    def prepare(self, trial: Trial, box: Box) -> Future[DrawnSheet]:
        """The drawing of a trial, begun when those requested earlier are done."""
        key = (trial, box)
        if key not in self._started:
            while len(self._started) >= _MAX_DRAWINGS:
                self._started.pop(next(iter(self._started))).cancel()
            self._started[key] = self._worker.submit(self._draw, trial, box)
        return self._started[key]

    def _draw(self, trial: Trial, box: Box) -> DrawnSheet:
        width_px, height_px = box.size_px
        sheet = self._sheets.path(trial, width_px=width_px, height_px=height_px)
        return DrawnSheet(self.viewer.draw(sheet, box), sheet)


class Session:
    """One rater at one terminal."""

    def __init__(self, app: ArenaApp, terminal: Terminal, images: DrawingQueue, *, color: bool) -> None:
        self._app = app
        self._terminal = terminal
        self._images = images
        self._color = color
        size = app.config.arena.viewer_size
        cols, _, rows = size.partition("x")
        self._max_cells = None if size == "auto" else (int(cols), int(rows))
        self._message = "which row answers the query better, A or B? press ? for help"
        self._help = False
        self._quitting = False
        self._asked: Trial | None = None

    def run(self, *, max_votes: int | None = None) -> None:
        """Vote until the rater quits, everything is judged, or `max_votes` were cast in this sitting."""
        enough = None if max_votes is None else self._app.votes_cast + max_votes
        while (trial := self._app.trial) is not None and not self._quitting:
            if enough is not None and self._app.votes_cast >= enough:
                return
            self._show(trial)

    def _show(self, trial: Trial) -> None:
        """Show a trial and wait for what makes this screen out of date: a vote, help, a new size."""
        window = self._terminal.window()
        frame = self._frame(trial, window)
        drawn = None
        if frame.box is not None:
            drawn = self._wait_for(self._images.start(trial, frame.box))
            if drawn is None or self._terminal.window() != window:
                return
            if drawn.drawing.failures:  # a message to show, and perhaps no viewer left
                frame = self._frame(trial, window)
        self._write(frame, drawn)
        if trial != self._asked:
            self._app.question()  # the clock of the vote starts when there is something to see
            self._asked = trial
        self._prepare_next(frame)
        self._terminal.drop_pending()
        self._listen(frame, drawn)

    def _frame(self, trial: Trial, window: Window) -> Frame:
        view = View(
            query=trial.query,
            results=trial.results,
            rater=self._app.rater,
            votes=self._app.votes_cast,
            left=self._app.queries_left,
            message=self._message,
            images=self._images.viewer.draws,
            max_cells=self._max_cells,
            help=self._help,
        )
        return compose(view, window, color=self._color)

    def _wait_for(self, drawing: Future[DrawnSheet]) -> DrawnSheet | None:
        """The image; None when the rater quits while it is drawn."""
        if not wait([drawing], _MENTION_AFTER_S).done:
            self._terminal.write(_CLEAR + b"drawing the images ...   Q quit")
        while not drawing.done():
            keys = self._terminal.read(_POLL_S)
            if set(keys or ()).intersection(_QUIT):
                self._quitting = True
                return None
        drawn = drawing.result()
        if drawn.drawing.failures:
            self._message = f"{'; '.join(drawn.drawing.failures)}; now {drawn.drawing.viewer}"
        return drawn

    def _write(self, frame: Frame, drawn: DrawnSheet | None) -> None:
        """The whole screen in one piece, the image last."""
        text = "".join(f"\x1b[{number};1H{line}" for number, line in enumerate(frame.lines, start=1))
        image = drawn.drawing.data if drawn is not None and frame.box is not None else b""
        self._terminal.write(_CLEAR + self._images.viewer.erasing + text.encode() + image + b"\x1b[0m")

    def _prepare_next(self, frame: Frame) -> None:
        if frame.box is not None:
            for trial in self._app.expected_trials(_AHEAD):
                self._images.prepare(trial, frame.box)

    def _listen(self, frame: Frame, drawn: DrawnSheet | None) -> None:
        armed_at_s = time.monotonic() + ARMING_S
        while True:
            keys = self._terminal.read(_IDLE_S)
            if keys is None:
                return
            if time.monotonic() < armed_at_s or not frame.usable:
                keys = [key for key in keys if key in _QUIT]
            # One screen, one key: what follows in the same moment was not meant for the next screen.
            if keys and self._press(keys[0], drawn):
                return

    def _press(self, key: str, drawn: DrawnSheet | None) -> bool:
        """Handle a key; whether the screen is out of date."""
        if key in _QUIT and not (self._help and key == "Q"):
            self._quitting = True
        elif self._help or key == "?":
            self._help = not self._help
        elif key in OUTCOMES:
            self._vote(key)
        elif key == "U":
            self._message = "vote undone, judge it again" if self._app.undo() else "nothing to undo"
        elif key == "O":
            self._message = _open_window(drawn)
        else:
            return False
        return True

    def _vote(self, key: str) -> None:
        count = self._app.vote(key)
        self._message = "skipped" if key == "N" else f"vote {count} saved: {OUTCOMES[key]}"


def _open_window(drawn: DrawnSheet | None) -> str:
    command = desktop_command()
    if drawn is None:
        return "there is no image to open"
    if not command:
        return "there is no desktop to open a window on"
    opened = open_on_desktop(drawn.sheet, command)
    return f"opened with {command[0]}" if opened else f"{command[0]} could not open the image"


def vote_in_terminal(app: ArenaApp, *, viewer: ViewerSetting = "auto", max_votes: int | None = None) -> None:
    """Let a rater vote in this process's terminal, until they quit or nothing is left.

    Without anything to judge the terminal is left alone. Raises `UsageError` where there is no
    terminal, `TerminalGone` when it is closed.
    """
    if app.trial is None:
        return
    plan = detect(viewer)
    shown_by = Viewer(plan, timeout_s=app.config.arena.viewer_timeout_s)
    with Terminal() as terminal, DrawingQueue(app.config.paths.cache / "arena", shown_by) as images:
        Session(app, terminal, images, color=plan.colors != "none").run(max_votes=max_votes)
