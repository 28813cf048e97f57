"""Working through a stream with several processes: in order, bounded, and never orphaned."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection
from multiprocessing.context import BaseContext
from typing import TypeVar

from furnclip.errors import FurnclipError

Item = TypeVar("Item")
Task = TypeVar("Task")
Result = TypeVar("Result")

_TASKS_WORTH_A_POOL = 64


class Workers:
    """Processes that are started when there is enough to do, kept, and ended together.

    Until the first of them answers, which takes as long as importing furnclip, the work is done here.

    count: processes, 0 for one a core.
    """

    def __init__(self, count: int = 0) -> None:
        self._count = count or os.cpu_count() or 1
        self._seen = 0
        self._pool: ProcessPoolExecutor | None = None
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="furnclip-start")
        self._first_answer: Future[list[int]] | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._starter.shutdown()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def map(
        self,
        function: Callable[[Task], Result],
        items: Iterable[Item],
        *,
        task_of: Callable[[Item], Task | None],
        chunk_items: int = 16,
        chunks_ahead: int = 4,
    ) -> Iterator[tuple[Item, Result | None]]:
        """(item, result of its task, or None where it has none) for each item, in their order.

        The items are taken from their iterator only as fast as results are fetched, `chunk_items` a
        task, `chunks_ahead` tasks a process.
        """
        waiting: deque[tuple[list[Item], list[bool], Future[list[Result]]]] = deque()
        iterator = iter(items)
        try:
            while chunk := list(islice(iterator, chunk_items)):
                tasks = [task_of(item) for item in chunk]
                future = self._submit(function, [task for task in tasks if task is not None])
                waiting.append((chunk, [task is not None for task in tasks], future))
                if len(waiting) > self._count * chunks_ahead:
                    yield from _matched(*waiting.popleft())
            while waiting:
                yield from _matched(*waiting.popleft())
        except BrokenProcessPool:
            raise FurnclipError(
                "a worker process was killed, probably for want of memory",
                hint="run the same command again to go on from here, with fewer `prepare.workers`",
            ) from None

    def _submit(self, function: Callable[[Task], Result], tasks: list[Task]) -> Future[list[Result]]:
        self._seen += len(tasks)
        worth_a_pool = self._count > 1 and self._seen > _TASKS_WORTH_A_POOL
        if tasks and worth_a_pool and (pool := self._started()):
            return pool.submit(_run_all, function, tasks)
        future: Future[list[Result]] = Future()
        future.set_result(_run_all(function, tasks))
        return future

    def _started(self) -> ProcessPoolExecutor | None:
        """The pool, or None while its first process is on its way."""
        if self._pool is None or self._first_answer is None:
            self._pool = ProcessPoolExecutor(
                self._count, mp_context=_start_method(), initializer=_start_worker
            )
            self._first_answer = self._starter.submit(_answer_of, self._pool)
        if not self._first_answer.done():
            return None
        self._first_answer.result()  # raises where no process can be started
        return self._pool


def _answer_of(pool: ProcessPoolExecutor) -> list[int]:
    return pool.submit(_run_all, abs, [0]).result()


def _matched(
    chunk: list[Item], has_task: list[bool], future: Future[list[Result]]
) -> Iterator[tuple[Item, Result | None]]:
    results = iter(future.result())
    for item, expects_result in zip(chunk, has_task, strict=True):
        yield item, next(results) if expects_result else None


def _start_method() -> BaseContext:
    """Not `fork`: a fork of a process with threads, and pyarrow has some, can hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["furnclip.prepare"])  # imported once, shared by all workers
    return context


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
