"""Moments in which Ctrl-C, SIGTERM and SIGHUP wait.

While weights and position change together they wait, so that what is saved is always a whole step; then
they do what they did before.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupts:
    """Passes each of the signals on to its former handler, but not within `held`."""

    def __init__(self) -> None:
        self._holds = 0
        self._waiting = 0
        self._before: dict[int, Any] = {}

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals within the block; one that the process was started to ignore stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block signals wait until its end."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if self._waiting and not self._holds:
            self._interrupt(self._waiting, None)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._holds:
            self._waiting = number
            return
        self._waiting = 0
        if callable(handler := self._before[number]):
            handler(number, frame)
        raise KeyboardInterrupt
