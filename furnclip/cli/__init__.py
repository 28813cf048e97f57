"""The `furnclip` command: parse options, call one command package, print its result.

A command package is imported inside its command, so `--help` loads typer and nothing else. Even typer and
`typing` have to wait here: Ctrl-C while they are imported would be a traceback.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> None:
    """Entry point of the `furnclip` script; the process ends in it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else who started us wants none
        signal.signal(signal.SIGINT, leave)
    from furnclip.cli.ending import run

    run()


def leave(number: int, frame: object) -> NoReturn:
    """End at once: before a command has begun, and after it has ended, there is nothing to put in order."""
    os.write(2, b"error: interrupted\n")
    os._exit(130)
