"""Result lines -> what became of each request, and what it cost.

Output and error files hold lines in any order, some missing, doubled or damaged. A status of 200 is no
success yet: refusals, cut and empty answers come with it too. The files are the truth, not the service's
counts, and which of the two a line stands in does not matter.

What is not sent yet is estimated: an image by the patch rule, text by its length, answers by the model table;
then by what the canary took, then by the parts that came back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic_core import from_json

from furnclip.clean.batch.requests import VisionModel, find_model
from furnclip.clean.batch.state import UNSENT, BatchPart, State, Usage
from furnclip.clean.prompt import AllowedWords, BadAnswerError, check_answer
from furnclip.clean.workspace import CleaningLedger, Workspace
from furnclip.config import CleaningConfig
from furnclip.console import printable, redact
from furnclip.errors import ServiceError
from furnclip.journal import Event, sha256_of

_RETRYABLE_STATUS = frozenset({0, 408, 409, 425, 429})
_DETAIL_CHARACTERS = 200
_SAME_ERROR_SHARE = 0.2
_SAME_ERROR_ROWS = 10
_MAX_WAIT_S = 900.0


class Outcome(NamedTuple):
    """What became of one request. `values` are `prompt.FIELDS` when it was cleaned."""

    kind: Literal["cleaned", "rejected", "again"]
    values: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()
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


def part_outcomes(workspace: Workspace, part: BatchPart, vocabulary: AllowedWords) -> dict[str, Outcome]:
    """The outcome of every request of a part; the first good line counts, others never replace it."""
    detail = "the service returned no line for this row"
    missing = Outcome("again", reason="no-answer", detail=detail, attempt=part.attempt)
    outcomes = {request.custom_id: missing for request in workspace.read_index(part.number)}
    for line in chain.from_iterable(map(read_lines, workspace.results(part.number))):
        custom_id = str(line.get("custom_id"))
        before = outcomes.get(custom_id)
        if before is None or before.kind == "cleaned" or "asked_usd" in line:
            continue
        found = classify(line, vocabulary)
        if found.kind != "again" or before.kind == "again":
            outcomes[custom_id] = found._replace(source=part.source, attempt=part.attempt)
    return outcomes


def collect(workspace: Workspace, state: State, vocabulary: AllowedWords) -> dict[str, Outcome]:
    """The outcome of every request that was ever answered, later attempts over earlier ones."""
    outcomes: dict[str, Outcome] = {}
    for part in state.with_status("downloaded", "merged", "replaced"):
        for line in part.rejected_lines:
            detail = f"{line['code']}: {line['message']}"
            outcomes[line["custom_id"]] = Outcome("rejected", reason="request-invalid", detail=detail)
        if part.status == "replaced":
            continue
        for custom_id, found in part_outcomes(workspace, part, vocabulary).items():
            if custom_id not in outcomes or outcomes[custom_id].kind == "again":
                outcomes[custom_id] = found
    return outcomes


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a result file. Lines are split at b"\\n" only: U+2028 is legal inside JSON text."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                value = from_json(line, cache_strings="keys")  # twice as fast as `json`
            except ValueError:
                # a paid answer may well have half a surrogate pair, a byte order mark or a bad byte
                try:
                    value = json.loads(line.decode("utf-8-sig", "replace"), strict=False)
                except (ValueError, RecursionError):
                    continue  # the row counts as unanswered and is retried
            if isinstance(value, dict):
                yield value


def classify(line: dict[str, Any], vocabulary: AllowedWords) -> Outcome:
    response, failure = _object(line.get("response")), _object(line.get("error"))
    status, body = response.get("status_code"), response.get("body")
    if line.get("error") or not response:  # a request that was not executed, or not to its end
        code, message = (str(failure.get(name) or "") for name in ("code", "message"))
        reason = {"batch_expired": "expired", "batch_cancelled": "cancelled"}.get(code, "service-error")
        return Outcome("again", reason=reason, detail=_short(f"{code}: {message}"))
    if status == 200 and isinstance(body, dict):
        prompt, completion = usage_of(body)
        found = _answer_outcome(*_reply(body), vocabulary)
        return found._replace(prompt_tokens=prompt, completion_tokens=completion)
    status = status if isinstance(status, int) else 0
    error = _object(_object(body).get("error"))
    code, message = str(error.get("code") or error.get("type") or ""), str(error.get("message") or "")
    detail = _short(f"HTTP {status} {code}: {message}")
    # An internal name like `gpt-5-nano-batch` is the service's own slip and passes by itself.
    transient = code == "model_not_found" and "-batch" in message
    if status in _RETRYABLE_STATUS or status >= 500 or transient:
        return Outcome("again", reason="service-error", detail=detail)
    return Outcome("rejected", reason="request-refused", detail=detail)


def _answer_outcome(text: str, refusal: str, finish: str, vocabulary: AllowedWords) -> Outcome:
    if refusal:
        return Outcome("rejected", reason="refused", detail=_short(refusal))
    if finish == "content_filter":
        detail = "the service's filter stopped the answer"
        return Outcome("rejected", reason="content-filter", detail=detail)
    try:
        answer = check_answer(text, vocabulary, in_thoughts=finish != "length")
    except BadAnswerError as error:
        reason, detail = "invalid-answer", _short(str(error))
        if finish == "length":
            reason, detail = "cut-off", "the answer reached the token cap"
        elif not text.strip():
            reason, detail = "empty-answer", "the model answered nothing"
        return Outcome("again", reason=reason, detail=detail)
    return Outcome("cleaned", values=answer.values(), queries=answer.queries)


def _reply(body: dict[str, Any]) -> tuple[str, str, str]:
    """(text, refusal, finish reason) of a chat completion or a response."""
    if "output" in body:
        text = refusal = ""
        for item in map(_object, _list(body["output"])):
            text += _text(item.get("arguments"))  # of a tool call
            for piece in map(_object, _list(item.get("content"))):
                text += _text(piece.get("text")) if piece.get("type") in ("output_text", "text") else ""
                refusal += _text(piece.get("refusal"))
        reason = str(_object(body.get("incomplete_details")).get("reason") or "")
        return text, refusal, {"max_output_tokens": "length"}.get(reason, reason)
    choice = _object(next(iter(_list(body.get("choices"))), None))
    message = _object(choice.get("message"))
    text = _text(message.get("content")) or _text(choice.get("text"))
    calls = [_object(call).get("function") for call in _list(message.get("tool_calls"))]
    for call in (*calls, message.get("function_call")):
        text += "\n" + _text(_object(call).get("arguments"))
    if not text.strip():  # some servers file the whole reply under the train of thought
        text = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    return text, _text(message.get("refusal")), str(choice.get("finish_reason") or "")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    """Text as servers give it: plain, in a list of pieces, or as JSON that was parsed already."""
    if isinstance(value, list) and all(isinstance(piece, dict) and "text" in piece for piece in value):
        return "".join(_text(piece["text"]) for piece in value)
    if isinstance(value, dict | list):
        return json.dumps(value)
    return value if isinstance(value, str) else ""


def _short(text: str) -> str:
    return printable(redact(text.strip()))[:_DETAIL_CHARACTERS]


def usage_of(body: dict[str, Any]) -> tuple[int, int]:
    """(prompt, completion) tokens as billed; hidden reasoning is part of the completion."""
    usage = _object(body.get("usage"))
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    completion = usage.get("completion_tokens", usage.get("output_tokens"))
    return (prompt if isinstance(prompt, int) else 0, completion if isinstance(completion, int) else 0)


def is_reply_lost(line: dict[str, Any]) -> bool:
    """Whether a live request may have run, and been billed, although no reply came."""
    status = _object(line.get("response")).get("status_code")
    return not isinstance(status, int) or status in (0, 408) or (status >= 500 and status != 503)


class Calibration(NamedTuple):
    """The best knowledge of the tokens that a request takes besides its image and title."""

    overhead_tokens: float
    answer_tokens: float
    basis: str  # "table", "canary" or "results"

    def prompt_tokens(self, part: BatchPart) -> int:
        return round(part.tokens + part.requests * self.overhead_tokens)


class Estimate(NamedTuple):
    """Expected tokens and price of some requests."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    basis: str


def calibrate(ledger: CleaningLedger) -> Calibration:
    state, recipe = ledger.state, ledger.recipe
    overhead, answer, basis = float(recipe.overhead_tokens), float(recipe.answer_tokens), "table"
    if canary := state.canaries.get(recipe.identity):
        overhead, answer, basis = canary["overhead_tokens"], canary["completion_tokens"], "canary"
    answered = prompt = completion = 0.0
    for part in state.with_status("merged"):
        total, completed, _ = part.counts
        count = completed if total else part.requests  # the service ran and billed so many
        if count and part.identity == recipe.identity and part.usage.prompt_tokens:
            answered += count
            prompt += part.usage.prompt_tokens - part.tokens * count / part.requests
            completion += part.usage.completion_tokens
    if answered:
        overhead, answer, basis = prompt / answered, completion / answered, "results"
    return Calibration(max(0.0, overhead), answer, basis)


def estimate(parts: Sequence[BatchPart], ledger: CleaningLedger) -> Estimate:
    """What these parts will take together."""
    calibration, requests = calibrate(ledger), sum(part.requests for part in parts)
    prompt = sum(map(calibration.prompt_tokens, parts))
    completion = round(requests * calibration.answer_tokens)
    is_batch = ledger.config.clean.backend == "openai"
    cost_usd = ledger.recipe.model.cost_usd(prompt, completion, batch=is_batch)
    return Estimate(requests, prompt, completion, cost_usd, calibration.basis)


def backoff_s(wait_s: float, refusals: int) -> float:
    """`wait_s`, doubled with every refusal after the first, up to a quarter of an hour."""
    return min(_MAX_WAIT_S, wait_s * 2.0 ** max(0, refusals - 1))


def model_of(part: BatchPart, clean: CleaningConfig) -> VisionModel:
    """The model that a part was made for, which the settings may have left since."""
    return find_model(clean.model_copy(update={"model": part.source.partition(":")[2], "effort": ""}))


def live_bill(path: Path, model: VisionModel) -> tuple[Usage, float]:
    """What the requests in a file of live answers cost, and what those cost perhaps whose reply was lost."""
    usage, lost_usd = Usage(), 0.0
    asked: dict[str, float] = {}  # sent, with their expected price
    for line in read_lines(path):
        custom_id = str(line.get("custom_id"))
        before_usd = asked.pop(custom_id, 0.0)
        if "asked_usd" in line:
            asked_usd = line["asked_usd"] if isinstance(line["asked_usd"], float) else 0.0
            if asked_usd:  # 0: it turned out not to have been sent
                asked[custom_id] = asked_usd
                lost_usd += before_usd
        elif is_reply_lost(line):
            lost_usd += before_usd
        else:
            body = _object(_object(line.get("response")).get("body"))
            usage += model.usage(usage_of(body), batch=False)
    return usage, lost_usd + sum(asked.values())


def merge(ledger: CleaningLedger, part: BatchPart) -> None:
    """Note the answers of a part and their price; of an interrupted live run, of those that came.

    Stops sending when many of its rows were refused for one reason.
    """
    model = model_of(part, ledger.config.clean)
    outcomes = part_outcomes(ledger.workspace, part, ledger.recipe.vocabulary)
    more: Event = {}
    if part.backend == "live":
        path = ledger.workspace.live(part.number)
        usage, unconfirmed_usd = live_bill(path, model)
        more = {"unconfirmed_usd": unconfirmed_usd, "results": {path.name: sha256_of(path)}}
    elif any(part.billed):
        usage = model.usage(part.billed, batch=True)
    else:  # the batch does not report it: the lines are added up
        prompt = sum(outcome.prompt_tokens for outcome in outcomes.values())
        completion = sum(outcome.completion_tokens for outcome in outcomes.values())
        usage = model.usage((prompt, completion), batch=True)
    kinds = Counter[str](outcome.kind for outcome in outcomes.values())
    counts = {kind: kinds[kind] for kind in ("cleaned", "rejected", "again")}
    ledger.record("merged", part=part.number, **counts, **vars(usage), **more)
    refused = (outcome.detail for outcome in outcomes.values() if outcome.reason == "request-refused")
    for detail, count in Counter(detail.split(":")[0] for detail in refused).most_common(1):
        halt_on_same_error(ledger, part, count, f"requests of part {part.number} were refused ({detail})")


def halt_on_same_error(ledger: CleaningLedger, part: BatchPart, count: int, what: str) -> None:
    """Stop sending where so large a share of a part failed alike that the next would fare no better."""
    if count >= _SAME_ERROR_ROWS and count > _SAME_ERROR_SHARE * part.requests:
        ledger.record("halted", reason=f"{count} of {part.requests} {what}")


def stop_if_halted(ledger: CleaningLedger) -> None:
    """Raises `ServiceError` where sending was stopped and the user has not said to go on."""
    if ledger.state.halted:
        rows = sum(part.requests for part in ledger.state.with_status(*UNSENT))
        hint = f"fix the cause, then `furnclip clean run --ignore-errors` sends the rest ({rows} rows wait)"
        raise ServiceError(f"sending stopped: {ledger.state.halted}", hint=hint)
