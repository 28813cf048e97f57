"""Mapping a function over a stream with several processes: in order, bounded, and never orphaned."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection
from typing import Generic, TypeVar

from furnclip.errors import FurnclipError

Item = TypeVar("Item")
Task = TypeVar("Task")
Result = TypeVar("Result")

_CHUNK_ITEMS = 16
_CHUNKS_A_WORKER = 4
_TASKS_WORTH_A_POOL = 64


def ordered_map(
    function: Callable[[Task], Result],
    items: Iterable[Item],
    *,
    task_of: Callable[[Item], Task | None],
    workers: int = 0,
) -> Iterator[tuple[Item, Result | None]]:
    """(item, result of its task, or None where it has none) for each item, in the order of the items.

    `workers`: processes, 0 for one a core. The items are taken from their iterator only as fast as
    results are fetched. A short stream of tasks is done here, without starting processes.
    """
    runner = _Runner(function, workers or os.cpu_count() or 1)
    waiting: deque[tuple[list[Item], list[bool], Future[list[Result]]]] = deque()
    iterator = iter(items)
    try:
        while chunk := list(islice(iterator, _CHUNK_ITEMS)):
            tasks = [task_of(item) for item in chunk]
            future = runner.submit([task for task in tasks if task is not None])
            waiting.append((chunk, [task is not None for task in tasks], future))
            if len(waiting) > runner.workers * _CHUNKS_A_WORKER:
                yield from _matched(*waiting.popleft())
        while waiting:
            yield from _matched(*waiting.popleft())
    except BrokenProcessPool:
        raise FurnclipError(
            "a worker process was killed, probably for want of memory",
            hint="run the same command again to go on from here, with fewer `prepare.workers`",
        ) from None
    finally:
        runner.close()


def _matched(
    chunk: list[Item], has_task: list[bool], future: Future[list[Result]]
) -> Iterator[tuple[Item, Result | None]]:
    results = iter(future.result())
    for item, expects_result in zip(chunk, has_task, strict=True):
        yield item, next(results) if expects_result else None


class _Runner(Generic[Task, Result]):
    """Runs lists of tasks; starts processes once that pays."""

    def __init__(self, function: Callable[[Task], Result], workers: int) -> None:
        self.workers = workers
        self._function = function
        self._seen = 0
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, tasks: list[Task]) -> Future[list[Result]]:
        self._seen += len(tasks)
        if tasks and self.workers > 1 and self._seen > _TASKS_WORTH_A_POOL:
            return self._started().submit(_run_all, self._function, tasks)
        future: Future[list[Result]] = Future()
        future.set_result(_run_all(self._function, tasks))
        return future

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # `spawn`: a fork of a process with threads (pyarrow has some) can hang
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
            )
        return self._pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _run_all(function: Callable[[Task], Result], tasks: list[Task]) -> list[Result]:
    return [function(task) for task in tasks]


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)  # killed outright, the parent could not tell us to stop
