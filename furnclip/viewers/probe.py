"""Asking the terminal itself what it can draw: truer than its environment variables, but it reads keys.

Only for `furnclip doctor --probe`, which a person starts and waits for: over a slow line a reply can
come late and look like typing, so nothing is queried while voting. Three queries are sent at
once: kitty's graphics query (sw.kovidgoyal.net/kitty/graphics-protocol), the terminal's name (XTVERSION)
and its attributes (DA1, of which 4 is sixels); every terminal answers the last one, which ends the wait.
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

_QUERIES = b"\x1b_Gi=4211,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\" + b"\x1b[>0q" + b"\x1b[c"
# Terminals that know none of this may have printed the first query.
_WIPE = b"\r\x1b[K"
_ATTRIBUTES = re.compile(rb"\x1b\[\?([0-9;]*)c")
_NAME = re.compile(rb"\x1bP>\|([^\x1b]*)\x1b\\")


@dataclass(frozen=True)
class TerminalReply:
    """What a terminal reports; `name` is empty where it reports none."""

    name: str
    graphics: str
    """`kitty`, `iterm`, `sixels` or `symbols`, the best that it draws"""


def query_terminal(terminal: Path = Path("/dev/tty"), *, timeout_s: float = 0.5) -> TerminalReply | None:
    """The terminal's reply; None where there is no terminal, or none within the timeout."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        reply = _exchange(descriptor, timeout_s)
    except (OSError, termios.error):
        return None
    finally:
        os.close(descriptor)
    attributes, named = _ATTRIBUTES.search(reply), _NAME.search(reply)
    name = named.group(1).decode("ascii", "replace") if named else ""
    if b"\x1b_Gi=4211;OK\x1b\\" in reply:
        return TerminalReply(name, "kitty")
    if name.startswith(("iTerm2", "WezTerm")):
        return TerminalReply(name, "iterm")
    if attributes is None:
        return None
    return TerminalReply(name, "sixels" if b"4" in attributes.group(1).split(b";") else "symbols")


def _exchange(descriptor: int, timeout_s: float) -> bytes:
    """Everything that comes until the last reply, without showing it."""
    saved = termios.tcgetattr(descriptor)
    reply = b""
    try:
        tty.setcbreak(descriptor, termios.TCSAFLUSH)
        os.write(descriptor, _QUERIES)
        deadline = time.monotonic() + timeout_s
        while not _ATTRIBUTES.search(reply) and (left_s := deadline - time.monotonic()) > 0:
            if select.select([descriptor], [], [], left_s)[0]:
                reply += os.read(descriptor, 4096)
        os.write(descriptor, _WIPE)
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, saved)
    return reply
