"""Parts made of other parts: rows to be retried, parts without their bad lines, parts cut smaller.

In: parts on the disk and the outcomes so far. Out: new parts, and one journal event that brings them
into being together, so that a kill leaves either the old parts or the new ones.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from furnclip.clean.answers import Outcome, collect
from furnclip.clean.ledger import Ledger
from furnclip.clean.openai import LineError
from furnclip.clean.parts import Limits, Line, write_parts
from furnclip.clean.plan import part_limits
from furnclip.clean.requests import Recipe, with_cap
from furnclip.clean.state import Part
from furnclip.clean.workspace import Request, is_intact
from furnclip.errors import InputError
from furnclip.journal import Event

CAP_CEILING_TOKENS = 8000
MAX_WAIT_S = 900.0


def backoff_s(wait_s: float, strikes: int) -> float:
    """`wait_s`, doubled with every strike after the first, up to a quarter of an hour."""
    return min(MAX_WAIT_S, wait_s * 2.0 ** max(0, strikes - 1))


def ask_again(ledger: Ledger, recipe: Recipe) -> int:
    """Plan the rows that have to be retried; how many there are."""
    outcomes = collect(ledger.workspace, ledger.state, recipe.vocabulary)
    wanted = {entry.custom_id for entry in ledger.workspace.read_rows() if entry.custom_id}
    by_attempt: dict[int, dict[str, Outcome]] = defaultdict(dict)
    for custom_id in wanted:
        outcome = outcomes.get(custom_id)
        if outcome is not None and outcome.settled(ledger.config.clean.max_attempts).kind == "again":
            by_attempt[outcome.attempt][custom_id] = outcome
    planned: list[Event] = []
    for attempt, failed in sorted(by_attempt.items()):
        planned += _attempt_parts(ledger, recipe, failed, attempt=attempt + 1, before=planned)
    if planned:
        ledger.record("again", parts=planned)
    return sum(facts["requests"] for facts in planned)


def _attempt_parts(
    ledger: Ledger, recipe: Recipe, failed: Mapping[str, Outcome], *, attempt: int, before: Sequence[Event]
) -> list[Event]:
    clean = ledger.config.clean
    at_once = all(outcome.reason != "service-error" for outcome in failed.values())
    wait_s = 0.0 if at_once else backoff_s(clean.retry_wait_s, attempt - 1)
    shared = {
        "attempt": attempt,
        "backend": clean.backend,
        "source": f"{clean.backend}:{clean.model}",
        "identity": recipe.identity,
        "not_before": time.time() + wait_s,
    }
    first = max([ledger.state.next_number - 1, *(facts["part"] for facts in before)]) + 1
    lines = _lines_again(ledger, failed)
    parts = write_parts(ledger.workspace, lines, part_limits(clean, recipe), first_number=first)
    return [{**facts, **shared} for facts in parts]


def _lines_again(ledger: Ledger, failed: Mapping[str, Outcome]) -> Iterator[Line]:
    """The requests as they were sent last, in that order; with a higher cap where the answer was cut."""
    last: dict[str, tuple[int, Request]] = {}
    for part in ledger.state.with_status("merged"):
        for request in ledger.workspace.read_index(part.number):
            if request.custom_id in failed:
                last[request.custom_id] = (part.number, request)
    by_part: dict[int, list[Request]] = defaultdict(list)
    for number, request in last.values():
        by_part[number].append(request)
    for number, requests in sorted(by_part.items()):
        path = ledger.workspace.part(number)
        if not is_intact(path, ledger.state.parts[number].sha256):
            raise InputError(
                f"`{path}` is missing or damaged, and {len(requests)} of its rows have to be retried",
                hint="restore it from a backup, or write what is there: `furnclip clean finalize --partial`",
            )
        for request, content in ledger.workspace.read_requests(
            number, sorted(requests, key=lambda request: request.offset)
        ):
            cut = failed[request.custom_id].reason in ("cut-off", "empty-answer")
            yield _line(request, with_cap(content, 2, CAP_CEILING_TOKENS) if cut else content)


def without_bad_lines(ledger: Ledger, part: Part, errors: Sequence[LineError]) -> None:
    """Replace a part that failed validation by one without the lines that the service named."""
    bad = {error.line - 1: error for error in reversed(errors) if error.line > 0}
    requests = list(ledger.workspace.read_index(part.number))
    good = [request for place, request in enumerate(requests) if place not in bad]
    rejected = [
        {"custom_id": requests[place].custom_id, "code": error.code, "message": error.message}
        for place, error in sorted(bad.items())
        if place < len(requests)
    ]
    limits = Limits(part.requests, part.size_bytes + 1, part.tokens + 1, 0)
    _replace(ledger, part, good, limits, rejected=rejected)


def cut_smaller(ledger: Ledger, part: Part, limits: Limits) -> None:
    """Replace a part that is too large for the queue by several that are not."""
    _replace(ledger, part, ledger.workspace.read_index(part.number), limits, rejected=[])


def _replace(
    ledger: Ledger, part: Part, requests: Iterable[Request], limits: Limits, *, rejected: list[Event]
) -> None:
    kept = ledger.workspace.read_requests(part.number, requests)
    lines = (_line(request, content) for request, content in kept)
    shared = {
        "attempt": part.attempt,
        "backend": part.backend,
        "source": part.source,
        "identity": part.identity,
    }
    first = ledger.state.next_number
    parts = [
        {**facts, **shared} for facts in write_parts(ledger.workspace, lines, limits, first_number=first)
    ]
    ledger.record("replaced", part=part.number, by=parts, rejected_lines=rejected)


def _line(request: Request, content: bytes) -> Line:
    return Line(request.custom_id, content, request.image_tokens, request.text_tokens)
