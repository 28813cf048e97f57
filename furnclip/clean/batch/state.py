"""Where every part stands: a pure fold over the journal's events, and the shape that each must have.

Nothing here reads a clock, a file or the network, so a test replays any crash by cutting the list of
events.

    planned -> uploading -> uploaded -> creating -> open -> ended -> downloaded -> merged
                   ^           ^ | not created, queue full          (any) -> replaced, dropped
                   +-----------+ upload lost

An event that announces a side effect (`uploading`, `creating`, `canary_asking`) is on the disk before the
side effect is tried. So a part found in `creating` after a crash may have a batch: `dispatch` asks the
service first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from furnclip.errors import JournalError, first_problem
from furnclip.journal import Event

Status = Literal[
    "planned", "uploading", "uploaded", "creating", "open", "ended", "downloaded", "merged",
    "replaced", "dropped",
]  # fmt: skip
DAMAGED_HINT = "restore the file from a backup; without it, answers that were paid for would be bought again"
UNSENT: frozenset[Status] = frozenset({"planned", "uploading", "uploaded"})
SENT: frozenset[Status] = frozenset({"creating", "open"})


_Count = Annotated[int, Field(ge=0)]
_Number = Annotated[int, Field(ge=1)]
_Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
_Id = Annotated[str, Field(min_length=1)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Counts = Annotated[list[_Count], Field(min_length=3, max_length=3)]
_Tokens = Annotated[list[_Count], Field(min_length=2, max_length=2)]


@dataclass(frozen=True)
class Usage:
    """Tokens as billed, and their price."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        mine, theirs = vars(self), vars(other)
        return Usage(**{name: mine[name] + theirs[name] for name in mine})


class BatchPart(BaseModel):
    """One file of requests and the batch made of it; what is known from its planning on comes first."""

    model_config = ConfigDict(strict=True, frozen=True)

    number: _Number = Field(alias="part")
    requests: _Number
    size_bytes: _Number
    tokens: _Count
    sha256: _Digest
    index_sha256: _Digest = ""  # 0.1.0 did not note it
    attempt: _Number = 1
    backend: Literal["openai", "live", "local"]
    source: str
    identity: str  # of the recipe that the requests were made by
    status: Status = "planned"
    not_before: _Seconds = 0.0
    results: dict[str, str] = {}  # file name -> SHA-256 of what the service gave
    filename: str = ""
    file_id: str = ""
    uploads: int = 0
    creations: int = 0
    refusals: int = 0  # of a batch; each makes the wait longer
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
    rejected_lines: tuple[Event, ...] = ()  # `custom_id`, `code` and `message` of each

    @property
    def batches(self) -> tuple[str, ...]:
        """Every batch that was ever made of it."""
        return (*self.old_batches, self.batch_id) if self.batch_id else self.old_batches

    @property
    def shown_status(self) -> str:
        """The service's own word while the batch is open."""
        return self.batch_status if self.status == "open" else self.status


@dataclass(frozen=True)
class State:
    """Everything the journal tells."""

    run: str = ""
    key_print: str = ""
    preparing: str = ""
    prepared: Event | None = None
    parts: dict[int, BatchPart] = field(default_factory=dict)
    canaries: dict[str, Event] = field(default_factory=dict)
    unanswered: tuple[Event, ...] = ()  # canaries that were sent and whose reply is not known
    queue_limit: int = 0
    halted: str = ""
    finalized: Event | None = None

    @property
    def next_number(self) -> int:
        return max(self.parts, default=0) + 1

    def with_status(self, *statuses: Status, backend: str = "") -> list[BatchPart]:
        """Parts in any of these states, in order of their number; `backend`: only those made for it."""
        parts = (self.parts[number] for number in sorted(self.parts))
        return [part for part in parts if part.status in statuses and backend in ("", part.backend)]

    @property
    def current_parts(self) -> list[BatchPart]:
        """Parts that were neither dropped nor replaced, in order of their number."""
        return [part for _, part in sorted(self.parts.items()) if part.status not in ("dropped", "replaced")]

    @property
    def unconfirmed_usd(self) -> float:
        """What requests cost if they were billed although their reply was lost."""
        canaries = sum((float(event["cost_usd"]) for event in self.unanswered), 0.0)
        return canaries + sum(part.unconfirmed_usd for part in self.parts.values())

    @property
    def paid(self) -> Usage:
        """The bill so far, from the usage that the service reported."""
        canaries = sum(map(_usage, self.canaries.values()), Usage())
        return sum((part.usage for part in self.parts.values()), canaries)


def apply(state: State, event: Event) -> State:
    """The state after one more event. Raises `JournalError` naming what is wrong with it.

    Users copy and damage files. An event with a wrong field would be a traceback at best, and at worst a
    batch that is bought again, so the first such line stops every command.
    """
    name = event.get("event")
    if not isinstance(name, str):
        raise JournalError("the event has no name", hint=DAMAGED_HINT)
    _check_shape(name, event)
    if name != "started" and not state.run:
        raise JournalError(f"the event `{name}` stands before the start of the run", hint=DAMAGED_HINT)
    if "part" in event and name != "planned" and event["part"] not in state.parts:
        raise JournalError(
            f"the event `{name}` is about part {event['part']}, never planned", hint=DAMAGED_HINT
        )
    if change_part := _PART_EVENTS.get(name):
        part = state.parts[event["part"]]
        return _with_parts(state, part.model_copy(update=change_part(part, event)))
    if change := _RUN_EVENTS.get(name):
        return change(state, event)
    raise JournalError(
        f"the journal holds an event `{name}` that this version does not know",
        hint="if a newer furnclip wrote it, `pip install -U furnclip`; else restore it from a backup",
    )


def _usage(event: Event) -> Usage:
    return Usage(event["prompt_tokens"], event["completion_tokens"], event["cost_usd"])


def _with_parts(state: State, *parts: BatchPart) -> State:
    return replace(state, parts={**state.parts, **{part.number: part for part in parts}})


def _with_new_parts(state: State, planned: list[Event]) -> State:
    after = _with_parts(state, *map(BatchPart.model_validate, planned))
    if len(after.parts) < len(state.parts) + len(planned):
        raise JournalError("a part is planned twice", hint=DAMAGED_HINT)
    return after


def _with_status(state: State, status: Status, *parts: BatchPart, **more: object) -> State:
    return _with_parts(state, *(part.model_copy(update={"status": status, **more}) for part in parts))


def _preparing(state: State, event: Event) -> State:
    """Another catalogue or other settings: what was never sent is not needed any more."""
    if event["fingerprint"] == state.preparing:
        return state
    after = _with_status(state, "dropped", *state.with_status(*UNSENT))
    return replace(after, preparing=event["fingerprint"], prepared=None, finalized=None, halted="")


def _canary_refused(state: State, event: Event) -> State:
    """The last one sent has its reply; an earlier one whose reply was lost stays on the bill."""
    sent = state.unanswered
    is_last = bool(sent) and sent[-1]["recipe"] == event["recipe"]
    return replace(state, unanswered=sent[:-1] if is_last else sent)


# What each event changes in the run ...
_RUN_EVENTS: dict[str, Callable[[State, Event], State]] = {
    "started": lambda state, event: replace(state, run=event["run"], key_print=event["key_print"]),
    "preparing": _preparing,
    "planned": lambda state, event: _with_new_parts(state, [event]),
    "prepared": lambda state, event: replace(state, prepared=event),
    # A part whose batch never ran gives way to others; lines that can never run are rejected.
    "replaced": lambda state, event: _with_status(
        _with_new_parts(state, event["by"]),
        "replaced",
        state.parts[event["part"]],
        rejected_lines=tuple(event["rejected_lines"]),
    ),
    # Its files are damaged, and making them again costs nothing: its rows have to be prepared again.
    "dropped": lambda state, event: replace(
        _with_status(state, "dropped", state.parts[event["part"]]), prepared=None
    ),
    "again": lambda state, event: _with_new_parts(state, event["parts"]),
    "canary_asking": lambda state, event: replace(state, unanswered=(*state.unanswered, event)),
    "canary_refused": _canary_refused,
    "canary": lambda state, event: replace(
        _canary_refused(state, event), canaries={**state.canaries, event["recipe"]: event}
    ),
    "queue_limit": lambda state, event: replace(state, queue_limit=event["limit"]),
    "halted": lambda state, event: replace(state, halted=event["reason"]),
    "resumed": lambda state, _event: replace(state, halted=""),
    "finalized": lambda state, event: replace(state, finalized=event),
}


# ... and in its part: the fields that get another value.
_PART_EVENTS: dict[str, Callable[[BatchPart, Event], dict[str, Any]]] = {
    "uploading": lambda part, event: (
        {"status": "uploading", "filename": event["filename"], "uploads": part.uploads + 1}
    ),
    "uploaded": lambda _part, event: {"status": "uploaded", "file_id": event["file_id"]},
    "upload_lost": lambda part, _event: (
        {"status": "planned", "file_id": "", "filename": "", "batch_id": "", "old_batches": part.batches}
    ),
    "creating": lambda part, _event: {"status": "creating", "creations": part.creations + 1},
    # The service said no: nothing runs, and the uploaded file can be used again.
    "not_created": lambda part, event: {
        "status": "uploaded",
        "not_before": event["not_before"],
        "refusals": part.refusals + 1,
        "old_batches": part.batches,
        "batch_id": "",
        "batch_status": "",
    },
    "created": lambda _part, event: (
        {"status": "open", "batch_id": event["batch_id"], "batch_status": event["status"]}
    ),
    "seen": lambda _part, event: {"batch_status": event["status"], "counts": tuple(event["counts"])},
    "ended": lambda _part, event: {
        "status": "ended",
        "batch_status": event["status"],
        "output_file_id": event["output_file_id"],
        "error_file_id": event["error_file_id"],
        "counts": tuple(event["counts"]),
        "billed": tuple(event["billed"]),
    },
    "downloaded": lambda _part, event: {"status": "downloaded", "results": event.get("results", {})},
    # The user gave up what the service does not keep: its rows count as unanswered.
    "results_lost": lambda _part, _event: {"results": {}, "output_file_id": "", "error_file_id": ""},
    "billed": lambda _part, event: {"usage": _usage(event), "unconfirmed_usd": event["unconfirmed_usd"]},
    "merged": lambda part, event: {
        "status": "merged",
        "outcomes": (event["cleaned"], event["rejected"], event["again"]),
        "results": event.get("results") or part.results,
        "usage": _usage(event),
        "unconfirmed_usd": event.get("unconfirmed_usd", 0.0),
    },
}


class _BadLine(BaseModel):
    custom_id: _Id
    code: str
    message: str


_BILL = {"prompt_tokens": _Count, "completion_tokens": _Count, "cost_usd": _Usd}
_OUTCOMES = {"cleaned": _Count, "rejected": _Count}
_SUMMARY = {"rows": _Count, **_OUTCOMES, "pending": _Count}
_RESULTS: Any = (dict[str, _Digest], {})  # file name -> SHA-256; 0.1.0 did not note it
_LIVE: Any = {"unconfirmed_usd": (_Usd, 0.0)}
_STATUS = {"part": _Number, "status": str, "counts": _Counts}

_FIELDS: dict[str, dict[str, Any]] = {
    "started": {"run": _Id, "at": _Seconds, "key_print": str},
    "preparing": {"fingerprint": _Id},
    "prepared": {
        **dict.fromkeys(("rows", "requests", "rejected"), _Count),
        **dict.fromkeys(("fingerprint", "backend", "identity", "catalogue_sha256"), str),
        "rows_sha256": _Digest,
    },
    "dropped": {"part": _Number},
    "replaced": {"part": _Number, "by": list[BatchPart], "rejected_lines": list[_BadLine]},
    "again": {"parts": list[BatchPart]},
    "canary_asking": {"recipe": _Id, **_BILL},
    "canary_refused": {"recipe": _Id},
    "canary": {"recipe": _Id, **_BILL, "overhead_tokens": _Usd},
    "queue_limit": {"limit": _Number},
    "halted": {"reason": _Id},
    "resumed": {},
    "finalized": {"fingerprint": _Id, **_SUMMARY, "reasons": dict[str, _Count]},
    "uploading": {"part": _Number, "filename": _Id},
    "uploaded": {"part": _Number, "file_id": _Id},
    "upload_lost": {"part": _Number},
    "creating": {"part": _Number, "at": _Seconds},
    "not_created": {"part": _Number, "not_before": _Seconds},
    "created": {"part": _Number, "batch_id": _Id, "status": str},
    "seen": _STATUS,
    "ended": {**_STATUS, "output_file_id": str, "error_file_id": str, "billed": _Tokens},
    "downloaded": {"part": _Number, "results": _RESULTS},
    "results_lost": {"part": _Number},
    "billed": {"part": _Number, **_BILL, "unconfirmed_usd": _Usd},
    "merged": {"part": _Number, **_OUTCOMES, "again": _Count, **_BILL, **_LIVE, "results": _RESULTS},
}


@cache
def _shape(name: str) -> type[BaseModel]:
    fields = {key: kind if isinstance(kind, tuple) else (kind, ...) for key, kind in _FIELDS[name].items()}
    return create_model(name, **fields)  # type: ignore[call-overload,no-any-return]


def _check_shape(name: str, event: Event) -> None:
    if name not in _FIELDS and name != "planned":
        return  # `apply` does not know it either
    try:
        (BatchPart if name == "planned" else _shape(name)).model_validate(event, strict=True)
    except ValidationError as error:
        where, problem = first_problem(error)
        message = f"`{where}` of the event `{name}`: {problem.lower()}"
        raise JournalError(message, hint=DAMAGED_HINT) from None
