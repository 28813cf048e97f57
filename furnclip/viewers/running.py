"""Running viewers so that none of them can hurt: what they may do is decided here.

A viewer gets no shell, no keyboard (its own session has no terminal to read from), a time limit and
a limit on its output. Its output is captured and only handed on when it is complete: text keeps
colours and characters and nothing else, a graphics protocol must end what it began. A viewer that
failed is not tried again by the same `Viewer`.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from furnclip.console import printable
from furnclip.viewers.blocks import half_blocks
from furnclip.viewers.detection import Candidate, Plan
from furnclip.viewers.protocols import fits_by_width, iterm_picture, kitty_picture
from furnclip.viewers.template import fill, mentions

_MOST_OUTPUT_BYTES = 32 * 2**20  # a full-screen sixel picture is about 1 MB
_TRANSLATION_S = 2.0
_GRACE_S = 0.05  # output that a finished viewer's own children may still be writing
# How pictures begin in kitty's, sixel's and iTerm2's protocols, and such a string with its end.
_PICTURE = rb"\x1b(?:_G|P[0-9;]*q|\]1337;File)"
_PICTURE_START = re.compile(_PICTURE)
# (through tmux to the terminal around it every escape is doubled).
_PICTURE_WHOLE = re.compile(_PICTURE + rb"[^\x07\x1b]*(?:\x07|\x1b?\x1b\\)")
_COLOR = re.compile(r"\x1b\[[0-9;:]*m")
_NOT_COLOR = re.compile(r"\x1b(?!\[[0-9;:]*m)")
# A whole escape sequence of any kind, or the beginning of one.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[_P\]X^][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)")


@dataclass(frozen=True)
class Box:
    """Where a picture goes, in cells; without `left` and `top` it goes to the cursor."""

    cols: int
    rows: int
    left: int | None = None
    top: int | None = None
    window_cols: int = 80
    window_rows: int = 24
    cell_width_px: int = 8
    cell_height_px: int = 16

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.cols * self.cell_width_px, self.rows * self.cell_height_px

    def values(self) -> dict[str, object]:
        """What the placeholders of a viewer command stand for."""
        width_px, height_px = self.size_px
        return {
            **{"cols": self.cols, "rows": self.rows, "left": self.left or 0, "top": self.top or 0},
            **{"pxw": width_px, "pxh": height_px, "tcols": self.window_cols, "trows": self.window_rows},
            "tpxw": self.window_cols * self.cell_width_px,
            "tpxh": self.window_rows * self.cell_height_px,
        }


@dataclass(frozen=True)
class Drawing:
    """Bytes for the terminal, who made them (`none`: nobody could), and who failed on the way."""

    data: bytes
    viewer: str
    failures: tuple[str, ...] = ()


class ViewerFailed(Exception):
    """One viewer could not draw; the next one is tried."""


class Viewer:
    """Draws pictures as a plan says, and remembers who failed."""

    def __init__(self, plan: Plan, *, timeout_s: float = 5.0) -> None:
        self.plan = plan
        self._timeout_s = timeout_s
        self._candidates = list(plan.candidates)
        self._stopped = threading.Event()
        self._drew_in_kitty = False

    @property
    def draws(self) -> bool:
        """Whether anybody is left to draw."""
        return bool(self._candidates)

    @property
    def erasing(self) -> bytes:
        """What removes earlier pictures that clearing the screen may leave behind."""
        return b"\x1b_Ga=d,q=2\x1b\\" if self._drew_in_kitty else b""

    def stop(self) -> None:
        """End a drawing that another thread waits for; nothing is drawn from now on."""
        self._stopped.set()

    def draw(self, picture: Path, box: Box, *, original: Path | None = None) -> Drawing:
        """The picture for this box from the first viewer that can; `original` fills `{original}`.

        `picture` must be one that Pillow can read: a broken one would make every viewer look broken.
        """
        failures: list[str] = []
        for candidate in [each for each in self._candidates if box.left is not None or not each.needs_place]:
            try:
                data = self._draw_with(candidate, picture, box, original or picture)
            except ViewerFailed as failure:
                self._candidates.remove(candidate)
                failures.append(f"{candidate.name}: {printable(str(failure))}")
            else:
                self._drew_in_kitty = self._drew_in_kitty or b"\x1b_G" in data
                return Drawing(data, candidate.name, tuple(failures))
        return Drawing(b"", "none", tuple(failures))

    def _draw_with(self, candidate: Candidate, picture: Path, box: Box, original: Path) -> bytes:
        if candidate.protocol:
            return self._draw_directly(candidate.protocol, picture, box)
        paths: dict[str, object] = {
            "path": picture.absolute(),
            "uri": picture.absolute().as_uri(),
            "original": original.absolute(),
        }
        if mentions(candidate.arguments, "winpath"):
            paths["winpath"] = windows_path(picture)
        output = run_viewer(
            fill(candidate.arguments, {**box.values(), **paths}),
            timeout_s=self._timeout_s,
            stderr_means_failure=candidate.stderr_means_failure,
            stopped=self._stopped,
        )
        return _presentable(output, box, colors=self.plan.colors)

    def _draw_directly(self, protocol: str, picture: Path, box: Box) -> bytes:
        if self.plan.colors == "none":
            raise ViewerFailed("it is nothing without colour")
        if protocol == "kitty":
            by_width = fits_by_width(picture, *box.size_px)
            cells = box.cols if by_width else box.rows
            return _start(box) + kitty_picture(picture, fitted_by_width=by_width, cells=cells)
        if protocol == "iterm":
            return _start(box) + iterm_picture(picture, cols=box.cols, rows=box.rows)
        with Image.open(picture) as image:
            lines = half_blocks(image, cols=box.cols, rows=box.rows, colors=self.plan.colors)
        return _place_lines(lines, box)


def _start(box: Box) -> bytes:
    """Moves the cursor to the box, if it has a place."""
    return b"" if box.left is None else f"\x1b[{(box.top or 0) + 1};{box.left + 1}H".encode()


def _place_lines(lines: Sequence[str], box: Box) -> bytes:
    """Lines of text at the box's place, each at its own position; below each other at the cursor."""
    if box.left is None or box.top is None:
        return "".join(f"{line}\r\n" for line in lines).encode()
    placed = (f"\x1b[{box.top + number + 1};{box.left + 1}H{line}" for number, line in enumerate(lines))
    return "".join(placed).encode()


def _presentable(output: bytes, box: Box, *, colors: str) -> bytes:
    """Captured output made safe to write; raises `ViewerFailed` when there is no picture in it."""
    if _PICTURE_START.search(output):
        if _PICTURE_START.search(_PICTURE_WHOLE.sub(b"", output)):
            raise ViewerFailed("its output stops in the middle of a picture")
        return _start(box) + output + b"\x1b[0m"
    lines = [_only_colored_text(line, colors) for line in output.decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if _COLOR.sub("", line)][: box.rows]
    if not lines:
        raise ViewerFailed("it drew nothing")
    return _place_lines(lines, box)


def _only_colored_text(line: str, colors: str) -> str:
    """Without cursor movements, queries, titles and halves of escapes: printable text and colours."""
    if colors == "none" or _NOT_COLOR.search(line):  # rare, and slow for thousands of cells
        line = _ESCAPE.sub(lambda match: match.group() if _keeps(match.group(), colors) else "", line)
    if not line.replace("\x1b", "").isprintable():
        line = "".join(c for c in line if c == "\x1b" or c.isprintable())
    return line if colors == "none" else f"{line}\x1b[0m"


def _keeps(escape: str, colors: str) -> bool:
    return colors != "none" and _COLOR.fullmatch(escape) is not None


def run_viewer(
    arguments: Sequence[str],
    *,
    timeout_s: float,
    stderr_means_failure: bool = False,
    stopped: threading.Event | None = None,
) -> bytes:
    """What the command wrote to stdout.

    Raises `ViewerFailed` when it cannot start, takes too long, exits with another code than 0, or
    writes more than any picture needs, or when `stopped` is set. It and its children are then gone.
    """
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise ViewerFailed(f"cannot start: {error}") from None
    with process:
        try:
            output, talk = _collect(process, time.monotonic() + timeout_s, stopped or threading.Event())
        finally:
            _end(process)
    if process.returncode != 0:
        raise ViewerFailed(f"exit code {process.returncode}{_first_line(talk)}")
    if stderr_means_failure and talk.strip():
        raise ViewerFailed(f"it complained{_first_line(talk)}")
    return output


def windows_path(path: Path) -> str:
    """How Windows programs call a file of WSL. Raises `ViewerFailed` where nothing can tell."""
    output = run_viewer(["wslpath", "-w", str(path.absolute())], timeout_s=_TRANSLATION_S)
    return output.decode("utf-8", "replace").strip()


def _collect(
    process: subprocess.Popen[bytes], deadline: float, stopped: threading.Event
) -> tuple[bytes, bytes]:
    """stdout and stderr until both end, or until the viewer itself has ended and fallen silent."""
    assert process.stdout is not None
    assert process.stderr is not None
    gathered = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as selector:
        for descriptor in gathered:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(min(_left_s(deadline), _GRACE_S))
            if stopped.is_set():
                raise ViewerFailed("stopped")
            if not ready and process.poll() is not None:
                break
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                gathered[key.fd] += chunk
                if not chunk:
                    selector.unregister(key.fd)
                if len(gathered[key.fd]) > _MOST_OUTPUT_BYTES:
                    raise ViewerFailed("it writes without end")
    with suppress(subprocess.TimeoutExpired):
        process.wait(_left_s(deadline))
    output, talk = gathered.values()
    return bytes(output), bytes(talk)


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise ViewerFailed("it took too long")
    return left_s


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the viewer's whole session: nothing of it may write to the terminal later."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _first_line(talk: bytes) -> str:
    lines = talk.decode("utf-8", "replace").strip().splitlines()
    return f": {lines[0][:120]}" if lines else ""
