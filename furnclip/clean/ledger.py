"""The journal and the state that it adds up to, held together while a command works."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from furnclip.catalogue import content_hash
from furnclip.clean.state import State, apply, fold
from furnclip.clean.workspace import Workspace
from furnclip.config import Config
from furnclip.journal import Event, Journal, read_journal


class Ledger:
    """An open journal with its state; `record` writes to the disk first and changes the state after."""

    def __init__(self, config: Config, journal: Journal) -> None:
        self.config = config
        self.workspace = Workspace(config.paths.clean)
        self.state = fold(journal.events())
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
    with Journal(Workspace(config.paths.clean).journal) as journal:
        ledger = Ledger(config, journal)
        ledger.start()
        yield ledger


def read_state(config: Config) -> State:
    """The state as the journal tells it, without taking the lock."""
    return fold(read_journal(Workspace(config.paths.clean).journal))


def key_print(config: Config, run: str) -> str:
    """Tells two API keys apart without giving either away: a hash salted with the run's id."""
    key = config.openai_api_key.get_secret_value()
    return content_hash("key", run, key) if key else ""
