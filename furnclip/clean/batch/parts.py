"""Parts: files of requests, each small enough for one batch. How they are cut, priced and made again.

The same requests and limits always give the same bytes, so a part can be written again after a kill. Parts
that take the place of others come into being with one journal event: a kill leaves either old or new ones.

The price is estimated before sending. An image counts by the patch rule; text by its length, until the
canary says what prompt and schema really take. Answers are guessed from the model table first, then from
the canary, then from the parts that came back; with hidden reasoning they are the larger half of the bill.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from furnclip.clean.batch.requests import Recipe, with_cap
from furnclip.clean.batch.results import Outcome, collect
from furnclip.clean.batch.state import BatchPart
from furnclip.clean.workspace import CleaningLedger, PartRequest, RequestLine, Workspace, is_intact
from furnclip.config import CleaningConfig
from furnclip.errors import InputError
from furnclip.journal import Event, replacing, sha256_of

QUEUE_HEADROOM = 0.9  # the service counts tokens in its own way; stay below its limit
CAP_CEILING_TOKENS = 8000
MAX_WAIT_S = 900.0


class Limits(NamedTuple):
    """What one part may hold at most."""

    requests: int
    size_bytes: int
    tokens: int
    overhead_tokens: int  # of every request: prompt and schema


def part_limits(config: CleaningConfig, recipe: Recipe) -> Limits:
    """What one batch may hold."""
    size_bytes = int(config.part_mb * 1e6)
    return Limits(config.part_requests, size_bytes, queue_limit(config, recipe), recipe.overhead_tokens)


def queue_limit(config: CleaningConfig, recipe: Recipe, *, learned: int = 0) -> int:
    """Input tokens that may wait at once: configured or from the table, and learned from the service."""
    limit = config.max_queued_tokens or recipe.model.queue_limit(config.tier)
    known = [tokens for tokens in (limit, learned) if tokens]
    return int(min(known) * QUEUE_HEADROOM) if known else sys.maxsize


def write_parts(
    workspace: Workspace, lines: Iterable[RequestLine], limits: Limits, *, first_number: int, **shared: object
) -> Iterator[Event]:
    """Write parts one after another; yields the facts about each, and those they share, when it is complete.

    Parts of the backend `local` hold answers, so they are result files.
    """
    source, number = iter(lines), first_number
    pending = next(source, None)
    while pending is not None:
        requests: dict[str, PartRequest] = {}
        size_bytes = tokens = 0
        path = workspace.content(number, str(shared.get("backend")))
        with replacing(path) as file:
            while pending is not None:
                custom_id, content, *own_tokens = pending
                end_bytes, total_tokens = size_bytes + len(content), tokens + sum(own_tokens)
                overhead_tokens = (len(requests) + 1) * limits.overhead_tokens
                is_full = len(requests) >= limits.requests or end_bytes > limits.size_bytes
                if requests and (is_full or total_tokens + overhead_tokens > limits.tokens):
                    break
                if custom_id in requests:
                    raise InputError(f"two rows ask for `{custom_id}`", hint="make the product ids unique")
                requests[custom_id] = PartRequest(custom_id, size_bytes, len(content), *own_tokens)
                file.write(content)
                size_bytes, tokens = end_bytes, total_tokens
                pending = next(source, None)
        workspace.write_index(number, requests.values())
        yield {
            "part": number,
            "requests": len(requests),
            "size_bytes": size_bytes,
            "tokens": tokens,
            "sha256": sha256_of(path),
            "index_sha256": sha256_of(workspace.index(number)),
            **shared,
        }
        number += 1


class Calibration(NamedTuple):
    """Tokens that every request takes besides its image and title, and how sure we are."""

    overhead_tokens: float
    answer_tokens: float
    basis: str  # "table", "canary" or "results"

    def prompt_tokens(self, part: BatchPart) -> int:
        return round(part.tokens + part.requests * self.overhead_tokens)


@dataclass(frozen=True)
class Estimate:
    """Expected tokens and price of some requests."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    basis: str


def calibrate(ledger: CleaningLedger) -> Calibration:
    """The best knowledge so far."""
    state, recipe = ledger.state, ledger.recipe
    overhead, answer, basis = float(recipe.overhead_tokens), float(recipe.answer_tokens), "table"
    if canary := state.canaries.get(recipe.identity):
        overhead, answer, basis = canary["overhead_tokens"], canary["completion_tokens"], "canary"
    seen = [part for part in state.with_status("merged") if part.identity == recipe.identity]
    billed = [part for part in seen if part.usage.prompt_tokens and _answered(part)]
    if answered := sum(map(_answered, billed)):
        prompt_tokens = sum(part.usage.prompt_tokens for part in billed)
        estimated = sum(part.tokens * _answered(part) / part.requests for part in billed)
        overhead = (prompt_tokens - estimated) / answered
        answer = sum(part.usage.completion_tokens for part in billed) / answered
        basis = "results"
    return Calibration(max(0.0, overhead), answer, basis)


def _answered(part: BatchPart) -> int:
    """Requests that the service ran, and billed."""
    total, completed, _ = part.counts
    return completed if total else part.requests


def estimate(parts: Sequence[BatchPart], ledger: CleaningLedger) -> Estimate:
    """What these parts will take together."""
    calibration = calibrate(ledger)
    requests = sum(part.requests for part in parts)
    prompt = sum(map(calibration.prompt_tokens, parts))
    completion = round(requests * calibration.answer_tokens)
    is_batch = ledger.config.clean.backend == "openai"
    cost_usd = ledger.recipe.model.cost_usd(prompt, completion, batch=is_batch)
    return Estimate(requests, prompt, completion, cost_usd, calibration.basis)


def backoff_s(wait_s: float, refusals: int) -> float:
    """`wait_s`, doubled with every refusal after the first, up to a quarter of an hour."""
    return min(MAX_WAIT_S, wait_s * 2.0 ** max(0, refusals - 1))


def plan_retries(ledger: CleaningLedger) -> int:
    """Plan the rows that have to be retried; how many there are."""
    clean, recipe = ledger.config.clean, ledger.recipe
    outcomes = collect(ledger.workspace, ledger.state, recipe.vocabulary)
    wanted = {entry.custom_id for entry in ledger.workspace.read_rows() if entry.custom_id}
    by_attempt: dict[int, dict[str, Outcome]] = defaultdict(dict)
    for custom_id in wanted & outcomes.keys():
        outcome = outcomes[custom_id]
        if outcome.settled(clean.max_attempts).kind == "again":
            by_attempt[outcome.attempt][custom_id] = outcome
    planned: list[Event] = []
    for attempt, failed in sorted(by_attempt.items()):
        at_once = all(outcome.reason != "service-error" for outcome in failed.values())
        wait_s = 0.0 if at_once else backoff_s(clean.retry_wait_s, attempt)
        planned += write_parts(
            ledger.workspace,
            _lines_to_retry(ledger, failed),
            part_limits(clean, recipe),
            first_number=ledger.state.next_number + len(planned),
            attempt=attempt + 1,
            not_before=time.time() + wait_s,
            backend=clean.backend,
            source=f"{clean.backend}:{clean.model}",
            identity=recipe.identity,
        )
    if planned:
        ledger.record("again", parts=planned)
    return sum(facts["requests"] for facts in planned)


def _lines_to_retry(ledger: CleaningLedger, failed: Mapping[str, Outcome]) -> Iterator[RequestLine]:
    """The requests as they were sent last, in that order; with a higher cap where the answer was cut."""
    left, found = set(failed), []
    for part in reversed(ledger.state.with_status("merged")):
        requests = [r for r in ledger.workspace.read_index(part.number) if r.custom_id in left]
        left.difference_update(request.custom_id for request in requests)
        if requests:
            found.append((part, requests))
    for part, requests in reversed(found):
        path = ledger.workspace.part(part.number)
        if not is_intact(path, part.sha256):
            raise InputError(
                f"`{path}` is missing or damaged, and {len(requests)} of its rows have to be retried",
                hint="restore it from a backup, or write what is there: `furnclip clean finalize --partial`",
            )
        for line in ledger.workspace.read_requests(part.number, requests):
            is_cut = failed[line.custom_id].reason in ("cut-off", "empty-answer")
            yield line._replace(content=with_cap(line.content, 2, CAP_CEILING_TOKENS)) if is_cut else line


def cut_part(
    ledger: CleaningLedger,
    part: BatchPart,
    limits: Limits,
    *,
    requests: Iterable[PartRequest] | None = None,
    rejected: Sequence[Event] = (),
) -> None:
    """Replace a part by others within these limits; `requests`: only these, the `rejected` are left out."""
    if requests is None:
        requests = ledger.workspace.read_index(part.number)
    shared = {name: getattr(part, name) for name in ("attempt", "backend", "source", "identity")}
    lines = ledger.workspace.read_requests(part.number, requests)
    first = ledger.state.next_number
    new = list(write_parts(ledger.workspace, lines, limits, first_number=first, **shared))
    ledger.record("replaced", part=part.number, by=new, rejected_lines=list(rejected))
