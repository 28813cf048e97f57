"""Result lines -> what became of each request.

In: output and error files as the service wrote them, in any order, with lines missing, doubled or damaged.
Out: one `Outcome` a request: cleaned, rejected for good, or to be retried. A status of 200 is no
success yet: refusals, cut and empty answers come with it too. Which of the two files a line stands in
does not matter; the files are the truth, not the service's counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic_core import from_json

from furnclip.clean.prompt import BadAnswerError, Vocabulary, check_answer
from furnclip.clean.state import Part, State
from furnclip.clean.workspace import Workspace
from furnclip.console import printable, redact

Kind = Literal["cleaned", "rejected", "again"]
Verdict = tuple[Kind, tuple[str, ...], str, str]  # kind, values, reason, detail
_RETRYABLE_STATUS = frozenset({0, 408, 409, 425, 429})
_DETAIL_CHARACTERS = 200


class Outcome(NamedTuple):
    """What became of one request. `values` are `prompt.FIELDS` when it was cleaned."""

    kind: Kind
    values: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""
    source: str = ""
    attempt: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def settled(self, max_attempts: int) -> Outcome:
        """Itself, or a rejection when it was asked often enough."""
        if self.kind == "again" and self.attempt >= max_attempts:
            return self._replace(kind="rejected")
        return self


_MISSING = Outcome("again", reason="no-answer", detail="the service returned no line for this row")


def part_outcomes(workspace: Workspace, part: Part, vocabulary: Vocabulary) -> dict[str, Outcome]:
    """The outcome of every request of a part; the first good line counts, others never replace it."""
    missing = _MISSING._replace(attempt=part.attempt)
    outcomes = dict.fromkeys(workspace.read_ids(part.number), missing)
    for path in (
        workspace.output(part.number),
        workspace.errors(part.number),
        workspace.live(part.number),
    ):
        for line in read_lines(path):
            custom_id = line.get("custom_id")
            if not isinstance(custom_id, str) or custom_id not in outcomes or "asked_usd" in line:
                continue
            if outcomes[custom_id].kind == "cleaned":
                continue
            found = classify(line, vocabulary, source=part.source, attempt=part.attempt)
            if found.kind != "again" or outcomes[custom_id].kind == "again":
                outcomes[custom_id] = found
    return outcomes


def collect(workspace: Workspace, state: State, vocabulary: Vocabulary) -> dict[str, Outcome]:
    """The outcome of every request that was ever answered, later attempts over earlier ones."""
    outcomes: dict[str, Outcome] = {}
    for part in state.with_status("downloaded", "merged", "replaced"):
        for custom_id, code, message in part.rejected_lines:
            outcomes[custom_id] = Outcome("rejected", reason="request-invalid", detail=f"{code}: {message}")
        if part.status == "replaced":
            continue
        for custom_id, found in part_outcomes(workspace, part, vocabulary).items():
            before = outcomes.get(custom_id)
            if before is None or before.kind == "again":
                outcomes[custom_id] = found
    return outcomes


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a result file. Lines are split at b"\\n" only: U+2028 is legal inside JSON text."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                value = _parsed(line)
            except (ValueError, RecursionError):
                continue  # the row counts as unanswered and is retried
            if isinstance(value, dict):
                yield value


def _parsed(line: bytes) -> Any:
    try:
        return from_json(line, cache_strings="keys")  # twice as fast
    except ValueError:
        # forgives what a paid answer may well have: half a surrogate pair, a byte order mark, a bad byte
        return json.loads(line.decode("utf-8-sig", "replace"), strict=False)


def is_reply_lost(line: dict[str, Any]) -> bool:
    """Whether a live request may have run, and been billed, although no reply came."""
    status = _object(line.get("response")).get("status_code")
    return not isinstance(status, int) or status in (0, 408) or (status >= 500 and status != 503)


def classify(line: dict[str, Any], vocabulary: Vocabulary, *, source: str = "", attempt: int = 1) -> Outcome:
    """What one result line means, whichever file it came from."""
    response = _object(line.get("response"))
    status, body = response.get("status_code"), response.get("body")
    usage = (0, 0)
    if line.get("error") or not response:
        verdict = _failed(line.get("error"))
    elif status == 200 and isinstance(body, dict):
        verdict = _judged(*_reply(body), vocabulary)
        usage = usage_of(body)
    else:
        verdict = _refused_by_http(status if isinstance(status, int) else 0, body)
    return Outcome(*verdict, source, attempt, *usage)


def _failed(error: object) -> Verdict:
    """A request that was not executed, or not to its end."""
    code = str(_object(error).get("code") or "")
    message = str(_object(error).get("message") or "")
    reason = {"batch_expired": "expired", "batch_cancelled": "cancelled"}.get(code, "service-error")
    return "again", (), reason, _short(f"{code}: {message}")


def _judged(text: str, refusal: str, finish: str, vocabulary: Vocabulary) -> Verdict:
    if refusal:
        return "rejected", (), "refused", _short(refusal)
    if finish == "content_filter":
        return "rejected", (), "content-filter", "the service's filter stopped the answer"
    try:
        answer = check_answer(text, vocabulary, in_thoughts=finish != "length")
    except BadAnswerError as error:
        if finish == "length":
            return "again", (), "cut-off", "the answer reached the token cap"
        if not text.strip():
            return "again", (), "empty-answer", "the model answered nothing"
        return "again", (), "invalid-answer", _short(str(error))
    return "cleaned", answer.values(), "", ""


def _reply(body: dict[str, Any]) -> tuple[str, str, str]:
    """(text, refusal, finish reason) of a chat completion or a response."""
    if "output" in body:
        return _responses_reply(body)
    choices = body.get("choices")
    choice = _object(choices[0] if isinstance(choices, list) and choices else None)
    message = _object(choice.get("message"))
    text = _text(message.get("content")) or _text(choice.get("text"))
    calls = message.get("tool_calls")
    calls = [_object(call).get("function") for call in calls] if isinstance(calls, list) else []
    for call in (*calls, message.get("function_call")):
        text += "\n" + _text(_object(call).get("arguments"))
    if not text.strip():  # some servers file the whole reply under the train of thought
        text = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    return text, _text(message.get("refusal")), str(choice.get("finish_reason") or "")


def _responses_reply(body: dict[str, Any]) -> tuple[str, str, str]:
    text = refusal = ""
    for item in map(_object, body["output"] if isinstance(body["output"], list) else []):
        text += _text(item.get("arguments"))  # of a tool call
        pieces = item.get("content")
        for piece in map(_object, pieces if isinstance(pieces, list) else []):
            text += _text(piece.get("text")) if piece.get("type") in ("output_text", "text") else ""
            refusal += _text(piece.get("refusal"))
    reason = str(_object(body.get("incomplete_details")).get("reason") or "")
    return text, refusal, {"max_output_tokens": "length"}.get(reason, reason)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """Text as servers give it: plain, in a list of pieces, or as JSON that was parsed already."""
    if isinstance(value, list) and all(isinstance(piece, dict) and "text" in piece for piece in value):
        return "".join(_text(piece["text"]) for piece in value)
    if isinstance(value, dict | list):
        return json.dumps(value)
    return value if isinstance(value, str) else ""


def _refused_by_http(status: int, body: Any) -> Verdict:
    error = _object(_object(body).get("error"))
    code = str(error.get("code") or error.get("type") or "")
    message = str(error.get("message") or "")
    # An internal name like `gpt-5-nano-batch` is the service's own slip and passes by itself.
    transient = code == "model_not_found" and "-batch" in message
    if status in _RETRYABLE_STATUS or status >= 500 or transient:
        return "again", (), "service-error", _short(f"HTTP {status} {code}: {message}")
    return "rejected", (), "request-refused", _short(f"HTTP {status} {code}: {message}")


def usage_of(body: dict[str, Any]) -> tuple[int, int]:
    """(prompt, completion) tokens as billed; hidden reasoning is part of the completion."""
    usage = _object(body.get("usage"))
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    completion = usage.get("completion_tokens", usage.get("output_tokens"))
    return (
        prompt if isinstance(prompt, int) else 0,
        completion if isinstance(completion, int) else 0,
    )


def usage_of_line(line: dict[str, Any]) -> tuple[int, int]:
    """(prompt, completion) tokens of a result line."""
    return usage_of(_object(_object(line.get("response")).get("body")))


def _short(text: str) -> str:
    return printable(redact(text.strip()))[:_DETAIL_CHARACTERS]
