"""The commands of `furnclip clean`, each from start to end; what they return is what `cli` prints."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from furnclip import console
from furnclip.clean import estimate as money
from furnclip.clean.estimate import Estimate
from furnclip.clean.finalize import Summary, finalize
from furnclip.clean.ledger import Ledger, open_ledger, read_state
from furnclip.clean.plan import Prepared, Selection, prepare
from furnclip.clean.repair import check_rows, repair_indexes, restore_results
from furnclip.clean.requests import Recipe
from furnclip.clean.review import Pair, review
from furnclip.clean.state import SENT, UNSENT, Part, State
from furnclip.clean.workspace import Workspace
from furnclip.config import Config
from furnclip.errors import ConfigError, MissingStageError, UsageError

if TYPE_CHECKING:
    from furnclip.clean.dispatch import Dispatcher
    from furnclip.clean.openai import BatchService

# The client library takes over a second to load, so only what talks to a service imports it.


@dataclass(frozen=True)
class Standing:
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


def run(ledger: Ledger, selection: Selection, *, partial: bool, ignore_errors: bool) -> Summary:
    """Prepare, send, watch, write. Does nothing when nothing changed."""
    if ledger.config.clean.backend == "openai":
        _need_key(ledger.config)  # before an hour of reading pictures
    prepare(ledger, selection)
    answer(ledger, ignore_errors=ignore_errors)
    return finalize(ledger, partial=partial)


def answer(ledger: Ledger, *, ignore_errors: bool) -> None:
    """Bring every planned part to its end with the configured backend."""
    _need_prepared(ledger)
    _resume(ledger, ignore_errors=ignore_errors)
    backend, recipe = ledger.config.clean.backend, Recipe.from_config(ledger.config.clean)
    if backend == "openai":
        from furnclip.clean.monitor import Monitor

        with _service(ledger.config) as service:
            restore_results(ledger, service, give_up=ignore_errors)
            Monitor(ledger, service, recipe).watch()
        return
    restore_results(ledger, None, give_up=ignore_errors)
    if backend == "live":
        from furnclip.clean.live import Live

        with closing(Live(ledger, recipe)) as live:
            live.run()


def dispatch(ledger: Ledger, *, ignore_errors: bool) -> Standing:
    """Send what may be sent now, without waiting for answers."""
    _need_prepared(ledger)
    _resume(ledger, ignore_errors=ignore_errors)
    if ledger.config.clean.backend != "openai":
        console.note(f"nothing to send: the backend `{ledger.config.clean.backend}` has no batches")
        return standing(ledger.state)
    with _service(ledger.config) as service:
        dispatcher = _dispatcher(ledger, service)
        dispatcher.reconcile()
        dispatcher.send()
    if waiting := len(dispatcher.waiting()):
        parts = "1 part" if waiting == 1 else f"{waiting} parts"
        console.note(f"{parts} waiting (queue full); `furnclip clean monitor` sends them")
    return standing(ledger.state)


def monitor(ledger: Ledger) -> Standing:
    """Watch until every part has ended."""
    if ledger.config.clean.backend == "openai" and not _was_sent(ledger.state):
        raise MissingStageError("an open batch", command="furnclip clean dispatch")
    answer(ledger, ignore_errors=False)
    return standing(ledger.state)


def estimate(ledger: Ledger, selection: Selection, *, calibrated: bool) -> money.Estimate:
    """The price of what is still to be sent; `calibrated` sends one real request to know it better."""
    prepare(ledger, selection)
    clean = ledger.config.clean
    recipe = Recipe.from_config(clean)
    waiting = [part for part in ledger.state.with_status(*UNSENT) if part.backend == clean.backend]
    if calibrated and waiting and clean.backend == "openai":
        from furnclip.clean.canary import send_canary

        with _service(ledger.config) as service:
            send_canary(ledger, service, recipe, waiting[0], once_more=True)
    return money.estimate(waiting, ledger.state, recipe, batch=clean.backend == "openai")


def cancel(ledger: Ledger) -> list[int]:
    """Ask the service to stop every open batch; numbers of their parts."""
    with _service(ledger.config) as service:
        _dispatcher(ledger, service).reconcile()
        parts = ledger.state.with_status("open")
        for part in parts:
            batch = service.cancel(part.batch_id)
            if batch.status != part.batch_status:
                ledger.record("seen", part=part.number, status=batch.status, counts=list(batch.counts))
    return [part.number for part in parts]


def status(config: Config) -> Standing:
    """Where things stand, read without touching anything, also while another process works."""
    if not Workspace(config.paths.clean).journal.is_file():
        raise MissingStageError(Workspace(config.paths.clean).journal, command="furnclip clean prepare")
    return standing(read_state(config))


def standing(state: State) -> Standing:
    parts = [
        part
        for _, part in sorted(state.parts.items())
        if part.status not in ("dropped", "replaced") and part.backend != "local"
    ]
    outcomes: Counter[str] = Counter()
    for part in parts:
        outcomes.update(dict(zip(("cleaned", "rejected", "again"), part.outcomes, strict=True)))
    facts = state.prepared or {}
    return Standing(
        rows=facts.get("rows", 0),
        rejected_before_sending=facts.get("rejected", 0),
        parts=[_facts(part) for part in parts],
        statuses=dict(Counter(part.status for part in parts)),
        outcomes=dict(outcomes),
        paid_usd=round(state.paid.cost_usd, 8),
        unconfirmed_usd=round(state.unconfirmed_usd, 8),
        prompt_tokens=state.paid.prompt_tokens,
        completion_tokens=state.paid.completion_tokens,
        halted=state.halted,
    )


def _facts(part: Part) -> dict[str, object]:
    _, completed, failed = part.counts
    return {
        "part": part.number,
        "attempt": part.attempt,
        "status": part.batch_status if part.status == "open" else part.status,
        "done": completed + failed,
        "requests": part.requests,
        "batch_id": part.batch_id,
        "cost_usd": round(part.usage.cost_usd, 8),
    }


def _need_prepared(ledger: Ledger) -> None:
    check_rows(ledger)
    repair_indexes(ledger)
    prepared = ledger.state.prepared
    assert prepared is not None
    clean = ledger.config.clean
    wanted = (clean.backend, Recipe.from_config(clean).identity)
    if wanted != (prepared["backend"], prepared["identity"]):
        raise UsageError(
            "the requests were prepared for another backend, model or vocabulary",
            hint="run `furnclip clean prepare` with these settings first",
        )


def _resume(ledger: Ledger, *, ignore_errors: bool) -> None:
    if ignore_errors and ledger.state.halted:
        ledger.record("resumed", at=time.time())


def _was_sent(state: State) -> bool:
    sent = state.with_status(*SENT, "ended", "downloaded", "merged")
    return any(part.backend == "openai" for part in sent)


def _need_key(config: Config) -> None:
    if not config.openai_api_key.get_secret_value():
        raise ConfigError(
            "there is no OPENAI_API_KEY",
            hint="put it into `.env` or the environment, or use `--backend local`: free and offline",
        )


@contextmanager
def _service(config: Config) -> Iterator[BatchService]:
    _need_key(config)
    from furnclip.clean.openai import BatchService

    with closing(BatchService(config)) as service:
        yield service


def _dispatcher(ledger: Ledger, service: BatchService) -> Dispatcher:
    from furnclip.clean.dispatch import Dispatcher

    return Dispatcher(ledger, service, Recipe.from_config(ledger.config.clean))


__all__ = [
    "Estimate",
    "Ledger",
    "Pair",
    "Prepared",
    "Selection",
    "Standing",
    "Summary",
    "answer",
    "cancel",
    "dispatch",
    "estimate",
    "finalize",
    "monitor",
    "open_ledger",
    "prepare",
    "review",
    "run",
    "status",
]
