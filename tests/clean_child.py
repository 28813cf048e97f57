"""`furnclip clean` in a process of its own that starts in milliseconds, to be killed.

Run as a module it is the command that gets SIGKILL before it notes the event which its first argument names.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from furnclip.clean.workspace import CleaningLedger
from furnclip.cli.commands import app
from tests.forked import Forked


def start(folder: Path, env: Mapping[str, str], *args: str, die_before: str = "") -> Forked:
    """A running `furnclip ARGS` in `folder`; its talk goes to `talk.txt` there.

    `die_before`: the event at which it gets SIGKILL, after the deed and before the note of it.
    """
    words, module = ([die_before, *args], __name__) if die_before else (args, "furnclip")
    with (folder / "talk.txt").open("ab") as talk:
        return Forked(words, folder, {**os.environ, **env}, talk, talk, module=module)


def _die_before(event: str) -> None:
    record = CleaningLedger.record

    def record_or_die(ledger: CleaningLedger, name: str, **facts: object) -> None:
        if name == event:
            os.kill(os.getpid(), signal.SIGKILL)
        record(ledger, name, **facts)

    CleaningLedger.record = record_or_die  # type: ignore[method-assign]


if __name__ == "__main__":
    _die_before(sys.argv[1])
    app(sys.argv[2:], prog_name="furnclip")
