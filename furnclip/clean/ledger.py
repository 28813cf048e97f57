"""The journal and the state that it adds up to, held together while a command works."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from furnclip.catalogue import content_hash
from furnclip.clean.events import check_event
from furnclip.clean.state import DAMAGED_HINT, State, apply
from furnclip.clean.workspace import Workspace
from furnclip.config import Config
from furnclip.errors import JournalError
from furnclip.journal import Event, Journal, read_journal


class Ledger:
    """An open journal with its state; `record` writes to the disk first and changes the state after."""

    def __init__(self, config: Config, journal: Journal) -> None:
        self.config = config
        self.workspace = Workspace(config.paths.clean)
        self.state = _replayed(journal.path)
        self._journal = journal

    def record(self, name: str, **facts: object) -> None:
        event: Event = {"event": name, **facts}
        self._journal.append(event)
        self.state = apply(self.state, event)

    def start(self) -> None:
        """Give a new journal its run id, which marks uploads and batches as ours."""
        if not self.state.run:
            run = secrets.token_hex(4)
            self.record("started", run=run, at=time.time(), key_print=key_print(self.config, run))


@contextmanager
def open_ledger(config: Config) -> Iterator[Ledger]:
    """The ledger of `work/clean/`, locked. Raises `JournalError` when another process holds it."""
    workspace = Workspace(config.paths.clean)
    with Journal(workspace.journal) as journal:
        workspace.sweep()
        ledger = Ledger(config, journal)
        ledger.start()
        yield ledger


def read_state(config: Config) -> State:
    """The state as the journal tells it, without taking the lock."""
    return _replayed(Workspace(config.paths.clean).journal)


def _replayed(path: Path) -> State:
    """The state after every event of a journal, each checked before it counts."""
    state = State()
    for number, event in enumerate(read_journal(path), start=1):
        try:
            check_event(event)
            state = apply(state, event)
        except JournalError as error:
            where = f"line {number} of `{path}` is damaged: {error.message}"
            raise JournalError(where, hint=error.hint or DAMAGED_HINT) from None
    return state


def key_print(config: Config, run: str) -> str:
    """Tells two API keys apart without giving either away: a hash salted with the run's id."""
    key = config.openai_api_key.get_secret_value()
    return content_hash("key", run, key) if key else ""
