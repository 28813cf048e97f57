"""`furnclip update`: what a cron line calls to bring search in line with the catalogue.

Each stage is a command of its own and a process of its own, so that the memory of one is free for the next.
What they say, and their results, are appended to `work/update.log`.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from furnclip import console
from furnclip.cli.options import Call, takes
from furnclip.errors import FurnclipError

if TYPE_CHECKING:
    from furnclip.config import Config


@takes()
def update(call: Call) -> None:
    """Bring search up to date with the catalogue: fetch, clean, prepare and embed what changed."""
    from furnclip.journal import exclusive

    chosen = call.settings()
    log = chosen.paths.work / "update.log"
    results: dict[str, Any] = {}
    start = time.monotonic()
    with exclusive(log):  # cron starts the next one even where this one is still at work
        for words in _stages(chosen):
            console.note(f"furnclip {' '.join(words)}")
            results[words[0]] = _run(words, call.config, log)
    payload = {"seconds": round(time.monotonic() - start, 1), "log": str(log), "results": results}
    embedded = results["embed"]

    def show() -> None:
        console.say(f"{embedded['products']:,} products can be searched, {payload['seconds']} s")
        console.say(f"what was done: {log}")

    call.emit(payload, show)


def _stages(config: Config) -> list[tuple[str, ...]]:
    """The commands in order; titles are cleaned where that was begun, because it may cost money."""
    from furnclip.clean.workspace import Workspace

    if Workspace(config.paths.clean).journal.exists():
        return [("fetch",), ("clean", "run"), ("prepare",), ("embed",)]
    console.note("titles stay as they are: `furnclip clean run` was never started here")
    return [("fetch",), ("prepare",), ("embed",)]


def _run(words: tuple[str, ...], config: Path | None, log: Path) -> Any:
    """The JSON result of a command, whose messages go to the log."""
    from furnclip.parallel import run_furnclip

    options = ["--json", *(["--config", str(config)] if config else [])]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} furnclip {' '.join(words)}\n")
        file.flush()
        code, output = run_furnclip([*words, *options], stdout=subprocess.PIPE, stderr=file)
        file.write(f"{output.strip()}\nexit code {code}\n")
    if code:
        raise FurnclipError(
            f"`furnclip {' '.join(words)}` ended with exit code {code}",
            hint=f"`{log}` has its message; fix the cause and run the same command again",
        )
    return json.loads(output)
