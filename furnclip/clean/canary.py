"""The canary: one real request, sent at once, before the first batch of a model, prompt and schema.

In: a waiting part. Out: `canary` in the journal: what prompt and schema really take, and the bill. A wrong
parameter shows here in seconds; inside a batch it shows after hours, in every line. The answer is not used.

A batch can be looked up after a crash, a synchronous answer cannot. So the request is journalled first,
with the price it should have. When its reply is lost (the process killed, the connection cut, HTTP 5xx),
it is not known whether it was billed. Then the price stays on the bill as "unconfirmed" and counts against
`max_cost_usd`; the request is never sent again by itself; and the first batch goes alone, in the canary's
place, so that a wrong parameter still spoils one part at most. `clean estimate --calibrate` is how a user
asks for another one; both are then on the bill. A journal restored from a backup does not know of canaries
sent since.
"""

from __future__ import annotations

import json
import time
from typing import Any

from furnclip import console
from furnclip.clean.answers import classify, usage_of
from furnclip.clean.ledger import Ledger
from furnclip.clean.openai import BatchService, RefusedError, UnsureError, account_problem
from furnclip.clean.requests import Recipe
from furnclip.clean.state import Part
from furnclip.clean.workspace import Request
from furnclip.errors import ServiceError

_BUSY_WAIT_S = 2.0


def send_canary(
    ledger: Ledger, service: BatchService, recipe: Recipe, part: Part, *, once_more: bool = False
) -> None:
    """Send it, unless that was done; `once_more`: also when an earlier one may have been paid for."""
    if recipe.identity in ledger.state.canaries:
        return
    lost = ledger.state.lost_canaries(recipe.identity)
    if not lost or once_more:
        try:
            _record(ledger, recipe, *_first_accepted(ledger, service, recipe, part))
            return
        except UnsureError:
            lost = ledger.state.lost_canaries(recipe.identity)
    console.warn(
        "the reply to a trial request was lost, so it may have been billed "
        f"(about ${lost[-1]['cost_usd']:.6f}); it is not sent again, and the first batch goes alone instead "
        "(`furnclip clean estimate --calibrate` sends another one)"
    )


def _record(ledger: Ledger, recipe: Recipe, request: Request, reply: dict[str, Any]) -> None:
    """Note the bill; say when the answer itself was no good."""
    line = {"response": {"status_code": 200, "body": reply}, "error": None}
    outcome = classify(line, recipe.vocabulary)
    if outcome.kind != "cleaned":
        console.warn(f"the trial request was not answered well ({outcome.reason}: {outcome.detail})")
    prompt, completion = usage_of(reply)
    cost_usd = recipe.model.cost_usd(prompt, completion, batch=False)
    overhead = prompt - request.image_tokens - request.text_tokens
    ledger.record(
        "canary",
        recipe=recipe.identity,
        prompt_tokens=prompt,
        completion_tokens=completion,
        overhead_tokens=overhead if overhead > 0 else recipe.overhead_tokens,
        cost_usd=cost_usd,
    )
    console.note(f"trial request: {prompt} + {completion} tokens, ${cost_usd:.6f}")


def _first_accepted(
    ledger: Ledger, service: BatchService, recipe: Recipe, part: Part
) -> tuple[Request, dict[str, Any]]:
    """A request that the service takes, and its reply. One product may be at fault, three are not."""
    requests = list(ledger.workspace.read_index(part.number))
    places = sorted({0, len(requests) // 2, len(requests) - 1})
    refusal = RefusedError(0, "", "")
    for request, line in ledger.workspace.read_requests(part.number, [requests[place] for place in places]):
        _announce(ledger, recipe, request)
        try:
            return request, service.ask(recipe.endpoint, json.loads(line)["body"])
        except RefusedError as error:
            ledger.record("canary_refused", recipe=recipe.identity)
            refusal = error
        if problem := account_problem(refusal):
            raise problem
        if refusal.status == 429:
            time.sleep(min(_BUSY_WAIT_S, ledger.config.clean.poll_interval_s))
    raise ServiceError(
        f"a trial request was refused (HTTP {refusal.status} {refusal.code}): {refusal.message}",
        hint=f"no batch was sent; check `clean.model` (now `{recipe.model.id}`) "
        "and `clean.effort` in furnclip.toml",
    )


def _announce(ledger: Ledger, recipe: Recipe, request: Request) -> None:
    """The intent, with the price that stands until the real one is known."""
    prompt = recipe.overhead_tokens + request.image_tokens + request.text_tokens
    completion = recipe.model.answer_tokens
    ledger.record(
        "canary_asking",
        recipe=recipe.identity,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_usd=recipe.model.cost_usd(prompt, completion, batch=False),
    )
