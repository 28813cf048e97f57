"""The live backend: each request on its own, to any OpenAI-compatible chat-completions server.

In: planned parts. Out: `results/part-NNNN.live.jsonl`, one fsynced line an answer, as it arrives. Meant for
a vision model on one's own machine, or for a few rows at once. A kill loses the answers that were on their
way, at most `clean.concurrency` of them, and these are asked again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import openai

from furnclip import console
from furnclip.clean import estimate
from furnclip.clean.again import ask_again
from furnclip.clean.answers import classify, read_lines, usage_of
from furnclip.clean.ledger import Ledger
from furnclip.clean.merge import merge_live
from furnclip.clean.openai import OFFICIAL_URL, account_problem, refusal
from furnclip.clean.requests import Recipe
from furnclip.clean.state import UNSENT, Part
from furnclip.clean.workspace import Request
from furnclip.errors import ServiceError
from furnclip.journal import Journal

_RETRIES = 2  # by the client itself; after that the row waits for its next attempt
_HOPELESS = 10  # refusals from the start on, without one answer


class Live:
    """Asks every waiting request, a bounded number at once."""

    def __init__(self, ledger: Ledger, recipe: Recipe) -> None:
        clean = ledger.config.clean
        self._ledger = ledger
        self._recipe = recipe
        self._clean = clean
        self._url = clean.base_url or OFFICIAL_URL
        key = ledger.config.openai_api_key.get_secret_value() or "none"
        self._client = openai.OpenAI(
            api_key=key, base_url=self._url, timeout=clean.timeout_s, max_retries=_RETRIES
        )
        self._pace = Pace(clean.requests_per_minute)
        self._answered = self._refused = 0
        self._spent_usd = 0.0  # on the part at hand; the state has the others

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def run(self) -> None:
        """Ask until every row is settled."""
        while True:
            for part in self._waiting():
                time.sleep(max(0.0, part.not_before - time.time()))
                self._run_part(part)
            if self._ledger.state.halted:
                raise ServiceError(
                    f"sending stopped: {self._ledger.state.halted}",
                    hint="mend the cause, then `furnclip clean run --ignore-errors` sends the rest",
                )
            if not ask_again(self._ledger, self._recipe):
                return

    def _waiting(self) -> list[Part]:
        if self._ledger.state.halted:
            return []
        return [part for part in self._ledger.state.with_status(*UNSENT) if part.backend == "live"]

    def _run_part(self, part: Part) -> None:
        workspace = self._ledger.workspace
        path = workspace.live(part.number)
        done = {line.get("custom_id") for line in read_lines(path) if not self._is_refusal(line)}
        self._spent_usd = sum(self._price_usd(line) for line in read_lines(path))
        todo = [request for request in workspace.read_index(part.number) if request.custom_id not in done]
        with (
            Journal(path) as answers,
            console.progress(f"asking `{self._recipe.model.id}`", total=len(todo)) as meter,
            ThreadPoolExecutor(self._clean.concurrency) as pool,
        ):
            for line in self._answers(pool, workspace.read_requests(part.number, todo)):
                answers.append(line)
                meter.advance()
                self._check(line)
        merge_live(self._ledger, part)

    def _is_refusal(self, line: dict[str, Any]) -> bool:
        """A refused request is asked again after a stop: the server may have been mended since."""
        return classify(line, self._recipe.vocabulary).reason == "request-refused"

    def _answers(
        self, pool: ThreadPoolExecutor, requests: Iterator[tuple[Request, bytes]]
    ) -> Iterator[dict[str, Any]]:
        """Result lines as they arrive, with at most `concurrency` requests on their way."""
        running: set[Future[dict[str, Any]]] = set()
        try:
            for request, content in requests:
                if len(running) >= self._clean.concurrency:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
                running.add(pool.submit(self._ask, request.custom_id, content))
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, custom_id: str, content: bytes) -> dict[str, Any]:
        """One answer in the shape of a batch's result line."""
        self._pace.wait()
        body = json.loads(content)["body"]
        try:
            reply = self._client.post("/chat/completions", body=body, cast_to=object)
        except openai.APIStatusError as error:
            refused = refusal(error)
            problem = account_problem(refused)
            if problem is not None:
                raise problem from None
            detail = {"error": {"code": refused.code, "message": refused.message}}
            return _line(custom_id, error.status_code, detail)
        except openai.APITimeoutError:
            return _line(custom_id, 408, {"error": {"code": "timeout", "message": "no answer in time"}})
        except openai.APIConnectionError as error:
            raise ServiceError(
                f"the server at `{self._url}` cannot be reached ({error.__cause__ or error})",
                hint="start it or mend `clean.base_url`, then run the same command again",
            ) from None
        return _line(custom_id, 200, reply)

    def _check(self, line: dict[str, Any]) -> None:
        """Stop early when nothing works, or when the budget is spent."""
        outcome = classify(line, self._recipe.vocabulary)
        self._answered += outcome.kind == "cleaned"
        self._refused += outcome.reason == "request-refused"
        if self._refused >= _HOPELESS and not self._answered:
            raise ServiceError(
                f"the first {self._refused} requests were refused: {outcome.detail}",
                hint="check `clean.model` and `clean.base_url`; the rows are asked again when you run again",
            )
        self._spent_usd += self._price_usd(line)
        limit = self._clean.max_cost_usd
        if limit and self._ledger.state.paid.cost_usd + self._spent_usd >= limit:
            raise ServiceError(
                f"the limit of ${limit:g} is reached", hint="raise `clean.max_cost_usd` and run again"
            )

    def _price_usd(self, line: dict[str, Any]) -> float:
        body = line["response"]["body"]
        tokens = usage_of(body) if isinstance(body, dict) else (0, 0)
        return estimate.usage(tokens, self._recipe.model, batch=False).cost_usd


class Pace:
    """Spaces calls out over a minute; shared by threads."""

    def __init__(self, per_minute: int) -> None:
        self._gap_s = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        if not self._gap_s:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap_s
        time.sleep(start - now)


def _line(custom_id: str, status: int, body: object) -> dict[str, Any]:
    return {"custom_id": custom_id, "response": {"status_code": status, "body": body}, "error": None}
