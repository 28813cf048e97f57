"""The live backend: each request on its own, to any OpenAI-compatible chat-completions server.

In: planned parts. Out: `results/part-NNNN.live.jsonl`, one fsynced line an answer, as it arrives. Meant for
a vision model on one's own machine, or for a few rows at once.

A request that was sent may have been billed, whether its reply arrives or not. So a run that is interrupted,
reaches its budget or fails sends nothing more, but waits for the replies in flight and keeps them. A request
to a paid model is noted before it is sent, and where its reply is lost (the process killed, no reply in
time, the connection cut) its price stays on the bill as unconfirmed. Nothing is retried at once
that may have been billed: the row waits for its next attempt, which has twice the time.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import openai

from furnclip import console
from furnclip.clean.batch.parts import calibrate, plan_retries
from furnclip.clean.batch.results import classify, is_reply_lost, live_bill, merge_live, model_of, read_lines
from furnclip.clean.batch.service import OFFICIAL_URL, RefusedError
from furnclip.clean.batch.state import UNSENT, BatchPart
from furnclip.clean.workspace import CleaningLedger, Request
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
    client = ChatClient(ledger)
    try:
        while True:
            is_halted = bool(ledger.state.halted)
            for part in () if is_halted else ledger.state.with_status(*UNSENT, backend="live"):
                time.sleep(max(0.0, part.not_before - time.time()))
                _ask_part(ledger, client, part)
            if ledger.state.halted:
                raise ServiceError(
                    f"sending stopped: {ledger.state.halted}",
                    hint="fix the cause, then `furnclip clean run --ignore-errors` sends the rest",
                )
            if not plan_retries(ledger):
                return
    finally:
        client.close()


def _ask_part(ledger: CleaningLedger, client: ChatClient, part: BatchPart) -> None:
    _record_bill(ledger, part)  # of a run that was killed
    path = ledger.workspace.live(part.number)
    answered: set[object] = set()
    for line in read_lines(path):
        # A refused request is asked again after a stop: the server may have been repaired since.
        if "asked_usd" not in line and classify(line, ledger.recipe.vocabulary).reason != "request-refused":
            answered.add(line.get("custom_id"))
    todo = [
        request for request in ledger.workspace.read_index(part.number) if request.custom_id not in answered
    ]
    try:
        with (
            console.progress(f"asking `{ledger.config.clean.model}`", total=len(todo)) as meter,
            _answer_file(path, ledger.config.clean.concurrency) as answers,
        ):
            PartSender(ledger, client, part, answers, meter).run(todo)
    except BaseException:
        with suppress(OSError):  # a full disk: the next run notes it
            _record_bill(ledger, part)
        raise
    merge_live(ledger, part)


def _record_bill(ledger: CleaningLedger, part: BatchPart) -> None:
    """What the part cost so far, for the bill of a run that does not come to its end."""
    model = model_of(part, ledger.config.clean)
    usage, unconfirmed_usd = live_bill(ledger.workspace.live(part.number), model)
    noted = ledger.state.parts[part.number]
    if (usage, unconfirmed_usd) != (noted.usage, noted.unconfirmed_usd):
        ledger.record("billed", part=part.number, **vars(usage), unconfirmed_usd=unconfirmed_usd)


class PartSender:
    """The requests of one part: sent, and their replies kept as they come."""

    def __init__(
        self,
        ledger: CleaningLedger,
        client: ChatClient,
        part: BatchPart,
        answers: AnswerFile,
        meter: console.Meter,
    ) -> None:
        self._ledger, self._recipe, self._client, self._part = ledger, ledger.recipe, client, part
        self._answers, self._meter = answers, meter
        self._timeout_s = ledger.config.clean.timeout_s * 2 ** (part.attempt - 1)
        self._calibration = calibrate(ledger)
        self._committed_usd = ledger.state.paid.cost_usd + ledger.state.unconfirmed_usd
        self._is_leaving, self._signal = False, 0
        self._in_flight: dict[str, float] = {}  # custom_id -> expected price
        self._replies: queue.SimpleQueue[tuple[str, Reply]] = queue.SimpleQueue()

    def run(self, todo: list[Request]) -> None:
        """Send them all; however it ends, the replies in flight are waited for."""
        with self._until_signal():
            try:
                for request, content in self._ledger.workspace.read_requests(self._part.number, todo):
                    if len(self._in_flight) >= self._ledger.config.clean.concurrency:
                        self._receive()
                    self._wait_for_first_reply()
                    self._send(request, content)
                while self._in_flight:
                    self._receive()
                self._wait_for_first_reply()
            except BaseException:
                self._client.stopping.set()
                while self._in_flight and not self._is_leaving:
                    with suppress(FurnclipError, OSError):
                        self._receive()
                raise

    def _wait_for_first_reply(self) -> None:
        """While replies get lost and none has come yet, send nothing more."""
        while self._client.seen["lost"] and not self._client.seen["replied"]:
            if not self._in_flight:
                raise ServiceError(
                    f"not one of the first {self._client.seen['lost']} requests was answered within "
                    f"{self._timeout_s:g} s",
                    hint="raise `clean.timeout_s` or lower `clean.concurrency`; what was sent may be billed, "
                    "and is on the bill as unconfirmed",
                )
            self._receive()

    def _send(self, request: Request, content: bytes) -> None:
        if self._client.stopping.is_set():
            raise self._interruption()
        prompt = self._calibration.overhead_tokens + request.image_tokens + request.text_tokens
        price_usd = self._recipe.model.cost_usd(prompt, self._calibration.answer_tokens, batch=False)
        limit = self._ledger.config.clean.max_cost_usd
        if limit and self._committed_usd + price_usd > limit:
            raise ServiceError(
                f"the limit of ${limit:g} is reached", hint="raise `clean.max_cost_usd` and run again"
            )
        if price_usd:
            self._answers.append({"custom_id": request.custom_id, "asked_usd": price_usd})
        self._committed_usd += price_usd
        self._in_flight[request.custom_id] = price_usd
        arguments = (request.custom_id, content)
        threading.Thread(target=self._ask, args=arguments, daemon=True).start()

    def _ask(self, custom_id: str, content: bytes) -> None:
        """In a thread: one reply, whatever it is."""
        try:
            reply: Reply = self._client.ask(custom_id, content, self._timeout_s)
        except FurnclipError as error:
            reply = error
        except Exception as error:
            reply = _failure(custom_id, 0, "unreadable", str(error))
        self._replies.put((custom_id, reply))

    def _receive(self) -> None:
        """Keep the next reply; stop early when nothing works."""
        custom_id, reply = self._replies.get()
        price_usd = self._in_flight.pop(custom_id)
        if not isinstance(reply, dict):  # it was not sent
            self._committed_usd -= price_usd
            if price_usd:
                self._answers.append({"custom_id": custom_id, "asked_usd": 0.0})
            if reply is not None:
                raise reply
            return
        self._answers.append(reply)
        self._meter.advance()
        outcome, seen = classify(reply, self._recipe.vocabulary), self._client.seen
        if is_reply_lost(reply):
            seen["lost"] += 1
        else:
            seen["replied"] += 1
            tokens = (outcome.prompt_tokens, outcome.completion_tokens)
            self._committed_usd += self._recipe.model.cost_usd(*tokens, batch=False) - price_usd
        seen.update((outcome.kind, outcome.reason))
        if seen["request-refused"] >= _MAX_REFUSALS and not seen["cleaned"]:
            raise ServiceError(
                f"the first {seen['request-refused']} requests were refused: {outcome.detail}",
                hint="check `clean.model` and `clean.base_url`; the rows are retried when you run again",
            )
        if self._answers.problem is not None:
            raise self._answers.problem

    def _interruption(self) -> BaseException:
        """What the signal does everywhere else in furnclip."""
        is_ctrl_c = self._signal in (0, signal.SIGINT)
        return KeyboardInterrupt() if is_ctrl_c else SystemExit(128 + self._signal)

    @contextmanager
    def _until_signal(self) -> Iterator[None]:
        """The first Ctrl-C (or SIGTERM, SIGHUP) stops sending, the second one stops waiting as well."""

        def stop(number: int, _frame: object) -> None:
            self._is_leaving = self._client.stopping.is_set()
            self._signal = number
            if self._is_leaving:
                raise self._interruption()
            self._client.stopping.set()
            with suppress(RuntimeError):  # the signal may come while something else is printed
                count = len(self._in_flight)
                console.note(f"waiting for {count} replies that may be billed; Ctrl-C again leaves them")

        is_main = threading.current_thread() is threading.main_thread()
        numbers = [getattr(signal, name) for name in _STOP_SIGNALS if is_main and hasattr(signal, name)]
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
            if self._client.stopping.is_set():
                raise self._interruption()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class ChatClient:
    """One server; its methods are called from many threads."""

    def __init__(self, ledger: CleaningLedger) -> None:
        clean = ledger.config.clean
        self._url = clean.base_url or OFFICIAL_URL
        key = ledger.config.openai_api_key.get_secret_value() or "none"
        self._client = openai.OpenAI(api_key=key, base_url=self._url, max_retries=0)
        self._gap_s = 60 / clean.requests_per_minute if clean.requests_per_minute else 0.0
        self._next_start = 0.0
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self.seen: Counter[str] = Counter()  # replies by what they were

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, custom_id: str, content: bytes, timeout_s: float) -> dict[str, Any] | None:
        """One answer in the shape of a batch's result line; None when it was not sent since all stops.

        Raises `ServiceError` when the server cannot be reached or the account refuses.
        """
        self._wait_for_turn()
        body = json.loads(content)["body"]
        for tries in range(_RETRIES + 1):
            if self.stopping.is_set():
                return None
            try:
                reply = self._client.with_options(timeout=timeout_s).post(
                    "/chat/completions", body=body, cast_to=object
                )
                return _line(custom_id, 200, reply)
            except openai.APIStatusError as error:
                refused = RefusedError.from_error(error)
                if problem := refused.account_problem():
                    raise problem from None
                if error.status_code not in _BUSY or tries == _RETRIES:
                    return _failure(custom_id, refused.status, refused.code, refused.message)
                self.stopping.wait(_pause_s(error.response.headers, tries))
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                if type(cause).__name__ in _NOT_SENT:
                    raise ServiceError(
                        f"the server at `{self._url}` cannot be reached ({cause})",
                        hint="start it or correct `clean.base_url`, then run the same command again",
                    ) from None
                if isinstance(error, openai.APITimeoutError):
                    return _failure(custom_id, 408, "timeout", "no answer in time")
                return _failure(custom_id, 0, "connection", str(cause))
        raise AssertionError("unreachable")

    def _wait_for_turn(self) -> None:
        """Spaces requests out over a minute."""
        if self._gap_s:
            with self._lock:
                now = time.monotonic()
                start = max(now, self._next_start)
                self._next_start = start + self._gap_s
            time.sleep(start - now)


def _pause_s(headers: Mapping[str, str], tries: int) -> float:
    """As long as the server asks for, or else a little longer each time."""
    with suppress(ValueError):
        for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
            if asked := headers.get(name):
                return min(_LONGEST_PAUSE_S, float(asked) * unit_s)
    return float(0.5 * 2**tries)


def _line(custom_id: str, status: int, body: object) -> dict[str, Any]:
    return {"custom_id": custom_id, "response": {"status_code": status, "body": body}, "error": None}


def _failure(custom_id: str, status: int, code: str, message: str) -> dict[str, Any]:
    return _line(custom_id, status, {"error": {"code": code, "message": message}})


class AnswerFile:
    """A journal of answers, with disk space in reserve so that no paid one is lost to a full disk."""

    def __init__(self, journal: Journal, reserve: Path) -> None:
        self._journal = journal
        self._reserve = reserve
        self.problem: OSError | None = None  # the disk is full; what is in flight still fits

    def append(self, line: dict[str, Any]) -> None:
        try:
            self._journal.append(line)
        except OSError as error:
            if self.problem is None:
                self.problem = error
                self._reserve.unlink(missing_ok=True)
            self._journal.append(line)


@contextmanager
def _answer_file(path: Path, concurrency: int) -> Iterator[AnswerFile]:
    with Journal(path) as journal:
        reserve = aside_name(path)
        try:
            with reserve.open("wb") as file:
                file.write(os.urandom(_RESERVED_BYTES * concurrency))
                os.fsync(file.fileno())
            yield AnswerFile(journal, reserve)
        finally:
            reserve.unlink(missing_ok=True)
