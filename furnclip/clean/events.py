"""The shape of every event in `work/clean/journal.jsonl`, checked when the journal is replayed.

Users copy and damage files. An event with a wrong field would be a traceback at best, and at worst a batch
that is bought again, so the first such line stops every command. Fields that are not named here are
allowed: a later version may write more.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from furnclip.errors import JournalError
from furnclip.journal import Event

_Count = Annotated[int, Field(ge=0)]
_Number = Annotated[int, Field(ge=1)]
_Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
_Id = Annotated[str, Field(min_length=1)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Counts = Annotated[list[_Count], Field(min_length=3, max_length=3)]
_Tokens = Annotated[list[_Count], Field(min_length=2, max_length=2)]
_SHAPE = ConfigDict(strict=True, extra="allow")


class _Planned(BaseModel):
    """What is known about a part when its file is complete."""

    model_config = _SHAPE

    part: _Number
    requests: _Number
    size_bytes: _Number
    tokens: _Count
    sha256: _Digest
    index_sha256: _Digest | None = None
    attempt: _Number = 1
    backend: Literal["openai", "live", "local"]
    source: str
    identity: str
    status: Literal["planned", "downloaded"] = "planned"
    not_before: _Seconds = 0


class _BadLine(BaseModel):
    model_config = _SHAPE

    custom_id: _Id
    code: str
    message: str


_BILL = {"prompt_tokens": _Count, "completion_tokens": _Count, "cost_usd": _Usd}
_SUMMARY = {"rows": _Count, "cleaned": _Count, "rejected": _Count, "pending": _Count}
_RESULTS: Any = (dict[str, _Digest], {})  # file name -> SHA-256; 0.1.0 did not note it

_FIELDS: dict[str, dict[str, Any]] = {
    "started": {"run": _Id, "at": _Seconds, "key_print": str},
    "preparing": {"fingerprint": _Id},
    "prepared": {
        **dict.fromkeys(("rows", "requests", "rejected"), _Count),
        **dict.fromkeys(("fingerprint", "backend", "identity", "catalogue_sha256"), str),
        "rows_sha256": _Digest,
    },
    "dropped": {"part": _Number},
    "replaced": {"part": _Number, "by": list[_Planned], "rejected_lines": list[_BadLine]},
    "again": {"parts": list[_Planned]},
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
    "seen": {"part": _Number, "status": str, "counts": _Counts},
    "ended": {
        "part": _Number,
        **dict.fromkeys(("status", "output_file_id", "error_file_id"), str),
        "counts": _Counts,
        "billed": _Tokens,
    },
    "downloaded": {"part": _Number, "results": _RESULTS},
    "results_lost": {"part": _Number},
    "billed": {"part": _Number, **_BILL, "unconfirmed_usd": _Usd},
    "merged": {
        "part": _Number,
        **dict.fromkeys(("cleaned", "rejected", "again"), _Count),
        **_BILL,
        "unconfirmed_usd": (_Usd, 0.0),
        "results": _RESULTS,
    },
}


@cache
def _shape(name: str) -> type[BaseModel]:
    if name == "planned":
        return _Planned
    wanted = {
        field: kind if isinstance(kind, tuple) else (kind, ...) for field, kind in _FIELDS[name].items()
    }
    return create_model(name, __config__=_SHAPE, **wanted)  # type: ignore[call-overload,no-any-return]


def check_event(event: Event) -> None:
    """Raises `JournalError` naming the field that is missing or wrong; unknown events are left to `state`."""
    name = event.get("event")
    if not isinstance(name, str):
        raise JournalError("the event has no name", hint="")
    if name != "planned" and name not in _FIELDS:
        return
    try:
        _shape(name).model_validate(event)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise JournalError(f"`{field}` of the event `{name}`: {first['msg'].lower()}", hint="") from None
