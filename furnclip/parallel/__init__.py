"""The same function over many items, in order: in this process, on local worker processes, or on Ray.

    with Workers(decode_image, processes=4) as workers:
        for image in workers.map(tasks):
            ...

Results come in the order of the items, and only a bounded number of items is in flight, so memory does
not grow with their number. Starting processes takes as long as importing furnclip: the first tasks are
done here, and so is what comes before the first process answers, unless the process that they are forked
from is there already. On Ray (`on_ray`) the results come back to this process, which alone writes.

One rule for signals: Ctrl-C is the parent's to handle, workers ignore SIGINT; when the parent ends, by
whatever signal, they end with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from furnclip.errors import FurnclipError, Interrupted, UsageError

if TYPE_CHECKING:
    from furnclip.parallel.on_ray import RayPool

Item = TypeVar("Item")
Task = TypeVar("Task")
Result = TypeVar("Result")

_CHUNK_ITEMS, _CHUNKS_AHEAD = 16, 4


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_answered = threading.Event()
_preloaded: list[str] = []  # what the process that workers are forked from has imported, once it is started


def preload(module: str) -> None:
    """Start the process that workers are forked from, which imports a module while this one goes on.

    The first call counts. It does nothing where processes cannot be made so.
    """
    if _preloaded or "forkserver" not in multiprocessing.get_all_start_methods():
        return
    _preloaded.append(module)
    forkserver.set_forkserver_preload([module])
    resource_tracker.ensure_running()  # which ends with Ctrl-C let through
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # or Ctrl-C is a traceback while it imports
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def has_started() -> bool:
    """Whether a worker process has answered, so that further ones are there at once."""
    return _answered.is_set()


class Workers(Generic[Task, Result]):
    """Processes that run one function. They start when there is enough to do and end with the block.

    function: what to run; it is sent to each process once, so a `partial` may hold what all tasks share.
    processes: 0 for one a core, as far as the free memory allows `memory_mb` for each.
    here_first: tasks that are done in this process before others are started; fewer after `preload`.
    setting: the name of the setting that holds `processes`, for the hint of an error.
    engine: where the processes are. on_devices: on Ray, one process a GPU; the function holds a model.
    """

    def __init__(
        self,
        function: Callable[[Task], Result],
        processes: int = 0,
        *,
        memory_mb: int = 0,
        here_first: int = 64,
        setting: str = "workers",
        engine: Literal["local", "ray"] = "local",
        on_devices: bool = False,
    ) -> None:
        if engine == "ray" and not find_spec("ray"):
            raise UsageError("Ray is not installed", hint='run `pip install "furnclip[ray]"`')
        self._function = function
        self._on_ray = engine == "ray"
        self._on_devices = on_devices
        self._memory_mb = memory_mb
        possible = cores()
        if memory_mb and (free_bytes := free_memory_bytes()) is not None:
            possible = max(1, min(possible, (free_bytes >> 20) // memory_mb))
        self._processes = processes or possible
        self._setting = setting
        self._here_first = min(here_first, _CHUNK_ITEMS) if _preloaded else here_first
        self._seen = 0
        self._pool: ProcessPoolExecutor | None = None
        self._starter: threading.Thread
        self._ray: RayPool | None = None

    def __enter__(self) -> Workers[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._ray is not None:
            self._ray.close()

    def map(
        self, tasks: Iterable[Task], *, name_of: Callable[[Task], str] = str, chunk_items: int = _CHUNK_ITEMS
    ) -> Iterator[Result]:
        """The result of each task, in order. Other arguments and errors as in `pairs`."""
        pairs = self.pairs(tasks, task_of=lambda task: task, name_of=name_of, chunk_items=chunk_items)
        yield from (cast(Result, result) for _, result in pairs)  # every item has a task here

    def pairs(
        self,
        items: Iterable[Item],
        *,
        task_of: Callable[[Item], Task | None],
        name_of: Callable[[Item], str] = str,
        chunk_items: int = _CHUNK_ITEMS,
    ) -> Iterator[tuple[Item, Result | None]]:
        """(item, result of its task, or None where it has none) for each item, in their order.

        Items are taken from their iterator only as fast as results are fetched, `chunk_items` at a time.
        Raises what the function raises; an error that is neither a `FurnclipError` nor an `OSError` becomes
        a `FurnclipError` that names the item.
        """
        waiting: deque[tuple[list[Item], list[bool], _Outcomes[Result]]] = deque()
        iterator = iter(items)
        try:
            while (chunk := list(islice(iterator, chunk_items))) or waiting:
                if chunk:
                    tasks = [task_of(item) for item in chunk]
                    outcomes = self._submit([task for task in tasks if task is not None])
                    waiting.append((chunk, [task is not None for task in tasks], outcomes))
                size = self._ray.size if self._ray else self._processes
                if not chunk or len(waiting) > size * _CHUNKS_AHEAD:
                    yield from _finished(*waiting[0], name_of)
                    waiting.popleft()
        except BrokenProcessPool:
            at_work = waiting[0][0] if waiting else chunk
            raise FurnclipError(
                f"a worker process was killed, probably out of memory, at `{name_of(at_work[0])}` or "
                "one of the items after it",
                hint=f"run the same command again to continue from here, with fewer `{self._setting}`",
            ) from None

    def _submit(self, tasks: list[Task]) -> _Outcomes[Result]:
        self._seen += len(tasks)
        if tasks and self._seen > self._here_first:
            if self._on_ray:
                return self._cluster().submit(tasks)
            if self._processes > 1 and (pool := self._started()):
                try:
                    return pool.submit(_run_in_worker, tasks).result
                except OSError as error:  # it starts another process just when one was killed
                    raise BrokenProcessPool(str(error)) from error
        outcomes = _run(self._function, tasks)
        return lambda: outcomes

    def _cluster(self) -> RayPool:
        if self._ray is None:
            from furnclip.parallel.on_ray import RayPool  # seconds to import

            run = partial(_run, self._function)
            self._ray = RayPool(run, self._processes, memory_mb=self._memory_mb, on_devices=self._on_devices)
        return self._ray

    def _started(self) -> ProcessPoolExecutor | None:
        """The pool, or None while its first process is on its way."""
        if self._pool is None:
            # Not `fork`: a fork of a process with threads, and pyarrow has some, can hang.
            has_forkserver = "forkserver" in multiprocessing.get_all_start_methods()
            context = multiprocessing.get_context("forkserver" if has_forkserver else "spawn")
            preload(getattr(self._function, "func", self._function).__module__)
            given = self._function, dict(os.environ)
            self._pool = ProcessPoolExecutor(self._processes, context, _start_worker, given)
            told = self._pool, self._processes
            self._starter = threading.Thread(target=_wait_for_answer, args=told, daemon=True)
            self._starter.start()
            if has_started():
                self._starter.join()  # soon
        return None if self._starter.is_alive() else self._pool


@dataclass(frozen=True)
class _Failure:
    """An exception on its way between processes; those of furnclip do not survive pickling by themselves."""

    kind: type[Exception]
    arguments: tuple[object, ...]
    state: dict[str, Any]

    def error(self, item: str) -> Exception:
        """What to raise in the parent."""
        if issubclass(self.kind, FurnclipError | OSError):
            error = self.kind.__new__(self.kind, *self.arguments)
            vars(error).update(self.state)
            return error
        detail = " ".join(str(argument) for argument in self.arguments)
        return FurnclipError(
            f"`{item}` could not be processed: {self.kind.__name__}{': ' if detail else ''}{detail}",
            hint="leave it out and run the same command again; if it looks sound, this is worth a bug report",
        )


_Outcomes = Callable[[], "list[Result | _Failure]"]  # of a chunk: results up to the first failure


def _finished(
    items: list[Item], has_task: list[bool], wait: _Outcomes[Result], name_of: Callable[[Item], str]
) -> Iterator[tuple[Item, Result | None]]:
    """Each item with its result; raises what the function raised for one, after those before it."""
    outcomes = iter(wait())
    for item, awaits_result in zip(items, has_task, strict=True):
        outcome = next(outcomes) if awaits_result else None
        if isinstance(outcome, _Failure):
            raise outcome.error(name_of(item))
        yield item, outcome


def _run(function: Callable[[Task], Result], tasks: list[Task]) -> list[Result | _Failure]:
    """The result of each task, up to the first failure."""
    results: list[Result | _Failure] = []
    for task in tasks:
        try:
            results.append(function(task))
        except Exception as error:
            state = vars(error) if isinstance(error, FurnclipError) else {}
            arguments = error.args if isinstance(error, FurnclipError | OSError) else (str(error),)
            if isinstance(error, OSError) and error.filename is not None:
                arguments = (*error.args[:2], str(error.filename))
            return [*results, _Failure(type(error), arguments, state)]
    return results


def run_furnclip(words: Sequence[str], **options: Any) -> tuple[int, str]:
    """The exit code of `furnclip WORDS` and what it printed, where `options` of `Popen` capture that.

    It ends with this process; Ctrl-C is `Interrupted`, once it has saved its state.
    """
    with subprocess.Popen([sys.executable, "-m", "furnclip", *words], text=True, **options) as process:
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt:
            process.wait()  # the terminal has sent it SIGINT too
            raise Interrupted from None
        except BaseException:  # SIGTERM or SIGHUP
            process.terminate()
            raise
    return process.returncode, output or ""


def free_memory_bytes() -> int | None:
    """Memory that is free now, within the limit of a container; half of all where the system tells no more.

    None on Windows, which does not tell.
    """
    free: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    if not free and hasattr(os, "sysconf"):
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    with suppress(OSError, ValueError):  # there is no control group, or it has no limit
        folder = Path("/sys/fs/cgroup")
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        free.append(limit - used)
    return min(free, default=None)


# --- in the worker processes


_worker_function: list[Callable[[Any], Any]] = []  # of a worker process: one, set when it starts


class _NoPandas(MetaPathFinder):
    """Where pandas is installed pyarrow imports it with the first array, for a quarter of a second."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _wait_for_answer(pool: ProcessPoolExecutor, processes: int) -> None:
    with suppress(RuntimeError, OSError, CancelledError):  # the next task says so
        answers = [pool.submit(abs, 0) for _ in range(processes)]  # so that all of them start now
        answers[0].result()
        _answered.set()


def _start_worker(function: Callable[[Any], Any], environment: dict[str, str]) -> None:
    os.environ.clear()  # it may have changed since the process that this one is forked from was started
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    sys.meta_path.insert(0, _NoPandas())
    _worker_function.append(function)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)  # ended by a signal, the parent could not tell us to stop


def _run_in_worker(tasks: list[Any]) -> list[Any]:
    return _run(_worker_function[0], tasks)
