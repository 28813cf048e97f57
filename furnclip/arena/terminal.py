"""The terminal while voting: single keys, the alternate screen, and everything put back at the end.

Not for Windows, whose console has another interface; WSL is a Unix terminal.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from furnclip.arena.keys import KeyReader
from furnclip.config import environment_variables
from furnclip.errors import Interrupted, UsageError

if sys.platform != "win32":
    import fcntl
    import termios
    import tty

# alternate screen, no cursor, pastes marked as such
_ENTER = b"\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[2J"
# end a half-written string; colors, pastes, cursor and screen as before
_LEAVE = b"\x1b\\\x1b[0m\x1b[?2004l\x1b[?25h\x1b[?1049l"
# Signals that end the session after the terminal was put back.
_ENDINGS = (
    signal.SIGINT,
    signal.SIGTERM,
    *(() if sys.platform == "win32" else (signal.SIGHUP, signal.SIGQUIT)),
)
_USUAL_CELL_PX = (8, 16)


class TerminalGone(Interrupted):
    """The terminal was closed."""


@dataclass(frozen=True)
class Window:
    """Size of the terminal, in cells, and of a cell, in pixels."""

    cols: int
    rows: int
    cell_width_px: int
    cell_height_px: int


class Terminal:
    """Used as a context: keys come one by one without Enter, and leaving restores everything."""

    def __init__(self) -> None:
        self._input = sys.stdin.fileno() if _is_terminal(sys.stdin) else -1
        screen = next((stream for stream in (sys.stdout, sys.stderr) if _is_terminal(stream)), None)
        if self._input < 0 or screen is None or sys.platform == "win32":
            raise UsageError(
                "the arena needs a terminal to vote in",
                hint="run it in one, or vote from Python with `furnclip.ArenaApp`",
            )
        if environment_variables().get("TERM", "") in ("", "dumb"):
            raise UsageError(
                "this terminal cannot place text (TERM is empty or `dumb`)",
                hint="use another terminal, or vote from Python with `furnclip.ArenaApp`",
            )
        self._output = screen.fileno()
        self._reader = KeyReader()
        self._wake_read = self._wake_write = -1
        self._old_handlers: dict[int, Any] = {}
        self._ended_by = 0
        self._waiting = False

    def __enter__(self) -> Terminal:
        self._saved = termios.tcgetattr(self._input)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._handle(signal.SIGWINCH, lambda number, frame: None)  # wakes `read`, which is all it is for
        for number in _ENDINGS:
            self._handle(number, self._end)
        try:
            tty.setcbreak(self._input, termios.TCSANOW)
            self._without_stopping()
            self.write(_ENTER)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(TerminalGone):
            self._write_all(_LEAVE)  # a signal that comes now must not cut it short
        with suppress(OSError, termios.error):  # a terminal that is gone needs nothing
            # TCSAFLUSH: keys typed too late must not reach the shell as a command
            termios.tcsetattr(self._input, termios.TCSAFLUSH, self._saved)
        signal.set_wakeup_fd(-1)
        for handled, handler in self._old_handlers.items():
            signal.signal(handled, handler)
        for descriptor in (self._wake_read, self._wake_write):
            os.close(descriptor)
        if self._ended_by and not any(exception):
            raise _ending(self._ended_by)

    def window(self) -> Window:
        """The size now; a cell is taken as 8 x 16 pixels where the terminal does not report it."""
        try:
            size = fcntl.ioctl(self._output, termios.TIOCGWINSZ, bytes(8))
        except OSError as error:
            raise _gone() from error
        rows, cols, width_px, height_px = struct.unpack("HHHH", size)
        rows, cols = rows or 24, cols or 80
        cell = (width_px // cols, height_px // rows) if width_px and height_px else _USUAL_CELL_PX
        return Window(cols, rows, *cell)

    def write(self, data: bytes) -> None:
        """All of `data`; raises `TerminalGone` when the terminal was closed."""
        with self._interruptible():
            self._write_all(data)

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._output, view) :]
            except BlockingIOError:
                select.select([], [self._output], [])
            except OSError as error:
                raise _gone() from error

    def read(self, timeout_s: float) -> list[str] | None:
        """Keys pressed within this time, or None when the window's size changed."""
        with self._interruptible():
            ready, _, _ = select.select([self._input, self._wake_read], [], [], timeout_s)
        if self._wake_read in ready and signal.SIGWINCH in os.read(self._wake_read, 4096):
            return None
        data = self._read_input() if self._input in ready else b""
        return self._reader.feed(data, time.monotonic())

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Where a signal may end the session: here nothing is half done."""
        self._waiting = True
        try:
            if self._ended_by:
                raise _ending(self._ended_by)
            yield
        finally:
            self._waiting = False

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._ended_by = number
        if self._waiting:
            raise _ending(number)

    def drop_pending(self) -> None:
        """Forget everything typed so far: it was typed before there was something to judge."""
        while select.select([self._input], [], [], 0)[0]:
            # read rather than only flush: a sequence that has begun must be followed to its end
            self._reader.feed(self._read_input(), time.monotonic())
        with suppress(termios.error):
            termios.tcflush(self._input, termios.TCIFLUSH)
        self._reader.forget()

    def _read_input(self) -> bytes:
        try:
            data = os.read(self._input, 4096)
        except OSError as error:
            raise _gone() from error
        if not data:
            raise _gone()
        return data

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        self._old_handlers[number] = signal.signal(number, handler)

    def _without_stopping(self) -> None:
        """Ctrl-Z and Ctrl-\\ would leave the shell on our screen, Ctrl-S would freeze it."""
        modes = termios.tcgetattr(self._input)
        modes[0] &= ~termios.IXON
        modes[6][termios.VSUSP] = modes[6][termios.VQUIT] = b"\0"
        termios.tcsetattr(self._input, termios.TCSANOW, modes)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # no stream, or a closed one
        return False


def _gone() -> TerminalGone:
    return TerminalGone("the terminal was closed", hint="run `furnclip arena` again; every vote is kept")


def _ending(number: int) -> Interrupted:
    if number == signal.SIGINT:
        return Interrupted()
    if number == signal.SIGHUP:
        return _gone()
    return Interrupted(
        f"stopped by {signal.Signals(number).name}", hint="run `furnclip arena` again; every vote is kept"
    )
