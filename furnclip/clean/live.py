"""The live backend: each request on its own, to any OpenAI-compatible chat-completions server.

In: planned parts. Out: `results/part-NNNN.live.jsonl`, one fsynced line an answer, as it arrives.

A request that was sent may have been billed. So a run that is interrupted, reaches its budget or fails sends
nothing more, but waits for the replies in flight and keeps them. A request to a paid model is noted before it
is sent, and where its reply is lost its price stays on the bill as unconfirmed. What may have been billed is
not retried at once: its next attempt has twice the time.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import openai

from furnclip import console
from furnclip.clean.batch.results import (
    Calibration,
    calibrate,
    classify,
    is_reply_lost,
    live_bill,
    merge,
    model_of,
    read_lines,
    stop_if_halted,
)
from furnclip.clean.batch.service import OFFICIAL_URL, RefusedError
from furnclip.clean.batch.state import UNSENT, BatchPart
from furnclip.clean.plan import plan_retries
from furnclip.clean.workspace import CleaningLedger, RequestLine
from furnclip.errors import FurnclipError, ServiceError
from furnclip.journal import Journal, aside_name

_RETRIES = 2  # of a request that surely did nothing; after that the row waits for its next attempt
_MAX_REFUSALS = 10  # refusals from the start on, without one answer
_RESERVED_BYTES = 65_536  # of disk, for each reply on its way
_BUSY = frozenset({429, 503})
_LONGEST_PAUSE_S = 60.0
_NOT_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"})
_STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

Reply = dict[str, Any] | FurnclipError | None  # a result line, why nothing can be sent, or not sent


def ask_live(ledger: CleaningLedger) -> None:
    """Send every waiting request, a bounded number at once, until every row is settled."""
    key = ledger.config.openai_api_key.get_secret_value() or "none"
    url = ledger.config.clean.base_url or OFFICIAL_URL
    with openai.OpenAI(api_key=key, base_url=url, max_retries=0) as client:
        sender = LiveSender(ledger, client)
        while True:
            stop_if_halted(ledger)
            for part in ledger.state.with_status(*UNSENT, backend="live"):
                time.sleep(max(0.0, part.not_before - time.time()))
                sender.ask_part(part)
            if not ledger.state.halted and not plan_retries(ledger):
                return


class LiveSender:
    """One server: requests are sent from many threads, and their replies kept as they come."""

    _answers: Journal
    _meter: console.Meter
    _calibration: Calibration
    _timeout_s: float

    def __init__(self, ledger: CleaningLedger, client: openai.OpenAI) -> None:
        self._ledger, self._recipe, self._clean = ledger, ledger.recipe, ledger.config.clean
        self._client, self._next_start, self._lock = client, 0.0, threading.Lock()
        self._stopping, self._is_leaving, self._signal = threading.Event(), False, int(signal.SIGINT)
        self._seen: Counter[str] = Counter()  # replies by what they were
        self._committed_usd = 0.0  # paid, perhaps paid, or expected for what is in flight
        self._in_flight: dict[str, float] = {}  # custom_id -> expected price
        self._replies: queue.SimpleQueue[tuple[str, Reply]] = queue.SimpleQueue()
        self._disk_problem: OSError | None = None  # the disk is full; what is in flight still fits

    def ask_part(self, part: BatchPart) -> None:
        """Send what has no answer yet; however it ends, what was answered is kept and billed."""
        self._record_bill(part)  # of a run that was killed
        path, vocabulary = self._ledger.workspace.live(part.number), self._recipe.vocabulary
        replies = (line for line in read_lines(path) if "asked_usd" not in line)
        # A refused request is asked again after a stop: the server may have been repaired since.
        answered = {
            line.get("custom_id")
            for line in replies
            if classify(line, vocabulary).reason != "request-refused"
        }
        requests = self._ledger.workspace.read_index(part.number)
        todo = [request for request in requests if request.custom_id not in answered]
        self._timeout_s = self._clean.timeout_s * 2 ** (part.attempt - 1)
        self._calibration = calibrate(self._ledger)
        self._committed_usd = self._ledger.state.paid.cost_usd + self._ledger.state.unconfirmed_usd
        try:
            progress = console.progress(f"asking `{self._clean.model}`", total=len(todo))
            with progress as self._meter, self._answer_file(path), self._until_signal():
                self._send_all(self._ledger.workspace.read_requests(part.number, todo))
        except BaseException:
            with suppress(OSError):  # a full disk: the next run notes it
                self._record_bill(part)
            raise
        merge(self._ledger, part)

    def _record_bill(self, part: BatchPart) -> None:
        """What the part cost so far, for the bill of a run that does not come to its end."""
        path = self._ledger.workspace.live(part.number)
        usage, unconfirmed_usd = live_bill(path, model_of(part, self._clean))
        noted = self._ledger.state.parts[part.number]
        if (usage, unconfirmed_usd) != (noted.usage, noted.unconfirmed_usd):
            self._ledger.record("billed", part=part.number, **vars(usage), unconfirmed_usd=unconfirmed_usd)

    def _send_all(self, lines: Iterable[RequestLine]) -> None:
        try:
            for line in lines:
                if len(self._in_flight) >= self._clean.concurrency:
                    self._receive()
                self._wait_for_first_reply()
                self._send(line)
            while self._in_flight:
                self._receive()
            self._wait_for_first_reply()
        except BaseException:
            self._stopping.set()
            while self._in_flight and not self._is_leaving:
                with suppress(FurnclipError, OSError):
                    self._receive()
            raise

    def _wait_for_first_reply(self) -> None:
        """While replies get lost and none has come yet, send nothing more."""
        while self._seen["lost"] and not self._seen["replied"]:
            if not self._in_flight:
                raise ServiceError(
                    f"not one of the first {self._seen['lost']} requests was answered within "
                    f"{self._timeout_s:g} s",
                    hint="raise `clean.timeout_s` or lower `clean.concurrency`; what was sent may be billed, "
                    "and is on the bill as unconfirmed",
                )
            self._receive()

    def _send(self, line: RequestLine) -> None:
        if self._stopping.is_set():
            raise self._interruption()
        calibration, limit = self._calibration, self._clean.max_cost_usd
        prompt = calibration.overhead_tokens + line.image_tokens + line.text_tokens
        price_usd = self._recipe.model.cost_usd(prompt, calibration.answer_tokens, batch=False)
        if limit and self._committed_usd + price_usd > limit:
            raise ServiceError(
                f"the limit of ${limit:g} is reached", hint="raise `clean.max_cost_usd` and run again"
            )
        if price_usd:
            self._keep({"custom_id": line.custom_id, "asked_usd": price_usd})
        self._committed_usd += price_usd
        self._in_flight[line.custom_id] = price_usd
        threading.Thread(target=self._ask, args=(line.custom_id, line.content), daemon=True).start()

    def _receive(self) -> None:
        """Keep the next reply; stop early when nothing works."""
        custom_id, reply = self._replies.get()
        price_usd = self._in_flight.pop(custom_id)
        if not isinstance(reply, dict):  # it was not sent
            self._committed_usd -= price_usd
            if price_usd:
                self._keep({"custom_id": custom_id, "asked_usd": 0.0})
            if reply is not None:
                raise reply
            return
        self._keep(reply)
        self._meter.advance()
        outcome, seen, is_lost = classify(reply, self._recipe.vocabulary), self._seen, is_reply_lost(reply)
        seen.update(("lost" if is_lost else "replied", outcome.kind, outcome.reason))
        if not is_lost:
            tokens = (outcome.prompt_tokens, outcome.completion_tokens)
            self._committed_usd += self._recipe.model.cost_usd(*tokens, batch=False) - price_usd
        if seen["request-refused"] >= _MAX_REFUSALS and not seen["cleaned"]:
            raise ServiceError(
                f"the first {seen['request-refused']} requests were refused: {outcome.detail}",
                hint="check `clean.model` and `clean.base_url`; the rows are retried when you run again",
            )
        if self._disk_problem is not None:
            raise self._disk_problem

    @contextmanager
    def _answer_file(self, path: Path) -> Iterator[None]:
        """Within the block `_keep` writes to `path`, with disk space in reserve for replies on their way."""
        with Journal(path) as self._answers:
            try:
                with aside_name(path).open("wb") as reserve:
                    reserve.write(os.urandom(_RESERVED_BYTES * self._clean.concurrency))
                    os.fsync(reserve.fileno())
                yield
            finally:
                aside_name(path).unlink(missing_ok=True)

    def _keep(self, line: dict[str, Any]) -> None:
        """No paid answer is lost to a full disk: then the reserve makes room."""
        try:
            self._answers.append(line)
        except OSError as error:
            if self._disk_problem is None:
                self._disk_problem = error
                aside_name(self._answers.path).unlink(missing_ok=True)
            self._answers.append(line)

    def _interruption(self) -> BaseException:
        """What the signal does everywhere else in furnclip."""
        return KeyboardInterrupt() if self._signal == signal.SIGINT else SystemExit(128 + self._signal)

    @contextmanager
    def _until_signal(self) -> Iterator[None]:
        """The first Ctrl-C (or SIGTERM, SIGHUP) stops sending, the second one stops waiting as well."""

        def stop(number: int, _frame: object) -> None:
            self._is_leaving = self._stopping.is_set()
            self._signal = number
            if self._is_leaving:
                raise self._interruption()
            self._stopping.set()
            with suppress(RuntimeError):  # the signal may come while something else is printed
                count = len(self._in_flight)
                console.note(f"waiting for {count} replies that may be billed; Ctrl-C again leaves them")

        is_main = threading.current_thread() is threading.main_thread()
        numbers = [getattr(signal, name) for name in _STOP_SIGNALS if is_main and hasattr(signal, name)]
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
            if self._stopping.is_set():
                raise self._interruption()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, custom_id: str, content: bytes) -> None:
        try:
            reply = self._reply(custom_id, content)
        except FurnclipError as error:
            reply = error
        except Exception as error:
            reply = _reply_line(custom_id, 0, "unreadable", str(error))
        self._replies.put((custom_id, reply))

    def _reply(self, custom_id: str, content: bytes) -> Reply:
        """In the shape of a batch's result line. Raises `ServiceError` when the server cannot be reached or
        the account refuses."""
        if self._clean.requests_per_minute:
            with self._lock:
                start = max(time.monotonic(), self._next_start)
                self._next_start = start + 60 / self._clean.requests_per_minute
            time.sleep(max(0.0, start - time.monotonic()))
        client, body = self._client.with_options(timeout=self._timeout_s), json.loads(content)["body"]
        for tries in range(_RETRIES + 1):
            if self._stopping.is_set():
                return None
            try:
                answer = client.post("/chat/completions", body=body, cast_to=object)
                return _reply_line(custom_id, 200, body=answer)
            except openai.APIStatusError as error:
                refused = RefusedError.from_error(error)
                if problem := refused.account_problem():
                    raise problem from None
                if error.status_code not in _BUSY or tries == _RETRIES:
                    return _reply_line(custom_id, refused.status, refused.code, refused.message)
                asked_s = error.response.headers.get("retry-after", "")
                pause_s = float(asked_s) if asked_s.isdecimal() else 0.5 * 2**tries
                self._stopping.wait(min(_LONGEST_PAUSE_S, pause_s))
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                if type(cause).__name__ in _NOT_SENT:
                    raise ServiceError(
                        f"the server at `{self._clean.base_url or OFFICIAL_URL}` cannot be reached ({cause})",
                        hint="start it or correct `clean.base_url`, then run the same command again",
                    ) from None
                if isinstance(error, openai.APITimeoutError):
                    return _reply_line(custom_id, 408, "timeout", "no answer in time")
                return _reply_line(custom_id, 0, "connection", str(cause))
        raise AssertionError("unreachable")


def _reply_line(custom_id: str, status: int, code: str = "", message: str = "", body: object = None) -> Reply:
    body = body if status == 200 else {"error": {"code": code, "message": message}}
    return {"custom_id": custom_id, "response": {"status_code": status, "body": body}, "error": None}
