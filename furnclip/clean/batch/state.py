"""Where every part stands: a pure fold over the journal's events, and the shape that each must have.

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
_Counts = Annotated[tuple[_Count, _Count, _Count], Field(strict=False)]  # a list in JSON
_Tokens = Annotated[tuple[_Count, _Count], Field(strict=False)]


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
        parts = (part for _, part in sorted(self.parts.items()))
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
    if name not in _RUN_EVENTS and name not in _PART_EVENTS:
        hint = "if a newer furnclip wrote it, `pip install -U furnclip`; else restore it from a backup"
        raise JournalError(f"the journal holds an event `{name}` that this version does not know", hint=hint)
    try:
        facts = vars(_shape(name).model_validate(event))
    except ValidationError as error:
        where, problem = first_problem(error)
        message = f"`{where}` of the event `{name}`: {problem.lower()}"
        raise JournalError(message, hint=DAMAGED_HINT) from None
    if name != "started" and not state.run:
        raise JournalError(f"the event `{name}` stands before the start of the run", hint=DAMAGED_HINT)
    if "part" in event and name != "planned" and event["part"] not in state.parts:
        raise JournalError(
            f"the event `{name}` is about part {event['part']}, never planned", hint=DAMAGED_HINT
        )
    if name in _RUN_EVENTS:
        return _RUN_EVENTS[name][1](state, event)
    _, status, change = _PART_EVENTS[name]
    part = state.parts[event["part"]]
    same = {field: value for field, value in facts.items() if field in BatchPart.model_fields}
    more = change(part, event) if change else {}
    return _with_parts(state, part.model_copy(update={**same, "status": status or part.status, **more}))


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


class _BadLine(BaseModel):
    custom_id: _Id
    code: str
    message: str


_BILL = {"prompt_tokens": _Count, "completion_tokens": _Count, "cost_usd": _Usd}
_OUTCOMES = {"cleaned": _Count, "rejected": _Count}
_RESULTS: Any = (dict[str, _Digest], {})  # file name -> SHA-256; 0.1.0 did not note it
_SEEN: Any = {"batch_status": (str, Field(alias="status")), "counts": _Counts}

# Events about the run: their fields, and what they change.
_RUN_EVENTS: dict[str, tuple[dict[str, Any], Callable[[State, Event], State]]] = {
    "started": (
        {"run": _Id, "at": _Seconds, "key_print": str},
        lambda state, event: replace(state, run=event["run"], key_print=event["key_print"]),
    ),
    "preparing": ({"fingerprint": _Id}, _preparing),
    "planned": ({}, lambda state, event: _with_new_parts(state, [event])),  # the shape of a `BatchPart`
    "prepared": (
        {
            **dict.fromkeys(("rows", "requests", "rejected"), _Count),
            **dict.fromkeys(("fingerprint", "backend", "identity", "catalogue_sha256"), str),
            "rows_sha256": _Digest,
        },
        lambda state, event: replace(state, prepared=event),
    ),
    # A part whose batch never ran gives way to others; lines that can never run are rejected.
    "replaced": (
        {"part": _Number, "by": list[BatchPart], "rejected_lines": list[_BadLine]},
        lambda state, event: _with_status(
            _with_new_parts(state, event["by"]),
            "replaced",
            state.parts[event["part"]],
            rejected_lines=tuple(event["rejected_lines"]),
        ),
    ),
    # Its files are damaged, and making them again costs nothing: its rows have to be prepared again.
    "dropped": (
        {"part": _Number},
        lambda state, event: replace(
            _with_status(state, "dropped", state.parts[event["part"]]), prepared=None
        ),
    ),
    "again": ({"parts": list[BatchPart]}, lambda state, event: _with_new_parts(state, event["parts"])),
    "canary_asking": (
        {"recipe": _Id, **_BILL},
        lambda state, event: replace(state, unanswered=(*state.unanswered, event)),
    ),
    "canary_refused": ({"recipe": _Id}, _canary_refused),
    "canary": (
        {"recipe": _Id, **_BILL, "overhead_tokens": _Usd},
        lambda state, event: replace(
            _canary_refused(state, event), canaries={**state.canaries, event["recipe"]: event}
        ),
    ),
    "queue_limit": ({"limit": _Number}, lambda state, event: replace(state, queue_limit=event["limit"])),
    "halted": ({"reason": _Id}, lambda state, event: replace(state, halted=event["reason"])),
    "resumed": ({}, lambda state, _event: replace(state, halted="")),
    "finalized": (
        {"fingerprint": _Id, "rows": _Count, **_OUTCOMES, "pending": _Count, "reasons": dict[str, _Count]},
        lambda state, event: replace(state, finalized=event),
    ),
}

# Events about a part: their fields, of which the part takes those that it has; its status after them (None:
# as before); and what else changes in it.
_PART_EVENTS: dict[
    str, tuple[dict[str, Any], Status | None, Callable[[BatchPart, Event], dict[str, Any]] | None]
] = {
    "uploading": ({"filename": _Id}, "uploading", lambda part, _: {"uploads": part.uploads + 1}),
    "uploaded": ({"file_id": _Id}, "uploaded", None),
    "upload_lost": (
        {},
        "planned",
        lambda part, _: {"file_id": "", "filename": "", "batch_id": "", "old_batches": part.batches},
    ),
    "creating": ({"at": _Seconds}, "creating", lambda part, _: {"creations": part.creations + 1}),
    # The service said no: nothing runs, and the uploaded file can be used again.
    "not_created": (
        {"not_before": _Seconds},
        "uploaded",
        lambda part, _: {
            "refusals": part.refusals + 1,
            "old_batches": part.batches,
            "batch_id": "",
            "batch_status": "",
        },
    ),
    "created": ({"batch_id": _Id, "batch_status": _SEEN["batch_status"]}, "open", None),
    "seen": (_SEEN, None, None),
    "ended": ({**_SEEN, "output_file_id": str, "error_file_id": str, "billed": _Tokens}, "ended", None),
    "downloaded": ({"results": _RESULTS}, "downloaded", None),
    # The user gave up what the service does not keep: its rows count as unanswered.
    "results_lost": ({}, None, lambda _part, _: {"results": {}, "output_file_id": "", "error_file_id": ""}),
    "billed": ({**_BILL, "unconfirmed_usd": _Usd}, None, lambda _part, event: {"usage": _usage(event)}),
    "merged": (
        {**_OUTCOMES, "again": _Count, **_BILL, "unconfirmed_usd": (_Usd, 0.0), "results": _RESULTS},
        "merged",
        lambda part, event: {
            "outcomes": (event["cleaned"], event["rejected"], event["again"]),
            "results": event.get("results") or part.results,
            "usage": _usage(event),
        },
    ),
}


@cache
def _shape(name: str) -> type[BaseModel]:
    """What the event must look like."""
    if name == "planned":
        return BatchPart
    fields = _RUN_EVENTS[name][0] if name in _RUN_EVENTS else {"part": _Number, **_PART_EVENTS[name][0]}
    typed = {key: kind if isinstance(kind, tuple) else (kind, ...) for key, kind in fields.items()}
    return create_model(name, __config__=ConfigDict(strict=True), **typed)  # type: ignore[call-overload,no-any-return]
