"""`furnclip clean` in a process of its own that starts in milliseconds, to be killed.

A fork server loads the command once; each run is then a forked process: as real to SIGKILL as any other,
without a second of imports. Used by the kill tests only.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from furnclip.clean.workspace import CleaningLedger
from furnclip.cli.commands import app

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "furnclip.clean.live", "furnclip.clean.batch.monitor"])


def start(folder: Path, env: Mapping[str, str], *args: str, die_before: str = "") -> ForkServerProcess:
    """A running `furnclip ARGS` in `folder`; its talk goes to `talk.txt` there.

    `die_before`: the event at which it gets SIGKILL, after the deed and before the note of it.
    """
    process = _CONTEXT.Process(target=_main, args=(folder, dict(env), args, die_before))
    process.start()
    return process


def _main(folder: Path, env: dict[str, str], args: tuple[str, ...], die_before: str) -> None:
    os.chdir(folder)
    os.environ.update(env)
    talk = os.open("talk.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(talk, stream)
    _die_before(die_before)
    app(list(args), prog_name="furnclip")


def _die_before(event: str) -> None:
    record = CleaningLedger.record

    def record_or_die(ledger: CleaningLedger, name: str, **facts: object) -> None:
        if name == event:
            os.kill(os.getpid(), signal.SIGKILL)
        record(ledger, name, **facts)

    CleaningLedger.record = record_or_die  # type: ignore[method-assign]
