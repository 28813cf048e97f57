"""Asking the terminal itself what it can draw: truer than its environment variables, but it reads keys.

Only for `furnclip doctor --probe`, which a person starts and waits for: over a slow line an answer can
come late and look like typing, so nothing is asked while somebody votes. Three questions are sent at
once: kitty's graphics query (sw.kovidgoyal.net/kitty/graphics-protocol), the terminal's name (XTVERSION)
and its attributes (DA1, of which 4 is sixels); every terminal answers the last one, which ends the wait.

Inside tmux or screen it is these that answer, for what they can show.
"""

from __future__ import annotations

import os
import re
import select
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if sys.platform != "win32":
    import termios
    import tty

_QUESTIONS = b"\x1b_Gi=4211,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\" + b"\x1b[>0q" + b"\x1b[c"
# Terminals that know none of this may have printed the first question.
_WIPE = b"\r\x1b[K"
_ATTRIBUTES = re.compile(rb"\x1b\[\?([0-9;]*)c")
_KITTY = re.compile(rb"\x1b_Gi=4211;OK\x1b\\")
_NAME = re.compile(rb"\x1bP>\|([^\x1b]*)\x1b\\")
_SIXELS = b"4"
_SPEAK_ITERM = ("iTerm2", "WezTerm")


@dataclass(frozen=True)
class Answer:
    """What a terminal said of itself; `name` is empty where it did not say."""

    name: str
    graphics: str
    """`kitty`, `iterm`, `sixels` or `symbols`, the best that it speaks"""


def ask_terminal(terminal: Path = Path("/dev/tty"), *, timeout_s: float = 0.5) -> Answer | None:
    """The terminal's answer; None where there is no terminal, or it keeps silent."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    try:
        return read_answer(_exchange(descriptor, timeout_s))
    except (OSError, termios.error):
        return None
    finally:
        os.close(descriptor)


def read_answer(said: bytes) -> Answer | None:
    """What the bytes mean that came back."""
    attributes, name = _ATTRIBUTES.search(said), _NAME.search(said)
    called = name.group(1).decode("ascii", "replace") if name else ""
    if _KITTY.search(said):
        return Answer(called, "kitty")
    if called.startswith(_SPEAK_ITERM):
        return Answer(called, "iterm")
    if attributes is None:
        return None
    return Answer(called, "sixels" if _SIXELS in attributes.group(1).split(b";") else "symbols")


def _exchange(descriptor: int, timeout_s: float) -> bytes:
    """Everything that comes until the last answer, without showing it."""
    saved = termios.tcgetattr(descriptor)
    said = b""
    try:
        tty.setcbreak(descriptor, termios.TCSAFLUSH)
        os.write(descriptor, _QUESTIONS)
        until = time.monotonic() + timeout_s
        while not _ATTRIBUTES.search(said) and (left_s := until - time.monotonic()) > 0:
            if select.select([descriptor], [], [], left_s)[0]:
                said += os.read(descriptor, 4096)
        os.write(descriptor, _WIPE)
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, saved)
    return said
