"""The worker pool: order, bounds, errors that name their item, and the one rule for signals."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from furnclip.errors import FurnclipError, StorageError
from furnclip.images import BrokenImage
from furnclip.parallel import Workers


def squared(number: int, *, offset: int = 0) -> tuple[int, int]:
    time.sleep(0.001)
    return number * number + offset, os.getpid()


@pytest.mark.parametrize(("processes", "at_least"), [(1, 1), (3, 2)])
def test_results_come_in_order_from_here_and_from_processes(processes: int, at_least: int) -> None:
    with Workers(partial(squared, offset=7), processes, here_first=4) as workers:
        found = list(workers.map(range(3000)))
    assert [value for value, _ in found] == [number * number + 7 for number in range(3000)]
    assert at_least <= len({process for _, process in found}) <= processes + 1


def test_after_preload_processes_take_tasks_from_the_second_chunk_on(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from furnclip.parallel import Workers, preload\n"
        "from tests.test_parallel import squared\n"
        "if __name__ == '__main__':\n"
        "    preload('tests.test_parallel')\n"
        "    for tasks in (4000, 64):\n"
        "        with Workers(squared, 2) as workers:\n"
        "            found = list(workers.map(range(tasks)))\n"
        "    assert [process == os.getpid() for _, process in found] == [True] * 16 + [False] * 48\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, str(script)], env=environment, check=True, timeout=60)


def read_variable(_: int) -> str | None:
    return os.environ.get("FURNCLIP_TOLD")


def test_workers_have_the_environment_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that they are forked from has that of its start."""
    for told in ("once", "again", None):
        if told:
            monkeypatch.setenv("FURNCLIP_TOLD", told)
        else:
            monkeypatch.delenv("FURNCLIP_TOLD")
        with Workers(read_variable, 2, here_first=0) as workers:
            assert set(workers.map(range(3000))) == {told}


def test_items_without_a_task_keep_their_place() -> None:
    with Workers(squared, 2, here_first=0) as workers:
        pairs = list(workers.pairs(range(200), task_of=lambda item: item if item % 3 else None))
    assert [item for item, _ in pairs] == list(range(200))
    assert [result is None for _, result in pairs] == [item % 3 == 0 for item in range(200)]


def test_items_are_taken_only_as_fast_as_results_are_fetched() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100_000):
            taken.append(number)
            yield number

    with Workers(squared, 2, here_first=0) as workers:
        results = workers.map(items())
        for _ in range(50):
            next(results)
    assert len(taken) < 500


# --- errors


class Unpicklable(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(lambda: first + second)


def fail_at_107(number: int, *, kind: str) -> int:
    if number == 107:
        if kind == "furnclip":
            raise StorageError("the shard is damaged", hint="build it again")
        if kind == "image":
            raise BrokenImage("truncated", "`a.png` is cut off")
        if kind == "disk":
            raise OSError(errno.ENOSPC, "No space left on device", "/big/file")
        if kind == "unpicklable":
            raise Unpicklable("a", "b")
        raise ValueError("no such colour")
    return number


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("value", "`item 107` could not be processed: ValueError: no such colour"),
        ("unpicklable", "`item 107` could not be processed: Unpicklable: "),
        ("furnclip", "the shard is damaged"),
        ("image", "`a.png` is cut off"),
        ("disk", "[Errno 28] No space left on device: '/big/file'"),
    ],
)
def test_an_error_names_the_item_and_comes_after_the_results_before_it(
    processes: int, kind: str, message: str
) -> None:
    results = []
    with (
        pytest.raises((FurnclipError, OSError)) as caught,
        Workers(partial(fail_at_107, kind=kind), processes, here_first=0) as workers,
    ):
        results.extend(workers.map(range(200), name_of=lambda number: f"item {number}"))
    assert str(caught.value).startswith(message)
    if isinstance(caught.value, FurnclipError):
        assert caught.value.hint
    assert len(results) < 107 or results == list(range(107))


def killed_in_a_worker(number: int) -> int:
    if multiprocessing.parent_process() is not None and number % 10 == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.001)
    return number


def test_a_killed_worker_is_told_with_the_place_and_the_setting() -> None:
    workers = Workers(killed_in_a_worker, 2, here_first=0, setting="prepare.workers")
    with workers, pytest.raises(FurnclipError, match=r"worker process was killed.*at `item \d+`") as caught:
        list(workers.map(range(100_000), name_of=lambda number: f"item {number}"))
    assert "`prepare.workers`" in caught.value.hint


# --- signals

_BUSY = """
import sys, time
from furnclip.parallel import Workers
from tests.test_parallel import busy
with Workers(busy, 2, here_first=0) as workers:
    for number in workers.map(range(100_000), chunk_items=1):
        print(number, flush=True)
"""


def busy(number: int) -> int:
    """Keeps a core busy, as decoders do."""
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        sum(range(1000))
    return number


@pytest.fixture
def at_work() -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A process with two workers, all of them busy."""
    process = subprocess.Popen(
        [sys.executable, "-c", _BUSY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parent.parent,
    )
    workers: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 60
        while len(busy := workers_of(process)) < 2:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline, busy
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
        yield process, workers
    finally:
        for worker in workers:
            if worker.is_running():
                worker.kill()
        process.kill()
        process.communicate()


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The children of its fork server, which have begun to work: they ignore SIGINT by then."""
    family = psutil.Process(process.pid).children(recursive=True)
    servers = {child.pid for child in family if child.ppid() == process.pid}
    with suppress(psutil.NoSuchProcess):
        return [child for child in family if child.ppid() in servers and child.cpu_times().user > 0.1]
    return []


def left_after(workers: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that still run; a zombie has ended and waits for whoever adopted it."""
    deadline = time.monotonic() + timeout_s
    while (left := [worker for worker in workers if runs(worker)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGABRT])
@pytest.mark.parametrize("whole_group", [False, True])
def test_no_worker_outlives_its_parent(
    at_work: tuple[subprocess.Popen[str], list[psutil.Process]], number: signal.Signals, whole_group: bool
) -> None:
    process, workers = at_work
    if whole_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.wait(10)
    assert process.returncode == -number
    assert left_after(workers, 2) == []


def test_ctrl_c_of_a_terminal_is_the_parents_alone(
    at_work: tuple[subprocess.Popen[str], list[psutil.Process]],
) -> None:
    process, workers = at_work
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process of the group
    _, errors = process.communicate(timeout=20)
    assert errors.count("Traceback") == 1  # the parent's own KeyboardInterrupt
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert left_after(workers, 2) == []


def test_it_loads_nothing_heavy() -> None:
    script = (
        "import sys, furnclip.parallel\n"
        "heavy = {'numpy', 'torch', 'PIL', 'pyarrow', 'pydantic'}\n"
        "sys.exit(str(heavy & sys.modules.keys() or ''))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.stderr.strip() == ""
