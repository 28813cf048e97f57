"""Sending parts: checks before money is spent, uploads, batches, and finding out after a crash.

Every batch is journalled before it is asked for, and marked with run, part and try in its metadata. When
the reply to a creation is lost, the service's list is read until it is certain enough that there is none.

The canary is one real request, sent before the first batch of a model, prompt and schema: a wrong parameter
shows there in seconds, inside a batch after hours. Its bill tells what prompt and schema really take. It
cannot be looked up after a crash, so it is journalled first, with its expected price. When its reply is lost,
that price stays on the bill as "unconfirmed" and counts against `max_cost_usd`; it is never sent again by
itself (`clean estimate --calibrate` does), and the first batch goes alone in its place.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from openai.types import Batch

from furnclip import console
from furnclip.clean.batch.results import backoff_s, calibrate, classify, estimate, usage_of
from furnclip.clean.batch.service import TERMINAL, BatchService, RefusedError, UnsureError
from furnclip.clean.batch.state import SENT, UNSENT, BatchPart
from furnclip.clean.plan import Limits, cut_part, queue_limit
from furnclip.clean.workspace import CleaningLedger, RequestLine, key_print
from furnclip.errors import ConfigError, JournalError, ServiceError
from furnclip.journal import sha256_of

_WARN_DAYS = 30
_BATCH_DAYS = 2  # a batch may take 24 h; the other day is for clocks and time zones
_LOOKUPS = 3
_FRESH_FILE_TRIES = 6  # with waits of 1, 2, 4, 8 and 16 s
_RANKS = {"completed": 0, "finalizing": 1, "in_progress": 2, "validating": 3}
_BUSY_WAIT_S = 2.0


class Dispatcher:
    """Sends waiting parts, as far as limits, budget and the service allow."""

    def __init__(self, ledger: CleaningLedger, service: BatchService) -> None:
        self._ledger, self._service = ledger, service
        self._recipe, self._clean = ledger.recipe, ledger.config.clean
        self._is_checked = False
        self.over_budget = False

    def waiting(self) -> list[BatchPart]:
        return self._ledger.state.with_status(*UNSENT, backend="openai")

    def open(self) -> list[BatchPart]:
        return self._ledger.state.with_status(*SENT, backend="openai")

    def reconcile(self) -> None:
        """Settle what a crash or a lost reply left open, before anything new is sent."""
        state = self._ledger.state
        if self.open() and state.key_print not in ("", key_print(self._ledger.config, state.run)):
            console.warn("the batches were sent with another API key; if they cannot be found, use that one")
        for part in state.with_status("creating"):
            self._find_created(part)
        if self.waiting() or self.open():
            self._settle_unknown_batches()

    def stop_second_batches(self) -> None:
        """Look again where a batch was asked for twice: the list may have shown the first one late."""
        if any(part.creations > 1 for part in self.open()):
            self._settle_unknown_batches()

    def send(self) -> None:
        while (part := self._next()) is not None:
            if not self._is_checked:  # before the first batch of a process
                self._check_retirement()
                send_canary(self._ledger, self._service, part)
                self._is_checked = True
            calibration, limit = calibrate(self._ledger), self._queue_limit()
            if part.requests == 1 or calibration.prompt_tokens(part) <= limit:
                self._send(part)
            else:  # the queue would never take it, now that its real limit is known
                overhead = round(calibration.overhead_tokens)
                limits = Limits(self._clean.part_requests, part.size_bytes, limit, overhead)
                cut_part(self._ledger, part, limits)

    def _next(self) -> BatchPart | None:
        """The first waiting part, unless a limit says to wait."""
        state, waiting, running = self._ledger.state, self.waiting(), self.open()
        if not waiting or state.halted or len(running) >= self._clean.max_concurrent_batches:
            return None
        part = waiting[0]
        if part.not_before > time.time():
            return None
        calibration = calibrate(self._ledger)
        if running and sum(map(calibration.prompt_tokens, [*running, part])) > self._queue_limit():
            return None
        if calibration.basis == "table" and any(other.identity == part.identity for other in running):
            return None  # the canary's reply was lost: the first batch goes alone in its place
        # what is paid, surely or perhaps, and what the open batches and this part will probably cost
        unpaid = state.with_status("creating", "open", "ended", "downloaded")
        unpaid = [*(other for other in unpaid if other.backend != "local"), part]
        total_usd = state.paid.cost_usd + state.unconfirmed_usd + estimate(unpaid, self._ledger).cost_usd
        self.over_budget = 0 < self._clean.max_cost_usd < total_usd
        return None if self.over_budget else part

    def _queue_limit(self) -> int:
        return queue_limit(self._clean, self._recipe, learned=self._ledger.state.queue_limit)

    def _check_retirement(self) -> None:
        """Warn of a model that will be switched off, and stop when a batch might still be running then."""
        model = self._recipe.model
        day = self._service.shutdown_date(model.id)
        if day is None:
            return
        left_days = (day - datetime.now(timezone.utc).date()).days
        successor = f"; its successor is `{model.successor}`" if model.successor else ""
        hint = f"set `clean.model` in furnclip.toml to another one{successor}"
        told = f"the model `{model.id}` is shut down on {day}"
        if left_days <= _BATCH_DAYS and not self._clean.allow_retiring_model:
            raise ConfigError(f"{told}, before a batch sent now is sure to end", hint=hint)
        if left_days < _WARN_DAYS:
            console.warn(f"{told}, in {left_days} days; {hint}")

    def _send(self, part: BatchPart) -> None:
        if part.status != "uploaded":
            self._upload(part)
        self._ledger.record("creating", part=part.number, at=time.time())
        part = self._ledger.state.parts[part.number]
        try:
            self._record_created(part, self._create(part), adopted=False)
        except UnsureError:
            self._find_created(part)
        except RefusedError as error:  # a definite no: wait, upload again, or stop
            if _is_file_missing(error):
                self._ledger.record("upload_lost", part=part.number)
                if part.uploads >= _LOOKUPS:
                    raise error.as_service_error() from None
                return
            wait_s = backoff_s(self._clean.retry_wait_s, part.refusals + 1)
            self._ledger.record("not_created", part=part.number, not_before=time.time() + wait_s)
            if error.status != 429 or error.account_problem():
                raise error.as_service_error() from None

    def _upload(self, part: BatchPart) -> None:
        ledger, path, filename = self._ledger, self._ledger.workspace.part(part.number), part.filename
        if sha256_of(path) != part.sha256:
            hint = "restore the file, or remove the folder `work/clean` to start again"
            raise JournalError(f"`{path}` was changed after it was planned", hint=hint)
        file_id: str | None = None
        if part.status == "uploading":  # a crash came between the upload and its note
            file_id = self._service.find_upload(filename, part.size_bytes)
        else:
            number = f"{part.number:04d}-{part.uploads + 1}"
            filename = f"furnclip-{ledger.state.run}-{number}-{part.sha256[:8]}.jsonl"
            ledger.record("uploading", part=part.number, filename=filename)
        file_id = file_id or self._service.upload(path, filename)
        ledger.record("uploaded", part=part.number, file_id=file_id)

    def _create(self, part: BatchPart) -> Batch:
        """Ask for the batch; a file that was just uploaded may take a moment to be found."""
        metadata = {**self._mark(part), "try": str(part.creations), "n": str(part.requests)}
        wait_s = min(1.0, self._clean.poll_interval_s)
        for tries in range(_FRESH_FILE_TRIES):
            try:
                return self._service.create(part.file_id, self._recipe.endpoint, metadata)
            except RefusedError as error:
                if not _is_file_missing(error) or tries == _FRESH_FILE_TRIES - 1:
                    raise
            time.sleep(wait_s * 2**tries)
        raise AssertionError("unreachable")

    def _find_created(self, part: BatchPart) -> None:
        """Adopt the batch of a part whose creation was not confirmed, if there is one."""
        for lookup in range(_LOOKUPS):
            if lookup:
                time.sleep(self._clean.reconcile_wait_s)
            self._settle_unknown_batches()
            if self._ledger.state.parts[part.number].status == "open":
                return
        self._ledger.record("not_created", part=part.number, not_before=0.0)

    def _settle_unknown_batches(self) -> None:
        """Take over batches of this run that the journal lost, as after a crash or a restored backup; and
        stop those whose requests are in another batch already."""
        state = self._ledger.state
        known = {batch_id for part in state.parts.values() for batch_id in part.batches}
        batches = self._service.list_batches()
        unknown = [batch for batch in batches if batch.id not in known and batch.status != "failed"]
        for part in state.parts.values():
            found = [batch for batch in unknown if self._is_of(batch, part)]
            # the one that is furthest along is kept, of equals the earliest
            found.sort(key=lambda batch: (_RANKS.get(batch.status, len(_RANKS)), batch.created_at))
            if found and part.status in (*UNSENT, "creating"):
                self._record_created(part, found.pop(0), adopted=True)
            elif not part.batch_id:
                continue
            for other in found:
                if other.status not in (*TERMINAL, "cancelling"):
                    console.warn(f"part {part.number} has a second batch `{other.id}`; it is cancelled")
                    self._service.cancel(other.id)

    def _record_created(self, part: BatchPart, batch: Batch, *, adopted: bool) -> None:
        facts = {"batch_id": batch.id, "status": batch.status, "at": float(batch.created_at)}
        self._ledger.record("created", part=part.number, **facts, adopted=adopted)

    def _is_of(self, batch: Batch, part: BatchPart) -> bool:
        """Whether a batch runs this part's requests, by what it is marked with or by its very file."""
        is_marked = self._mark(part).items() <= (batch.metadata or {}).items()
        return is_marked or bool(part.file_id and batch.input_file_id == part.file_id)

    def _mark(self, part: BatchPart) -> dict[str, str]:
        """The metadata by which a batch of this part is known again, down to its content."""
        return {"furnclip_run": self._ledger.state.run, "part": str(part.number), "sha256": part.sha256}


def _is_file_missing(error: RefusedError) -> bool:
    return error.status in (400, 404) and "file" in f"{error.code} {error.message}".lower()


def send_canary(
    ledger: CleaningLedger, service: BatchService, part: BatchPart, *, once_more: bool = False
) -> None:
    """Send it, unless that was done; `once_more`: also when an earlier one may have been paid for."""
    identity = ledger.recipe.identity
    if identity in ledger.state.canaries:
        return
    lost = [event for event in ledger.state.unanswered if event["recipe"] == identity]
    if once_more or not lost:
        with suppress(UnsureError):
            _ask_canary(ledger, service, part)
            return
        lost = [ledger.state.unanswered[-1]]
    price = f"about ${lost[-1]['cost_usd']:.6f}"
    console.warn(
        f"the reply to a trial request was lost, so it may have been billed ({price}); it is not sent again, "
        "and the first batch goes alone instead (`furnclip clean estimate --calibrate` sends another one)"
    )


def _ask_canary(ledger: CleaningLedger, service: BatchService, part: BatchPart) -> None:
    """Send a request that the service takes. One product may be at fault, three are not."""
    recipe, requests = ledger.recipe, list(ledger.workspace.read_index(part.number))
    places = sorted({0, len(requests) // 2, len(requests) - 1})
    refusal = RefusedError(0, "", "")
    for line in ledger.workspace.read_requests(part.number, [requests[place] for place in places]):
        prompt = recipe.overhead_tokens + line.image_tokens + line.text_tokens
        expected = recipe.model.usage((prompt, recipe.answer_tokens), batch=False)
        ledger.record("canary_asking", recipe=recipe.identity, **vars(expected))
        try:
            reply = service.ask(recipe.endpoint, json.loads(line.content)["body"])
        except RefusedError as error:
            ledger.record("canary_refused", recipe=recipe.identity)
            refusal = error
        else:
            _record_canary(ledger, line, reply)
            return
        if problem := refusal.account_problem():
            raise problem
        if refusal.status == 429:
            time.sleep(min(_BUSY_WAIT_S, ledger.config.clean.poll_interval_s))
    raise ServiceError(
        f"a trial request was refused (HTTP {refusal.status} {refusal.code}): {refusal.message}",
        hint=f"no batch was sent; check `clean.model` (now `{recipe.model.id}`) "
        "and `clean.effort` in furnclip.toml",
    )


def _record_canary(ledger: CleaningLedger, line: RequestLine, reply: dict[str, Any]) -> None:
    recipe = ledger.recipe
    outcome = classify({"response": {"status_code": 200, "body": reply}}, recipe.vocabulary)
    if outcome.kind != "cleaned":
        console.warn(f"the trial request was not answered well ({outcome.reason}: {outcome.detail})")
    usage = recipe.model.usage(usage_of(reply), batch=False)
    overhead = usage.prompt_tokens - line.image_tokens - line.text_tokens
    overhead = overhead if overhead > 0 else recipe.overhead_tokens
    ledger.record("canary", recipe=recipe.identity, overhead_tokens=overhead, **vars(usage))
    tokens = f"{usage.prompt_tokens} + {usage.completion_tokens} tokens"
    console.note(f"trial request: {tokens}, ${usage.cost_usd:.6f}")
