"""The terminal while voting: single keys, the alternate screen, and everything put back at the end.

Terminals send replies, arrows and pastes as sequences that contain letters: `ESC [ A` is the arrow up, not a
vote for A. So nothing but a single pressed key is ever a key. Not for Windows, whose console has another
interface; WSL is a Unix terminal.
"""

from __future__ import annotations

import os
import re
import select
import signal
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from furnclip.config import environment_variables
from furnclip.errors import Interrupted, UsageError
from furnclip.viewers import Window

if sys.platform != "win32":
    import fcntl
    import termios
    import tty

ESCAPE = "\x1b"
CTRL_C = "\x03"
_ALONE_S = 0.5  # an escape that nothing follows within this time was the Esc key
_STRING_S = 2.0  # a string (kitty's or a title's answer) that is not ended by then never will be
# A control sequence, a string up to its end, Alt and a key, or a key; an escape inside cuts a sequence off.
# `[`, `]` and `_` are no keys of ours: seen alone, they are the rest of a sequence whose escape came much
# too early.
_TYPED = re.compile(
    r"(?:\x1b[\[O]|\[)(?P<sequence>[^@-~\x1b]*(?:[@-~]|(?=\x1b)))"
    r"|(?:\x1b[_P\]X^]|[_\]])[^\x07\x1b]*(?:\x07|\x1b\\|(?=\x1b[^\\]))"
    r"|\x1b(?:(?=\x1b)|[^\x1b\[O_P\]X^])"
    r"|(?P<key>[^\x1b\[\]_])",
    re.DOTALL,
)
_PASTE_START, _PASTE_END = "200~", "201~"
# alternate screen, no cursor, pastes marked as such
_ENTER = b"\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[2J"
# end a half-written string; colors, pastes, cursor and screen as before
_LEAVE = b"\x1b\\\x1b[0m\x1b[?2004l\x1b[?25h\x1b[?1049l"
# They end the session after the terminal was put back.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
_STDIN, _STDOUT, _STDERR = 0, 1, 2


class TerminalGone(Interrupted):
    """The terminal was closed."""


class KeyReader:
    """Takes bytes and the time they came, gives single keys; upper and lower case are the same."""

    def __init__(self) -> None:
        self._begun = ""
        self._begun_s = 0.0
        self.pasting = False

    def feed(self, data: bytes, now_s: float) -> list[str]:
        """The keys in `data`, in order; letters in upper case, Esc as the escape character."""
        keys = []
        waited_s = now_s - self._begun_s
        if self._begun == ESCAPE and waited_s > _ALONE_S:
            keys, self._begun = [ESCAPE], ""
        elif waited_s > _STRING_S:
            self._begun = ""
        text, end = self._begun + data.decode("utf-8", "replace"), 0
        while typed := _TYPED.match(text, end):
            end = typed.end()
            if typed["sequence"] in (_PASTE_START, _PASTE_END):
                self.pasting = typed["sequence"] == _PASTE_START
            elif typed["key"] and not self.pasting:
                keys.append(typed["key"].upper())
        if end or not self._begun:
            self._begun_s = now_s
        self._begun = text[end:]
        return keys


class Terminal:
    """Used as a context: keys come one by one without Enter, and leaving restores everything."""

    def __init__(self) -> None:
        screens = [number for number in (_STDOUT, _STDERR) if os.isatty(number)]
        if not os.isatty(_STDIN) or not screens or sys.platform == "win32":
            hint = "run it in one, or vote from Python with `furnclip.ArenaApp`"
            raise UsageError("the arena needs a terminal to vote in", hint=hint)
        if environment_variables().get("TERM", "") in ("", "dumb"):
            hint = "use another terminal, or vote from Python with `furnclip.ArenaApp`"
            raise UsageError("this terminal cannot place text (TERM is empty or `dumb`)", hint=hint)
        self._output, self._reader = screens[0], KeyReader()
        self._old_handlers: dict[int, Any] = {}
        self._ended_by, self._waiting = 0, False

    def __enter__(self) -> Terminal:
        self._saved = termios.tcgetattr(_STDIN)
        for name in _SIGNALS:
            number = getattr(signal, name)
            self._old_handlers[number] = signal.signal(number, self._end)
        try:
            tty.setcbreak(_STDIN, termios.TCSANOW)
            # Ctrl-Z and Ctrl-\ would leave the shell on our screen, Ctrl-S would freeze it
            modes = termios.tcgetattr(_STDIN)
            modes[0] &= ~termios.IXON
            modes[6][termios.VSUSP] = modes[6][termios.VQUIT] = b"\0"
            termios.tcsetattr(_STDIN, termios.TCSANOW, modes)
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
            termios.tcsetattr(_STDIN, termios.TCSAFLUSH, self._saved)
        for handled, handler in self._old_handlers.items():
            signal.signal(handled, handler)
        if self._ended_by and not any(exception):
            raise _ending(self._ended_by)

    def window(self) -> Window:
        """The size now."""
        try:
            size = fcntl.ioctl(self._output, termios.TIOCGWINSZ, bytes(8))
        except OSError as error:
            raise _ending(signal.SIGHUP) from error
        rows, cols, width_px, height_px = struct.unpack("HHHH", size)
        cols, rows = cols or 80, rows or 24
        cell_px = (width_px // cols, height_px // rows) if width_px and height_px else ()
        return Window(cols, rows, *cell_px)

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
                raise _ending(signal.SIGHUP) from error

    def read(self, timeout_s: float) -> list[str]:
        """Keys pressed within this time."""
        with self._interruptible():
            ready, _, _ = select.select([_STDIN], [], [], timeout_s)
        return self._read_keys() if ready else self._reader.feed(b"", time.monotonic())

    def drop_pending(self) -> None:
        """Forget everything typed so far: it was typed before there was something to judge."""
        while select.select([_STDIN], [], [], 0)[0]:
            # read rather than only flush: a sequence that has begun must be followed to its end
            self._read_keys()
        with suppress(termios.error):
            termios.tcflush(_STDIN, termios.TCIFLUSH)
        self._reader.pasting = False  # a sequence that has begun is still swallowed to its end

    def _read_keys(self) -> list[str]:
        with suppress(OSError):
            if data := os.read(_STDIN, 4096):
                return self._reader.feed(data, time.monotonic())
        raise _ending(signal.SIGHUP)

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


def _ending(number: int) -> Interrupted:
    """What a signal ends the session with; SIGHUP, or a failing read or write: the terminal was closed."""
    hint = "run `furnclip arena` again; every vote is kept"
    if number == signal.SIGINT:
        return Interrupted()
    if number == signal.SIGHUP:
        return TerminalGone("the terminal was closed", hint=hint)
    return Interrupted(f"stopped by {signal.Signals(number).name}", hint=hint)
