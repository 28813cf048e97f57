"""Showing an image in a terminal, by an external viewer first.

`detect` chooses among the viewers installed here, or takes the user's own command. `Viewer` runs them so that
none of them can do harm: no shell, no keyboard (its own session has no terminal to read from), a timeout and
a maximum of output. What it writes is captured and only handed on when it is complete: text keeps colors and
characters, a graphics protocol must end what it began, everything else is dropped. A viewer that failed is
not tried again by the same `Viewer`; the next one is, and at last half blocks.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby, zip_longest
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.color import Color, ColorSystem
from rich.style import Style

from furnclip.console import printable
from furnclip.viewers.detection import Candidate, Plan, placeholders
from furnclip.viewers.detection import TerminalEnvironment as TerminalEnvironment
from furnclip.viewers.detection import ViewerSetting as ViewerSetting
from furnclip.viewers.detection import detect as detect
from furnclip.viewers.detection import open_on_desktop as open_on_desktop
from furnclip.viewers.detection import query_terminal as query_terminal

_MAX_OUTPUT_BYTES = 32 * 2**20  # a full-screen sixel image is about 1 MB
_POLL_S = 0.004
_WSLPATH_TIMEOUT_S = 2.0
# Color bars, a gray ramp and a circle: round and in order, or the viewer is wrong.
TEST_CARD = Path(__file__).with_name("test-card.png")
# How images begin in kitty's, sixel's and iTerm2's protocols, and such a string with its end; through tmux
# to the terminal around it every escape is doubled.
_IMAGE = r"\x1b(?:_G|P[0-9;]*q|\]1337;File)"
_IMAGE_START = re.compile(_IMAGE)
_IMAGE_WHOLE = re.compile(
    rf"(\x1bPtmux;\x1b{_IMAGE}(?:[^\x1b]|\x1b\x1b)*\x1b\\|{_IMAGE}[^\x07\x1b]*(?:\x07|\x1b\\))"
)
_COLOR = re.compile(r"\x1b\[[0-9;:]*m")
# Beside an image also moves of the cursor, which place it; neither queries nor modes nor titles.
_MOVE = re.compile(r"\x1b(?:\[[0-9;:]*[A-HKXdm]|[78])")
# A whole escape sequence of any kind, or the beginning of one.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[_P\]X^][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)")


class Window(NamedTuple):
    """Size of the terminal in cells, and of a cell in pixels: the usual one where it is not reported."""

    cols: int = 80
    rows: int = 24
    cell_width_px: int = 8
    cell_height_px: int = 16


class Box(NamedTuple):
    """Where an image goes, in cells; without `left` and `top` it goes to the cursor."""

    cols: int
    rows: int
    left: int | None = None
    top: int | None = None
    window: Window = Window()

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.cols * self.window.cell_width_px, self.rows * self.window.cell_height_px


class Drawing(NamedTuple):
    """Bytes for the terminal, the viewer that made them (`none`: all failed), and the failures before."""

    data: bytes
    viewer: str
    failures: tuple[str, ...] = ()


class ViewerFailed(Exception):
    """One viewer could not draw; the next one is tried."""


class Viewer:
    """Draws images as a plan says, and remembers which viewers failed."""

    def __init__(self, plan: Plan, *, timeout_s: float = 5.0) -> None:
        self._colors, self._timeout_s = plan.colors, timeout_s
        self.candidates = list(plan.candidates)  # those that have not failed, best first
        self.stopped = threading.Event()  # once set, a drawing in another thread ends, and none begins
        self.erasing = b""  # removes earlier images that clearing the screen may leave behind

    def draw(self, image: Path, box: Box) -> Drawing:
        """The image for this box from the first viewer that can.

        It must be one that Pillow can read: a broken one would make every viewer look broken.
        """
        failures: list[str] = []
        for candidate in [each for each in self.candidates if box.left is not None or not each.needs_place]:
            try:
                data = self._draw_with(candidate, image.absolute(), box)
            except ViewerFailed as failure:
                self.candidates.remove(candidate)
                failures.append(f"{candidate.name}: {printable(str(failure))}")
                continue
            if b"\x1b_G" in data:
                self.erasing = b"\x1b_Ga=d,q=2\x1b\\"
            return Drawing(data, candidate.name, tuple(failures))
        return Drawing(b"", "none", tuple(failures))

    def _draw_with(self, candidate: Candidate, path: Path, box: Box) -> bytes:
        if not candidate.arguments:
            if self._colors == "none":
                raise ViewerFailed("needs color support")
            with Image.open(path) as image:
                lines = half_blocks(image, cols=box.cols, rows=box.rows, colors=self._colors)
            return _place_lines(lines, box)
        (width_px, height_px), window = box.size_px, box.window
        window_px = Box(window.cols, window.rows, window=window).size_px
        values: dict[str, object] = {
            **{"path": path, "uri": path.as_uri(), "original": path},
            **{"cols": box.cols, "rows": box.rows, "left": box.left or 0, "top": box.top or 0},
            **{"pxw": width_px, "pxh": height_px, "tcols": window.cols, "trows": window.rows},
            **{"tpxw": window_px[0], "tpxh": window_px[1]},
        }
        if "winpath" in placeholders(*candidate.arguments):  # for Windows programs in WSL
            converted = self._run(["wslpath", "-w", str(path)], _WSLPATH_TIMEOUT_S)
            values["winpath"] = converted.strip()
        # what is filled in is never split or scanned again
        output = self._run([each.format_map(values) for each in candidate.arguments], self._timeout_s)
        return _presentable(output, box, colors=self._colors)

    def _run(self, arguments: Sequence[str], timeout_s: float) -> str:
        """What the command wrote to stdout; however it ends, it and its children are gone."""
        deadline = time.monotonic() + timeout_s
        with TemporaryFile() as output, TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
                )
            except (OSError, ValueError) as error:
                raise ViewerFailed(f"cannot start: {error}") from None
            try:
                while process.poll() is None:
                    if os.fstat(output.fileno()).st_size > _MAX_OUTPUT_BYTES:
                        raise ViewerFailed("it writes without end")
                    if time.monotonic() > deadline:
                        raise ViewerFailed("timed out")
                    if self.stopped.wait(_POLL_S):
                        raise ViewerFailed("stopped")
            finally:
                # its whole session: nothing of it may write to the terminal later
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.returncode != 0:
                errors.seek(0)
                said = errors.read(4096).decode("utf-8", "replace").strip().partition("\n")[0][:120]
                raise ViewerFailed(": ".join(filter(None, (f"exit code {process.returncode}", said))))
            output.seek(0)
            return output.read(_MAX_OUTPUT_BYTES).decode("utf-8", "replace")


def half_blocks(image: Image.Image, *, cols: int, rows: int, colors: str = "truecolor") -> list[str]:
    """Lines of half blocks, square pixels, that show `image` inside `cols` x `rows` cells.

    `colors` is `truecolor` or `256`.
    """
    scale = min(cols / image.width, 2 * rows / image.height)
    width = max(1, min(cols, round(image.width * scale)))
    height = max(1, min(2 * rows, round(image.height * scale)))
    fitted = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    pixels: list[list[list[int] | None]] = np.asarray(fitted).tolist()  # red, green, blue
    system = ColorSystem.TRUECOLOR if colors == "truecolor" else ColorSystem.EIGHT_BIT
    lines = []
    for upper, lower in zip_longest(pixels[::2], pixels[1::2], fillvalue=[None] * width):
        line = ""
        # equal neighbors are written together, as product photos are mostly white
        for pair, run in groupby(zip(upper, lower, strict=True)):
            color, background = (Color.from_rgb(*pixel) if pixel else None for pixel in pair)
            style = Style(color=color, bgcolor=background)
            line += style.render("▀" * len(list(run)), color_system=system)
        lines.append(line)
    return lines


def _place_lines(lines: Sequence[str], box: Box) -> bytes:
    """Lines of text at the box's place, each at its own position; below each other at the cursor."""
    if box.left is None or box.top is None:
        return "".join(f"{line}\r\n" for line in lines).encode()
    placed = (f"\x1b[{box.top + number + 1};{box.left + 1}H{line}" for number, line in enumerate(lines))
    return "".join(placed).encode()


def _presentable(output: str, box: Box, *, colors: str) -> bytes:
    """Captured output made safe to write; raises `ViewerFailed` when there is no image in it."""
    if _IMAGE_START.search(output):
        parts = _IMAGE_WHOLE.split(output)  # text and images in turn
        if any(_IMAGE_START.search(text) for text in parts[::2]):
            raise ViewerFailed("its output stops in the middle of an image")
        start = "" if box.left is None else f"\x1b[{(box.top or 0) + 1};{box.left + 1}H"
        parts[::2] = [_only(_MOVE, text, keep="\r\n") for text in parts[::2]]
        return "".join((start, *parts, "\x1b[0m")).encode("utf-8", "replace")
    reset = "" if colors == "none" else "\x1b[0m"
    lines = [_only(None if colors == "none" else _COLOR, line) for line in output.splitlines()]
    lines = [f"{line}{reset}" for line in lines if _COLOR.sub("", line)][: box.rows]
    if not lines:
        raise ViewerFailed("it drew nothing")
    return _place_lines(lines, box)


def _only(allowed: re.Pattern[str] | None, text: str, *, keep: str = "") -> str:
    """Printable text, the characters of `keep` and the allowed escapes: no queries, modes or titles."""
    text = _ESCAPE.sub(lambda found: found[0] if allowed and allowed.fullmatch(found[0]) else "", text)
    if text.replace("\x1b", "").isprintable():
        return text
    return "".join(each for each in text if each == "\x1b" or each in keep or each.isprintable())


def show_image(path: Path, viewer: ViewerSetting | Plan = "auto", *, cols: int = 0, rows: int = 0) -> Drawing:
    """What draws an image of ours at the cursor, for `console.show_bytes` to write.

    `cols` and `rows`: the maximum size in cells; 0 chooses for this terminal.
    """
    plan = viewer if isinstance(viewer, Plan) else detect(viewer)
    window = Window(*shutil.get_terminal_size())
    cols, rows = cols or max(10, int(window.cols * 0.6)), rows or max(5, window.rows // 2)
    return Viewer(plan).draw(path, Box(cols, rows, window=window))
