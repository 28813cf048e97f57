"""Running viewers so that none of them can do harm: what they may do is decided here.

A viewer gets no shell, no keyboard (its own session has no terminal to read from), a timeout and a maximum
of output. Its output is captured and only handed on when it is complete: text keeps colors and characters,
a graphics protocol must end what it began, everything else is dropped. A viewer that failed is not tried
again by the same `Viewer`.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from furnclip.console import printable
from furnclip.viewers.detection import Candidate, Plan
from furnclip.viewers.template import fill, placeholders

_MAX_OUTPUT_BYTES = 32 * 2**20  # a full-screen sixel image is about 1 MB
Pixel = list[int]  # red, green, blue
_POLL_S = 0.004
_EARLY_EXIT_S = 0.3
_WSLPATH_TIMEOUT_S = 2.0
# How images begin in kitty's, sixel's and iTerm2's protocols, and such a string with its end; through tmux
# to the terminal around it every escape is doubled.
_IMAGE = r"\x1b(?:_G|P[0-9;]*q|\]1337;File)"
_IMAGE_START = re.compile(_IMAGE)
_IMAGE_WHOLE = re.compile(
    rf"\x1bPtmux;\x1b{_IMAGE}(?:[^\x1b]|\x1b\x1b)*\x1b\\|{_IMAGE}[^\x07\x1b]*(?:\x07|\x1b\\)"
)
_COLOR = re.compile(r"\x1b\[[0-9;:]*m")
# Beside an image also moves of the cursor, which place it; neither queries nor modes nor titles.
_MOVE = re.compile(r"\x1b(?:\[[0-9;:]*[A-HKXdm]|[78])")
# A whole escape sequence of any kind, or the beginning of one.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[_P\]X^][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)")


@dataclass(frozen=True)
class Box:
    """Where an image goes, in cells; without `left` and `top` it goes to the cursor."""

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
    """Bytes for the terminal, the viewer that made them (`none`: all failed), and the failures before."""

    data: bytes
    viewer: str
    failures: tuple[str, ...] = ()


class ViewerFailed(Exception):
    """One viewer could not draw; the next one is tried."""


class Viewer:
    """Draws images as a plan says, and remembers which viewers failed."""

    def __init__(self, plan: Plan, *, timeout_s: float = 5.0) -> None:
        self.plan = plan
        self._timeout_s = timeout_s
        self._candidates = list(plan.candidates)
        self._stopped = threading.Event()
        self._drew_in_kitty = False

    @property
    def draws(self) -> bool:
        """Whether any viewer is left to draw."""
        return bool(self._candidates)

    @property
    def erasing(self) -> bytes:
        """What removes earlier images that clearing the screen may leave behind."""
        return b"\x1b_Ga=d,q=2\x1b\\" if self._drew_in_kitty else b""

    def stop(self) -> None:
        """End a drawing that another thread waits for; nothing is drawn from now on."""
        self._stopped.set()

    def draw(self, image: Path, box: Box, *, original: Path | None = None) -> Drawing:
        """The image for this box from the first viewer that can; `original` fills `{original}`.

        `image` must be one that Pillow can read: a broken one would make every viewer look broken.
        """
        failures: list[str] = []
        for candidate in [each for each in self._candidates if box.left is not None or not each.needs_place]:
            try:
                data = self._draw_with(candidate, image, box, original or image)
            except ViewerFailed as failure:
                self._candidates.remove(candidate)
                failures.append(f"{candidate.name}: {printable(str(failure))}")
            else:
                self._drew_in_kitty = self._drew_in_kitty or b"\x1b_G" in data
                return Drawing(data, candidate.name, tuple(failures))
        return Drawing(b"", "none", tuple(failures))

    def _draw_with(self, candidate: Candidate, image: Path, box: Box, original: Path) -> bytes:
        if not candidate.arguments:
            return self._draw_half_blocks(image, box)
        path = image.absolute()
        paths: dict[str, object] = {"path": path, "uri": path.as_uri(), "original": original.absolute()}
        if any("winpath" in placeholders(argument) for argument in candidate.arguments):
            paths["winpath"] = _windows_path(path)
        command = fill(candidate.arguments, {**box.values(), **paths})
        output = run_viewer(command, timeout_s=self._timeout_s, stopped=self._stopped)
        return _presentable(output.decode("utf-8", "replace"), box, colors=self.plan.colors)

    def _draw_half_blocks(self, path: Path, box: Box) -> bytes:
        if self.plan.colors == "none":
            raise ViewerFailed("needs color support")
        with Image.open(path) as image:
            lines = half_blocks(image, cols=box.cols, rows=box.rows, colors=self.plan.colors)
        return _place_lines(lines, box)


def half_blocks(image: Image.Image, *, cols: int, rows: int, colors: str = "truecolor") -> list[str]:
    """Lines of half blocks that show `image` inside `cols` x `rows` cells, its aspect ratio kept.

    A cell is about twice as high as wide, so half of one is a square pixel. `colors` is `truecolor` or `256`.
    """
    scale = min(cols / image.width, 2 * rows / image.height)
    width = max(1, min(cols, round(image.width * scale)))
    height = max(1, min(2 * rows, round(image.height * scale)))
    fitted = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    lines: list[list[Pixel | None]] = np.asarray(fitted).tolist()
    console = Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor" if colors == "truecolor" else "256",
        width=width,
        legacy_windows=False,
        no_color=False,
    )
    with console.capture() as capture:
        for upper, lower in zip_longest(lines[::2], lines[1::2], fillvalue=[None] * width):
            console.print(Segments(_segments(upper, lower)))
    return capture.get().splitlines()


def _segments(upper: Sequence[Pixel | None], lower: Sequence[Pixel | None]) -> Iterator[Segment]:
    """One line of cells; equal neighbors are one segment, as product photos are mostly white."""
    for pair, run in groupby(zip(upper, lower, strict=True)):
        color, background = (Color.from_rgb(*pixel) if pixel else None for pixel in pair)
        yield Segment("▀" * len(list(run)), Style(color=color, bgcolor=background))
    yield Segment.line()


def _place_lines(lines: Sequence[str], box: Box) -> bytes:
    """Lines of text at the box's place, each at its own position; below each other at the cursor."""
    if box.left is None or box.top is None:
        return "".join(f"{line}\r\n" for line in lines).encode()
    placed = (f"\x1b[{box.top + number + 1};{box.left + 1}H{line}" for number, line in enumerate(lines))
    return "".join(placed).encode()


def _presentable(output: str, box: Box, *, colors: str) -> bytes:
    """Captured output made safe to write; raises `ViewerFailed` when there is no image in it."""
    images = _IMAGE_WHOLE.findall(output)
    if images or _IMAGE_START.search(output):
        between = _IMAGE_WHOLE.split(output)
        if any(_IMAGE_START.search(text) for text in between):
            raise ViewerFailed("its output stops in the middle of an image")
        start = "" if box.left is None else f"\x1b[{(box.top or 0) + 1};{box.left + 1}H"
        kept = [_only(_MOVE, text, keep="\r\n") for text in between]
        pieces = (part for pair in zip(kept, [*images, ""], strict=True) for part in pair)
        return "".join((start, *pieces, "\x1b[0m")).encode("utf-8", "replace")
    reset = "" if colors == "none" else "\x1b[0m"
    lines = [_only(None if colors == "none" else _COLOR, line) for line in output.splitlines()]
    lines = [f"{line}{reset}" for line in lines if _COLOR.sub("", line)][: box.rows]
    if not lines:
        raise ViewerFailed("it drew nothing")
    return _place_lines(lines, box)


def _only(allowed: re.Pattern[str] | None, text: str, *, keep: str = "") -> str:
    """Printable text, the characters of `keep` and the allowed escapes: no queries, modes or titles."""

    def replace(match: re.Match[str]) -> str:
        return match.group() if allowed and allowed.fullmatch(match.group()) else ""

    text = _ESCAPE.sub(replace, text)
    if text.replace("\x1b", "").isprintable():
        return text
    return "".join(each for each in text if each == "\x1b" or each in keep or each.isprintable())


def run_viewer(
    arguments: Sequence[str], *, timeout_s: float, stopped: threading.Event | None = None
) -> bytes:
    """What the command wrote to stdout.

    Raises `ViewerFailed` when it cannot start, takes too long, exits with another code than 0, or
    writes more than any image needs, or when `stopped` is set. It and its children are then gone.
    """
    with TemporaryFile() as output, TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise ViewerFailed(f"cannot start: {error}") from None
        try:
            _wait(process, output, time.monotonic() + timeout_s, stopped or threading.Event())
        finally:
            # its whole session: nothing of it may write to the terminal later
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode != 0:
            raise ViewerFailed(f"exit code {process.returncode}{_first_line(errors)}")
        output.seek(0)
        return output.read(_MAX_OUTPUT_BYTES)


def _wait(
    process: subprocess.Popen[bytes], output: IO[bytes], deadline: float, stopped: threading.Event
) -> None:
    while process.poll() is None:
        if os.fstat(output.fileno()).st_size > _MAX_OUTPUT_BYTES:
            raise ViewerFailed("it writes without end")
        if time.monotonic() > deadline:
            raise ViewerFailed("timed out")
        if stopped.wait(_POLL_S):
            raise ViewerFailed("stopped")


def _first_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read(4096).decode("utf-8", "replace").strip().splitlines()
    return f": {lines[0][:120]}" if lines else ""


def _windows_path(path: Path) -> str:
    """The path of a WSL file for Windows programs. Raises `ViewerFailed` outside of WSL."""
    output = run_viewer(["wslpath", "-w", str(path)], timeout_s=_WSLPATH_TIMEOUT_S)
    return output.decode("utf-8", "replace").strip()


def open_on_desktop(image: Path, command: tuple[str, ...]) -> bool:
    """Start a desktop program that lives on without us; False when it failed at once."""
    null = subprocess.DEVNULL
    try:
        window = subprocess.Popen(
            [*command, str(image.absolute())], stdin=null, stdout=null, stderr=null, start_new_session=True
        )
    except OSError:
        return False
    with suppress(subprocess.TimeoutExpired):
        return window.wait(_EARLY_EXIT_S) == 0
    window.returncode = 0  # keeps Python from warning about a child without `wait`
    return True
