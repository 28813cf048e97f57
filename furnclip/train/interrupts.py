"""Ctrl-C, SIGTERM and SIGHUP: one rule, and moments in which they wait.

All three end a run as Ctrl-C does: what is done is saved, exit code 130. While weights and position
change together they wait, so that what is saved is always a whole step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupts:
    """Raises `KeyboardInterrupt` for each of the signals, but not within `held`."""

    def __init__(self) -> None:
        self._holds = 0
        self._waiting = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals within the block; one that the process was started to ignore stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block signals wait; they are raised at its end."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if self._waiting and not self._holds:
            self._waiting = False
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._holds:
            self._waiting = True
        else:
            raise KeyboardInterrupt
