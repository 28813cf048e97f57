"""Somebody at a pseudo-terminal, in front of `furnclip arena`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pexpect
import pyte

ARMED_S = 0.4  # longer than the arena's own guard against bouncing keys
# Says afterwards what the terminal is like, as the shell that the user comes back to finds it.
SHELL = f'trap : INT; "{sys.executable}" -m furnclip arena "$@"; code=$?; stty -a; echo "exit=$code"'


class Person:
    """Sits at a terminal of a given size and looks at what is really on it."""

    def __init__(self, folder: Path, *args: str, cols: int = 80, rows: int = 24, **env: str) -> None:
        variables = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **env}
        for name in ("COLUMNS", "LINES"):
            variables.pop(name, None)
        self.child = pexpect.spawn(
            "/bin/sh",
            ["-c", SHELL, "sh", *args],
            cwd=str(folder),
            env=variables,
            dimensions=(rows, cols),
            timeout=60,
        )
        self.screen = pyte.Screen(cols, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def read(self, seconds: float) -> bool:
        """Take in what comes within this time; False when the other side is gone."""
        try:
            data = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    def wait(self, *texts: str, timeout_s: float = 60) -> Person:
        """Look until all of `texts` are on the screen."""
        until = time.monotonic() + timeout_s
        is_there = True
        while True:
            shown = self.text  # drawn once a look: with a picture it takes longer than reading
            if all(text in shown for text in texts):
                return self
            assert is_there, f"ended at\n{shown}"
            assert time.monotonic() < until, f"waited for {texts}, saw\n{shown}"
            is_there = self.read(0.1)

    def press(self, keys: str | bytes) -> Person:
        """Type after the screen has been still for a moment."""
        until = time.monotonic() + ARMED_S
        while (left_s := until - time.monotonic()) > 0:
            seen_bytes = len(self.raw)
            self.read(left_s)
            if len(self.raw) > seen_bytes:
                until = time.monotonic() + ARMED_S
        self.child.send(keys)
        return self

    def rest(self) -> str:
        """Everything until the end, as text."""
        while self.read(0.2) and self.child.isalive():
            pass
        while self.read(0.2):
            if b"exit=" in self.raw[-200:]:
                break
        return self.raw.decode("utf-8", "replace")
