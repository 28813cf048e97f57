"""`furnclip train` in a process of its own that starts in a fraction of a second, to be stopped.

A fork server loads the command and torch once; each run is then a forked process: as real to signals as any
other. What it says goes to `said.txt` in the folder.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from furnclip.cli import ending
from furnclip.journal import read_journal

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "furnclip.train.run"])
SAID = "said.txt"


def start(folder: Path, *args: str, env: Mapping[str, str] | None = None) -> ForkServerProcess:
    """A running `furnclip train ARGS` in `folder`."""
    process = _CONTEXT.Process(target=_main, args=(folder, args, dict(env or {})))
    process.start()
    return process


def run(folder: Path, *args: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and what was said of a `furnclip train ARGS` that ended by itself."""
    (folder / SAID).unlink(missing_ok=True)
    process = start(folder, *args, env=env)
    process.join(timeout=300)
    assert process.exitcode is not None
    return process.exitcode, (folder / SAID).read_text()


def wait_for_events(process: ForkServerProcess, run: Path, count: int) -> None:
    """Until the run has logged so many events, or has ended."""
    while process.is_alive() and len(list(read_journal(run / "metrics.jsonl"))) < count:
        time.sleep(0.002)


def _main(folder: Path, args: tuple[str, ...], env: dict[str, str]) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.chdir(folder)
    os.environ.update(env)
    said = os.open(SAID, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(said, stream)
    sys.argv = ["furnclip", "train", *args]
    ending.run()
