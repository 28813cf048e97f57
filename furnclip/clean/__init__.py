"""`furnclip clean`: a messy catalogue -> clean titles and attributes, without losing a row or paying twice.

In: `products.csv` and its images. Out: `work/clean/cleaned.csv` and `rejected.csv`; every row is in
exactly one of them. The work is done by one of three backends: `openai` (Batch API), `live` (any
chat-completions server) or `local` (offline rules). Everything is journalled before it is done, in
`work/clean/journal.jsonl`, so each command can be killed at any moment and run again.

Here are the commands, each from start to end; what they return is what `cli` prints. The client library
takes over a second to load, so only what talks to a service imports it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from furnclip import console
from furnclip.clean.batch import parts as pricing
from furnclip.clean.batch.parts import Estimate
from furnclip.clean.batch.state import SENT, UNSENT, State
from furnclip.clean.output import CleaningSummary, bill, finalize, review
from furnclip.clean.plan import Selection, prepare
from furnclip.clean.workspace import (
    CleaningLedger,
    Workspace,
    check_rows,
    open_ledger,
    read_state,
    repair_indexes,
    restore_results,
)
from furnclip.config import Config
from furnclip.errors import ConfigError, MissingStageError, UsageError

if TYPE_CHECKING:
    from furnclip.clean.batch.dispatch import Dispatcher
    from furnclip.clean.batch.service import BatchService

# of other modules, for callers of this one
__all__ = ["CleaningSummary", "Selection", "finalize", "open_ledger", "prepare", "review"]


@dataclass(frozen=True)
class CleaningStatus:
    """Where things stand."""

    rows: int = 0
    rejected_before_sending: int = 0
    parts: list[dict[str, object]] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    paid_usd: float = 0.0
    unconfirmed_usd: float = 0.0  # of requests whose reply was lost
    prompt_tokens: int = 0
    completion_tokens: int = 0
    halted: str = ""


def run(
    ledger: CleaningLedger, selection: Selection, *, partial: bool, ignore_errors: bool
) -> CleaningSummary:
    """Prepare, send, watch, write. Does nothing when nothing changed."""
    if ledger.config.clean.backend == "openai":
        _need_key(ledger.config)  # before an hour of reading images
    prepare(ledger, selection)
    answer(ledger, ignore_errors=ignore_errors)
    return finalize(ledger, partial=partial)


def answer(ledger: CleaningLedger, *, ignore_errors: bool) -> None:
    """Bring every planned part to its end with the configured backend."""
    _start_sending(ledger, ignore_errors=ignore_errors)
    if ledger.config.clean.backend == "openai":
        from furnclip.clean.batch.monitor import Monitor

        with _service(ledger.config) as service:
            restore_results(ledger, service, give_up=ignore_errors)
            Monitor(ledger, service).watch()
        return
    restore_results(ledger, None, give_up=ignore_errors)
    if ledger.config.clean.backend == "live":
        from furnclip.clean.live import ask_live

        ask_live(ledger)


def dispatch(ledger: CleaningLedger, *, ignore_errors: bool) -> CleaningStatus:
    """Send what may be sent now, without waiting for answers."""
    _start_sending(ledger, ignore_errors=ignore_errors)
    if ledger.config.clean.backend != "openai":
        console.note(f"nothing to send: the backend `{ledger.config.clean.backend}` has no batches")
        return _status(ledger.state)
    with _dispatcher(ledger) as (dispatcher, _):
        dispatcher.send()
    if waiting := len(dispatcher.waiting()):
        parts = "1 part" if waiting == 1 else f"{waiting} parts"
        console.note(f"{parts} waiting (queue full); `furnclip clean monitor` sends them")
    return _status(ledger.state)


def monitor(ledger: CleaningLedger) -> CleaningStatus:
    """Watch until every part has ended."""
    sent = ledger.state.with_status(*SENT, "ended", "downloaded", "merged", backend="openai")
    if ledger.config.clean.backend == "openai" and not sent:
        raise MissingStageError("an open batch", command="furnclip clean dispatch")
    answer(ledger, ignore_errors=False)
    return _status(ledger.state)


def estimate(ledger: CleaningLedger, selection: Selection, *, calibrated: bool) -> Estimate:
    """The price of what is still to be sent; `calibrated` sends one real request to know it better."""
    prepare(ledger, selection)
    backend = ledger.config.clean.backend
    waiting = ledger.state.with_status(*UNSENT, backend=backend)
    if calibrated and waiting and backend == "openai":
        from furnclip.clean.batch.dispatch import send_canary

        with _service(ledger.config) as service:
            send_canary(ledger, service, waiting[0], once_more=True)
    return pricing.estimate(waiting, ledger)


def cancel(ledger: CleaningLedger) -> list[int]:
    """Ask the service to stop every open batch; numbers of their parts."""
    with _dispatcher(ledger) as (_, service):
        parts = ledger.state.with_status("open")
        for part in parts:
            batch = service.cancel(part.batch_id)
            if batch.status != part.batch_status:
                ledger.record("seen", part=part.number, status=batch.status, counts=list(batch.counts))
    return [part.number for part in parts]


def status(config: Config) -> CleaningStatus:
    """Where things stand, read without touching anything, also while another process works."""
    if not Workspace(config.paths.clean).journal.is_file():
        raise MissingStageError(Workspace(config.paths.clean).journal, command="furnclip clean prepare")
    return _status(read_state(config))


def _status(state: State) -> CleaningStatus:
    parts = [part for part in state.current_parts if part.backend != "local"]
    outcomes: Counter[str] = Counter()
    for part in parts:
        outcomes.update(dict(zip(("cleaned", "rejected", "again"), part.outcomes, strict=True)))
    facts = state.prepared or {}
    return CleaningStatus(
        rows=facts.get("rows", 0),
        rejected_before_sending=facts.get("rejected", 0),
        parts=[
            {
                "part": part.number,
                "attempt": part.attempt,
                "status": part.shown_status,
                "done": sum(part.counts[1:]),
                "requests": part.requests,
                "batch_id": part.batch_id,
                "cost_usd": round(part.usage.cost_usd, 8),
            }
            for part in parts
        ],
        statuses=dict(Counter(part.status for part in parts)),
        outcomes=dict(outcomes),
        **bill(state),
        halted=state.halted,
    )


def _start_sending(ledger: CleaningLedger, *, ignore_errors: bool) -> None:
    """Raises where the requests are not there or made by other settings; lifts a halt that is ignored."""
    prepared, clean = check_rows(ledger), ledger.config.clean
    repair_indexes(ledger)
    if (clean.backend, ledger.recipe.identity) != (prepared["backend"], prepared["identity"]):
        raise UsageError(
            "the requests were prepared for another backend, model or vocabulary",
            hint="run `furnclip clean prepare` with these settings first",
        )
    if ignore_errors and ledger.state.halted:
        ledger.record("resumed", at=time.time())


def _need_key(config: Config) -> None:
    if not config.openai_api_key.get_secret_value():
        raise ConfigError(
            "there is no OPENAI_API_KEY",
            hint="put it into `.env` or the environment, or use `--backend local`: free and offline",
        )


@contextmanager
def _service(config: Config) -> Iterator[BatchService]:
    _need_key(config)
    from furnclip.clean.batch.service import BatchService

    with closing(BatchService(config)) as service:
        yield service


@contextmanager
def _dispatcher(ledger: CleaningLedger) -> Iterator[tuple[Dispatcher, BatchService]]:
    """What sends batches, after what a crash left open is settled."""
    with _service(ledger.config) as service:
        from furnclip.clean.batch.dispatch import Dispatcher

        dispatcher = Dispatcher(ledger, service)
        dispatcher.reconcile()
        yield dispatcher, service
