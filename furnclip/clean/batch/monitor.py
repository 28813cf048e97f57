"""`clean monitor`: watching batches to their end, fetching and judging what they give.

A batch counts as ended only when the service says so in a word we know; the rows that it has finished by
then are used, also of one that expired or was cancelled. Nothing here depends on the local clock.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from openai.types import Batch, BatchError

from furnclip import console
from furnclip.clean.batch.dispatch import Dispatcher
from furnclip.clean.batch.results import (
    backoff_s,
    calibrate,
    estimate,
    halt_on_same_error,
    merge,
    stop_if_halted,
)
from furnclip.clean.batch.service import TERMINAL, BatchService, OutageError, counts_of
from furnclip.clean.batch.state import BatchPart
from furnclip.clean.plan import Limits, cut_part, plan_retries
from furnclip.clean.workspace import CleaningLedger, PartRequest
from furnclip.errors import ServiceError
from furnclip.journal import Event, write_bytes

_LATE_ID_POLLS = 10
_MAX_CREATIONS = 3
_SURPRISE = 0.25  # share of the estimate
_MAX_OUTAGES = 20  # in a row
_MAX_INTERVALS = 10  # times the poll interval
_KNOWN = TERMINAL | {"validating", "in_progress", "finalizing", "cancelling"}


class Monitor:
    """Drives all parts to their end; `watch` returns when nothing is left to wait for."""

    def __init__(self, ledger: CleaningLedger, service: BatchService) -> None:
        self.ledger, self.service, self._clean = ledger, service, ledger.config.clean
        self._dispatcher = Dispatcher(ledger, service)
        self._polled: dict[int, Batch] = {}  # part number -> its batch as it was seen last
        self._late = Counter[int]()  # polls of a part whose file ids are not there yet
        self._outages = 0  # in a row

    def watch(self) -> None:
        """Send, poll, fetch and retry until every part is merged or something has to be decided."""
        self._dispatcher.reconcile()
        interval_s = self._clean.poll_interval_s
        with console.progress("rows answered", total=None) as meter:
            while True:
                before = self.ledger.state
                self._receive()
                self._dispatcher.send()
                has_moved = self.ledger.state is not before
                if has_moved:
                    self._dispatcher.stop_second_batches()
                if not self._dispatcher.open() and not self._outages:
                    if not self._dispatcher.waiting() and not plan_retries(self.ledger):
                        return
                    self._stop_if_blocked()
                interval_s = self._clean.poll_interval_s if has_moved else interval_s * 1.5
                interval_s = min(interval_s, self._clean.poll_interval_s * _MAX_INTERVALS)
                if not has_moved:
                    meter.show(*rows_answered(self.ledger, self._polled))
                    is_expected = self._dispatcher.open() or self._outages
                    waiting = [] if is_expected else self._dispatcher.waiting()
                    left_s = waiting[0].not_before - time.time() if waiting else interval_s
                    time.sleep(max(0.01, min(interval_s, left_s)))

    def _stop_if_blocked(self) -> None:
        """Nothing is open and something waits: say so when it waits for the user."""
        stop_if_halted(self.ledger)
        if (waiting := self._dispatcher.waiting()) and self._dispatcher.over_budget:
            raise ServiceError(
                f"the limit of ${self._clean.max_cost_usd:g} is reached: "
                f"${self.ledger.state.paid.cost_usd:.4f} paid, "
                f"{sum(part.requests for part in waiting)} rows not sent",
                hint="raise `clean.max_cost_usd`, or write what is there with "
                "`furnclip clean finalize --partial`",
            )

    def _receive(self) -> None:
        """Poll the batches and fetch what has ended. An outage is waited out: it may take hours."""
        outage: OutageError | None = None
        for part in self.ledger.state.with_status("open", "ended"):
            try:
                if part.status == "open":
                    self._poll(part, self.service.get(part.batch_id))
                if self.ledger.state.parts[part.number].status == "ended":
                    self._download(self.ledger.state.parts[part.number])
            except OutageError as error:  # other parts may still come
                outage = error
        for part in self.ledger.state.with_status("downloaded", backend="openai"):
            self._merge(part)
        self._outages = self._outages + 1 if outage else 0
        if outage and self._outages > _MAX_OUTAGES:
            raise outage
        if outage and self._outages == 1:
            console.warn(f"{outage.message}; retrying")

    def _poll(self, part: BatchPart, batch: Batch) -> None:
        before = self._polled.get(part.number)
        self._polled[part.number] = batch
        if before is None or before.status != batch.status:
            total, completed, failed = counts_of(batch)
            console.note(f"part {part.number}: {batch.status}, {completed + failed} of {total} done")
            if batch.status not in _KNOWN:
                console.warn(f"batch `{batch.id}` has the unknown status `{batch.status}`; still waiting")
        if batch.status == "failed":
            self._failed(part, batch)
        elif batch.status in TERMINAL:
            self._ended(part, batch)
        elif batch.status != part.batch_status:
            self.ledger.record("seen", part=part.number, status=batch.status, counts=list(counts_of(batch)))

    def _ended(self, part: BatchPart, batch: Batch) -> None:
        _, completed, failed = counts_of(batch)
        missing = (completed and not batch.output_file_id) or (failed and not batch.error_file_id)
        if missing and self._late[part.number] < _LATE_ID_POLLS:
            self._late[part.number] += 1  # the file ids may come in a little after the status
            return
        self.ledger.record(
            "ended",
            part=part.number,
            status=batch.status,
            output_file_id=batch.output_file_id or "",
            error_file_id=batch.error_file_id or "",
            counts=list(counts_of(batch)),
            billed=[batch.usage.input_tokens, batch.usage.output_tokens] if batch.usage else [0, 0],
        )

    def _failed(self, part: BatchPart, batch: Batch) -> None:
        """Validation failed: nothing ran and nothing is billed. What next depends on why."""
        errors = (batch.errors.data if batch.errors else None) or []
        reasons = [f"{error.code or ''}: {error.message or ''}" for error in errors]
        text = "; ".join(reasons[:3]) or "no reason given"
        codes = {error.code for error in errors}
        bad_lines = {error.line for error in errors if error.line}
        wait_s = backoff_s(self._clean.retry_wait_s, part.refusals + 1)
        says_full = any("enqueued token limit" in reason.lower() for reason in reasons)
        if says_full or "token_limit_exceeded" in codes:
            if limit := re.search(r"limit:\s*([\d,]+)", text, re.IGNORECASE):
                self.ledger.record("queue_limit", limit=int(limit.group(1).replace(",", "")))
            self.ledger.record("not_created", part=part.number, not_before=time.time() + wait_s)
            console.note(f"part {part.number} waits: the queue for `{self._clean.model}` is full")
        elif bad_lines and "model_not_found" not in codes:
            self._drop_bad_lines(part, errors)
            halt_on_same_error(self.ledger, part, len(bad_lines), f"requests are invalid ({text})")
        elif part.creations < _MAX_CREATIONS and "model_not_found" not in codes:
            # the first time the file may just not have been found; then it is uploaded again
            if part.creations == 1:
                self.ledger.record("not_created", part=part.number, not_before=time.time() + wait_s)
            else:
                self.ledger.record("upload_lost", part=part.number)
        else:
            self.ledger.record("not_created", part=part.number, not_before=0.0)
            self.ledger.record("halted", reason=f"the batch of part {part.number} failed ({text})")

    def _drop_bad_lines(self, part: BatchPart, errors: Sequence[BatchError]) -> None:
        bad = {error.line - 1: error for error in reversed(errors) if error.line and error.line > 0}
        good, rejected = list[PartRequest](), list[Event]()
        for place, request in enumerate(self.ledger.workspace.read_index(part.number)):
            if error := bad.get(place):
                why = {"code": error.code or "", "message": error.message or ""}
                rejected.append({"custom_id": request.custom_id, **why})
            else:
                good.append(request)
        limits = Limits(part.requests, part.size_bytes + 1, part.tokens + 1, 0)
        cut_part(self.ledger, part, limits, requests=good, rejected=rejected)

    def _merge(self, part: BatchPart) -> None:
        expected = calibrate(self.ledger).prompt_tokens(part)
        merge(self.ledger, part)
        billed = self.ledger.state.parts[part.number].usage.prompt_tokens
        if part.counts[1] == part.requests and abs(billed - expected) > _SURPRISE * expected:
            # prices and limits would be off as well
            console.warn(
                f"part {part.number} was billed {billed:,} input tokens, {expected:,} were expected; "
                "check `image_multiplier` of the model"
            )

    def _download(self, part: BatchPart) -> None:
        output, errors, _ = self.ledger.workspace.results(part.number)
        results, is_lost = dict[str, str](), False
        for file_id, path in ((part.output_file_id, output), (part.error_file_id, errors)):
            content = self.service.download(file_id) if file_id else b""
            if content is None:
                is_lost = True
                price = f"asking again costs about ${estimate([part], self.ledger).cost_usd:.4f}"
                what = f"the result file `{file_id}` of part {part.number}"
                self.ledger.record("halted", reason=f"{what} is not kept by the service any more; {price}")
            elif file_id:
                write_bytes(path, content)
                results[path.name] = hashlib.sha256(content).hexdigest()
        self.ledger.record("downloaded", part=part.number, results=results)
        if is_lost:
            self.ledger.record("results_lost", part=part.number)


def rows_answered(ledger: CleaningLedger, polled: Mapping[int, Batch]) -> tuple[int, int]:
    """How many rows are answered, by the batches as they were seen last, and how many were planned."""
    parts = [part for part in ledger.state.current_parts if part.backend != "local"]
    counts = [counts_of(polled[part.number]) if part.number in polled else part.counts for part in parts]
    return sum(completed + failed for _, completed, failed in counts), sum(part.requests for part in parts)
