"""Inputs of several threads that arrive together go through the model together.

While the model works on one batch, further inputs gather and make up the next: nobody waits for a clock, a
lone request is encoded at once, and sixteen that arrive together cost little more than one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from furnclip.vectors import Floats

T = TypeVar("T")
_MOST_INPUTS = 32  # of one call: bounds memory, and what the last of a crowd waits


class Together(Generic[T]):
    """`encode`, which takes a list and need not be thread-safe, for many threads at once."""

    def __init__(self, encode: Callable[[list[T]], Floats]) -> None:
        self._encode = encode
        self._waiting: deque[tuple[list[T], Future[Floats]]] = deque()
        self._working = threading.Lock()

    def __call__(self, inputs: Sequence[T]) -> Floats:
        """What `encode` gives for these inputs, (N, D); raises what it raises."""
        mine: Future[Floats] = Future()
        self._waiting.append((list(inputs), mine))
        while not mine.done():
            with self._working:  # whoever comes first works for all who wait
                if not mine.done():
                    self._work()
        return mine.result()

    def _work(self) -> None:
        taken: list[tuple[list[T], Future[Floats]]] = []
        inputs: list[T] = []
        while self._waiting and (not taken or len(inputs) + len(self._waiting[0][0]) <= _MOST_INPUTS):
            taken.append(self._waiting.popleft())
            inputs += taken[-1][0]
        try:
            vectors = self._encode(inputs)
        except BaseException as error:
            for _, future in taken:
                future.set_exception(error)
            return
        start = 0
        for own, future in taken:
            future.set_result(vectors[start : start + len(own)])
            start += len(own)
