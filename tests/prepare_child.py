"""`furnclip prepare` in a process of its own that is killed at an operation on files."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from furnclip.config import load_config
from furnclip.prepare import prepare
from furnclip.prepare.store import Members, SampleStore, Scanned

_OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link")


def prepare_and_die(folder: Path, operation: int, count: Path) -> None:
    """Prepare in this process, which is killed before its n-th operation on files.

    Where there are fewer it comes to its end and leaves their number in `count`.
    """
    seen = 0

    def step() -> None:
        nonlocal seen
        seen += 1
        if seen == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        flags = arguments[2] if event == "open" else 0
        if event in _OPERATIONS or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
            step()

    def add(store: SampleStore, sample: Scanned, members: Members) -> None:
        step()
        store_add(store, sample, members)

    def commit(store: SampleStore) -> None:
        step()
        store_commit(store)

    store_add, SampleStore.add = SampleStore.add, add  # type: ignore[method-assign]
    store_commit, SampleStore.commit = SampleStore.commit, commit  # type: ignore[method-assign]
    config = load_config(folder / "furnclip.toml", {"prepare": {"workers": 1}})
    sys.addaudithook(hear)
    prepare(config)
    count.write_text(str(seen))


if __name__ == "__main__":
    prepare_and_die(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
