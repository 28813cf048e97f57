"""Where every part stands: a pure fold over the journal's events.

In: events of `work/clean/journal.jsonl`. Out: a `State`. Nothing here reads a clock, a file or the
network, so any crash can be replayed in a test by cutting the list of events.

    planned -> uploading -> uploaded -> creating -> open -> ended -> downloaded -> merged
                   ^           ^ | not created, queue full          (any) -> replaced, dropped
                   +-----------+ upload lost

An event that announces a side effect (`uploading`, `creating`, `canary_asking`) is on the disk before the
side effect is tried. So a part found in `creating` after a crash may or may not have a batch: `dispatch`
asks the service before it ever creates another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from furnclip.errors import JournalError
from furnclip.journal import Event

Status = Literal[
    "planned",
    "uploading",
    "uploaded",
    "creating",
    "open",
    "ended",
    "downloaded",
    "merged",
    "replaced",
    "dropped",
]
DAMAGED_HINT = "restore the file from a backup; without it, answers that were paid for would be bought again"
UNSENT: frozenset[Status] = frozenset({"planned", "uploading", "uploaded"})
SENT: frozenset[Status] = frozenset({"creating", "open"})


@dataclass(frozen=True)
class Usage:
    """Tokens as billed, and their price."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost_usd + other.cost_usd,
        )


@dataclass(frozen=True)
class Part:
    """One file of requests and the batch made of it."""

    number: int
    requests: int
    size_bytes: int
    tokens: int
    sha256: str
    attempt: int = 1
    backend: str = "openai"
    source: str = ""
    index_sha256: str = ""
    results: tuple[tuple[str, str], ...] = ()  # file name and SHA-256 of what the service gave
    identity: str = ""  # of the recipe that the requests were made by
    status: Status = "planned"
    filename: str = ""
    file_id: str = ""
    uploads: int = 0
    creations: int = 0
    not_before: float = 0.0
    strikes: int = 0
    batch_id: str = ""
    old_batches: tuple[str, ...] = ()  # ended without running anything
    batch_status: str = ""
    output_file_id: str = ""
    error_file_id: str = ""
    counts: tuple[int, int, int] = (0, 0, 0)  # total, completed, failed
    billed: tuple[int, int] = (0, 0)  # prompt, completion tokens as the batch reports them
    outcomes: tuple[int, int, int] = (0, 0, 0)  # cleaned, rejected, to be retried
    usage: Usage = Usage()
    unconfirmed_usd: float = 0.0  # of requests whose reply was lost
    rejected_lines: tuple[tuple[str, str, str], ...] = ()  # id, code, message


@dataclass(frozen=True)
class State:
    """Everything the journal tells."""

    run: str = ""
    key_print: str = ""
    preparing: str = ""
    prepared: Event | None = None
    parts: dict[int, Part] = field(default_factory=dict)
    canaries: dict[str, Event] = field(default_factory=dict)
    unanswered: tuple[Event, ...] = ()  # canaries that were sent and whose reply is not known
    queue_limit: int = 0
    halted: str = ""
    finalized: Event | None = None

    @property
    def next_number(self) -> int:
        return max(self.parts, default=0) + 1

    def with_status(self, *statuses: Status) -> list[Part]:
        """Parts in any of these states, in order of their number."""
        return [part for _, part in sorted(self.parts.items()) if part.status in statuses]

    @property
    def canary_usage(self) -> Usage:
        return sum((usage_of(event) for event in self.canaries.values()), Usage())

    def lost_canaries(self, recipe: str) -> list[Event]:
        """Canaries of this recipe that may or may not have been billed."""
        return [event for event in self.unanswered if event["recipe"] == recipe]

    @property
    def unconfirmed_usd(self) -> float:
        """What requests cost if they were billed although their reply was lost."""
        canaries = sum((float(event["cost_usd"]) for event in self.unanswered), 0.0)
        return canaries + sum(part.unconfirmed_usd for part in self.parts.values())

    @property
    def paid(self) -> Usage:
        """The bill so far, from the usage that the service reported."""
        return sum((part.usage for part in self.parts.values()), self.canary_usage)


def fold(events: Iterable[Event], state: State | None = None) -> State:
    """The state after these events."""
    state = state or State()
    for event in events:
        state = apply(state, event)
    return state


def apply(state: State, event: Event) -> State:
    """The state after one more event."""
    name = event.get("event")
    if name != "started" and not state.run:
        raise JournalError(f"the event `{name}` stands before the start of the run", hint=DAMAGED_HINT)
    if "part" in event and name != "planned" and event["part"] not in state.parts:
        raise JournalError(
            f"the event `{name}` is about part {event['part']}, never planned", hint=DAMAGED_HINT
        )
    if name in _PART_EVENTS:
        part = state.parts[event["part"]]
        return _with_parts(state, _PART_EVENTS[name](part, event))
    if name in _RUN_EVENTS:
        return _RUN_EVENTS[name](state, event)
    raise JournalError(
        f"the journal holds an event `{name}` that this version does not know",
        hint="if a newer furnclip wrote it, `pip install -U furnclip`; else restore it from a backup",
    )


def usage_of(event: Event) -> Usage:
    return Usage(event["prompt_tokens"], event["completion_tokens"], event["cost_usd"])


def _with_parts(state: State, *parts: Part) -> State:
    return replace(state, parts={**state.parts, **{part.number: part for part in parts}})


def _part(facts: Event) -> Part:
    known = {name: facts[name] for name in _PLANNED if facts.get(name) is not None}
    return Part(number=facts["part"], **known)


_PLANNED = (
    "requests", "size_bytes", "tokens", "sha256", "index_sha256", "attempt", "backend", "source", "identity",
    "status", "not_before",
)  # fmt: skip


def _started(state: State, event: Event) -> State:
    return replace(state, run=event["run"], key_print=event["key_print"])


def _preparing(state: State, event: Event) -> State:
    """Another catalogue or other settings: what was never sent is not needed any more."""
    if event["fingerprint"] == state.preparing:
        return state
    dropped = [replace(part, status="dropped") for part in state.with_status(*UNSENT)]
    return replace(
        _with_parts(state, *dropped), preparing=event["fingerprint"], prepared=None, finalized=None, halted=""
    )


def _planned(state: State, event: Event) -> State:
    return _with_new_parts(state, [event])


def _with_new_parts(state: State, planned: list[Event]) -> State:
    numbers = [facts["part"] for facts in planned]
    if len(set(numbers)) < len(numbers) or not state.parts.keys().isdisjoint(numbers):
        raise JournalError("a part is planned twice", hint=DAMAGED_HINT)
    return _with_parts(state, *map(_part, planned))


def _prepared(state: State, event: Event) -> State:
    return replace(state, prepared=event)


def _replaced(state: State, event: Event) -> State:
    """A part whose batch never ran gives way to others; lines that can never run are rejected."""
    lines = tuple((line["custom_id"], line["code"], line["message"]) for line in event["rejected_lines"])
    old = replace(state.parts[event["part"]], status="replaced", rejected_lines=lines)
    return _with_parts(_with_new_parts(state, event["by"]), old)


def _again(state: State, event: Event) -> State:
    return _with_new_parts(state, event["parts"])


def _canary_asking(state: State, event: Event) -> State:
    return replace(state, unanswered=(*state.unanswered, event))


def _canary_refused(state: State, event: Event) -> State:
    """The last one sent has its reply; an earlier one whose reply was lost stays on the bill."""
    sent = state.unanswered
    answered = sent[-1:] if sent and sent[-1]["recipe"] == event["recipe"] else ()
    return replace(state, unanswered=sent[: len(sent) - len(answered)])


def _canary(state: State, event: Event) -> State:
    canaries = {**state.canaries, event["recipe"]: event}
    return replace(_canary_refused(state, event), canaries=canaries)


def _queue_limit(state: State, event: Event) -> State:
    return replace(state, queue_limit=event["limit"])


def _halted(state: State, event: Event) -> State:
    return replace(state, halted=event["reason"])


def _resumed(state: State, _event: Event) -> State:
    return replace(state, halted="")


def _finalized(state: State, event: Event) -> State:
    return replace(state, finalized=event)


def _uploading(part: Part, event: Event) -> Part:
    return replace(part, status="uploading", filename=event["filename"], uploads=part.uploads + 1)


def _uploaded(part: Part, event: Event) -> Part:
    return replace(part, status="uploaded", file_id=event["file_id"])


def _upload_lost(part: Part, _event: Event) -> Part:
    old = (*part.old_batches, part.batch_id) if part.batch_id else part.old_batches
    return replace(part, status="planned", file_id="", filename="", batch_id="", old_batches=old)


def _creating(part: Part, _event: Event) -> Part:
    return replace(part, status="creating", creations=part.creations + 1)


def _not_created(part: Part, event: Event) -> Part:
    """The service said no: nothing runs, and the uploaded file can be used again."""
    return replace(
        part,
        status="uploaded",
        not_before=event["not_before"],
        strikes=part.strikes + 1,
        old_batches=(*part.old_batches, part.batch_id) if part.batch_id else part.old_batches,
        batch_id="",
        batch_status="",
    )


def _created(part: Part, event: Event) -> Part:
    return replace(part, status="open", batch_id=event["batch_id"], batch_status=event["status"])


def _seen(part: Part, event: Event) -> Part:
    return replace(part, batch_status=event["status"], counts=_counts(event))


def _ended(part: Part, event: Event) -> Part:
    return replace(
        part,
        status="ended",
        batch_status=event["status"],
        output_file_id=event["output_file_id"],
        error_file_id=event["error_file_id"],
        counts=_counts(event),
        billed=(event["billed"][0], event["billed"][1]),
    )


def _downloaded(part: Part, event: Event) -> Part:
    return replace(part, status="downloaded", results=_results(event))


def _results_lost(part: Part, _event: Event) -> Part:
    """The user gave up what the service does not keep: its rows count as unanswered."""
    return replace(part, results=(), output_file_id="", error_file_id="")


def _dropped(part: Part, _event: Event) -> Part:
    """Its files are damaged, and making them again costs nothing."""
    return replace(part, status="dropped")


def _billed(part: Part, event: Event) -> Part:
    return replace(part, usage=usage_of(event), unconfirmed_usd=event["unconfirmed_usd"])


def _merged(part: Part, event: Event) -> Part:
    outcomes = (event["cleaned"], event["rejected"], event["again"])
    results = _results(event) or part.results
    unconfirmed_usd = event.get("unconfirmed_usd", 0.0)
    bill = {"usage": usage_of(event), "unconfirmed_usd": unconfirmed_usd}
    return replace(part, status="merged", outcomes=outcomes, results=results, **bill)


def _results(event: Event) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(event.get("results", {}).items()))


def _counts(event: Event) -> tuple[int, int, int]:
    counts: Any = event["counts"]
    return (counts[0], counts[1], counts[2])


_RUN_EVENTS: dict[Any, Callable[[State, Event], State]] = {
    "started": _started,
    "preparing": _preparing,
    "planned": _planned,
    "prepared": _prepared,
    "replaced": _replaced,
    "again": _again,
    "canary_asking": _canary_asking,
    "canary_refused": _canary_refused,
    "canary": _canary,
    "queue_limit": _queue_limit,
    "halted": _halted,
    "resumed": _resumed,
    "finalized": _finalized,
}
_PART_EVENTS: dict[Any, Callable[[Part, Event], Part]] = {
    "uploading": _uploading,
    "uploaded": _uploaded,
    "upload_lost": _upload_lost,
    "creating": _creating,
    "not_created": _not_created,
    "created": _created,
    "seen": _seen,
    "ended": _ended,
    "downloaded": _downloaded,
    "results_lost": _results_lost,
    "dropped": _dropped,
    "billed": _billed,
    "merged": _merged,
}
