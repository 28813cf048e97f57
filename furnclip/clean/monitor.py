"""`clean monitor`: watching batches to their end, fetching and judging what they give.

In: open batches. Out: `results/`, journalled outcomes, and new parts for rows that have to be retried.
A batch counts as ended only when the service says so in a word we know; whatever finished rows it has by
then are used, be it completed, expired or cancelled. Nothing here depends on the local clock being right.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter

from furnclip import console
from furnclip.clean import estimate
from furnclip.clean.again import ask_again, backoff_s, without_bad_lines
from furnclip.clean.answers import part_outcomes
from furnclip.clean.board import Board
from furnclip.clean.dispatch import Dispatcher
from furnclip.clean.ledger import Ledger
from furnclip.clean.merge import SAME_ERROR_ROWS, SAME_ERROR_SHARE, billed_tokens, model_of, record_merged
from furnclip.clean.openai import TERMINAL, Batch, BatchService, OutageError
from furnclip.clean.requests import Recipe
from furnclip.clean.state import Part
from furnclip.errors import ServiceError
from furnclip.journal import write_bytes

_LATE_ID_LOOKS = 10
_MAX_CREATIONS = 3
_SURPRISE = 0.25  # share of the estimate
_MAX_FAILED_POLLS = 20  # failed polls in a row
_MAX_INTERVALS = 10  # times the poll interval
_KNOWN = TERMINAL | {"validating", "in_progress", "finalizing", "cancelling"}


class Monitor:
    """Drives all parts to their end; `watch` returns when nothing is left to wait for."""

    def __init__(self, ledger: Ledger, service: BatchService, recipe: Recipe) -> None:
        self.ledger = ledger
        self.service = service
        self.recipe = recipe
        self._clean = ledger.config.clean
        self._dispatcher = Dispatcher(ledger, service, recipe)
        self._late: Counter[int] = Counter()  # polls of a part whose file ids are not there yet
        self._odd: set[str] = set()
        self._outages = 0  # failed polls in a row

    def watch(self) -> None:
        """Send, poll, fetch and ask again until every part is merged or something has to be decided."""
        self._dispatcher.reconcile()
        interval_s = self._clean.poll_interval_s
        with Board(self.ledger, self.recipe) as board:
            while True:
                moved = self._step(board)
                if moved:
                    self._dispatcher.stop_second_batches()
                if not self._dispatcher.open():
                    if not self._dispatcher.waiting() and not ask_again(self.ledger, self.recipe):
                        return
                    self._stop_if_blocked()
                interval_s = self._clean.poll_interval_s if moved else interval_s * 1.5
                interval_s = min(interval_s, self._clean.poll_interval_s * _MAX_INTERVALS)
                if not moved:
                    board.show()
                    time.sleep(self._pause_s(interval_s))

    def _step(self, board: Board) -> bool:
        """One round; whether anything changed."""
        before = self.ledger.state
        self._fetch_ended()
        self._dispatcher.send()
        for part in self.ledger.state.with_status("open"):
            self._look(part, board)
        self._fetch_ended()
        return self.ledger.state is not before

    def _pause_s(self, interval_s: float) -> float:
        """Until the next look, or until a waiting part may be sent if nothing is open."""
        waiting = self._dispatcher.waiting()
        if self._dispatcher.open() or not waiting:
            return interval_s
        return max(0.01, min(backoff_s(interval_s, 1), waiting[0].not_before - time.time()))

    def _stop_if_blocked(self) -> None:
        """Nothing is open and something waits: say so when it waits for the user."""
        state, waiting = self.ledger.state, self._dispatcher.waiting()
        rows = sum(part.requests for part in waiting)
        if state.halted:
            raise ServiceError(
                f"sending stopped: {state.halted}",
                hint="fix the cause, then `furnclip clean run --ignore-errors` sends the rest "
                f"({rows} rows wait)",
            )
        if waiting and self._dispatcher.over_budget:
            raise ServiceError(
                f"the limit of ${self._clean.max_cost_usd:g} is reached: ${state.paid.cost_usd:.4f} paid, "
                f"{rows} rows not sent",
                hint="raise `clean.max_cost_usd`, or write what is there with "
                "`furnclip clean finalize --partial`",
            )

    # --- looking

    def _look(self, part: Part, board: Board) -> None:
        batch = self._seen(part)
        if batch is None:
            return
        board.saw(part.number, batch)
        if batch.status not in _KNOWN and batch.status not in self._odd:
            self._odd.add(batch.status)
            console.warn(f"batch `{batch.id}` has the unknown status `{batch.status}`; still waiting")
        if batch.status == "failed":
            self._failed(part, batch)
        elif batch.status in TERMINAL:
            self._ended(part, batch)
        elif batch.status != part.batch_status:
            self.ledger.record("seen", part=part.number, status=batch.status, counts=list(batch.counts))

    def _seen(self, part: Part) -> Batch | None:
        """The batch as it is now; None while the service is out of order, which may take hours."""
        try:
            batch = self.service.get(part.batch_id)
        except OutageError as error:
            self._outages += 1
            if self._outages == 1:
                console.warn(f"{error.message}; retrying")
            if self._outages > _MAX_FAILED_POLLS:
                raise
            return None
        self._outages = 0
        return batch

    def _ended(self, part: Part, batch: Batch) -> None:
        _, completed, failed = batch.counts
        missing = (completed and not batch.output_file_id) or (failed and not batch.error_file_id)
        if missing and self._late[part.number] < _LATE_ID_LOOKS:
            self._late[part.number] += 1  # the file ids may come in a little after the status
            return
        self.ledger.record(
            "ended",
            part=part.number,
            status=batch.status,
            output_file_id=batch.output_file_id,
            error_file_id=batch.error_file_id,
            counts=list(batch.counts),
            billed=list(batch.usage),
        )

    def _failed(self, part: Part, batch: Batch) -> None:
        """Validation failed: nothing ran and nothing is billed. What next depends on why."""
        text = "; ".join(f"{error.code}: {error.message}" for error in batch.errors[:3]) or "no reason given"
        codes = {error.code for error in batch.errors}
        wait_s = backoff_s(self._clean.retry_wait_s, part.strikes + 1)
        if _is_queue_limit(batch):
            if limit := _named_limit(text):
                self.ledger.record("queue_limit", limit=limit)
            self.ledger.record("not_created", part=part.number, not_before=time.time() + wait_s)
            console.note(f"part {part.number} waits: the queue for `{self.recipe.model.id}` is full")
        elif any(error.line for error in batch.errors) and "model_not_found" not in codes:
            self._drop_lines(part, batch, text)
        elif part.creations < _MAX_CREATIONS and "model_not_found" not in codes:
            # the first time the file may just not have been found; then it is uploaded again
            if part.creations == 1:
                self.ledger.record("not_created", part=part.number, not_before=time.time() + wait_s)
            else:
                self.ledger.record("upload_lost", part=part.number)
        else:
            self.ledger.record("not_created", part=part.number, not_before=0.0)
            self.ledger.record("halted", reason=f"the batch of part {part.number} failed ({text})")

    def _drop_lines(self, part: Part, batch: Batch, text: str) -> None:
        bad = len({error.line for error in batch.errors if error.line})
        without_bad_lines(self.ledger, part, batch.errors)
        if bad >= SAME_ERROR_ROWS and bad > SAME_ERROR_SHARE * part.requests:
            self.ledger.record("halted", reason=f"{bad} of {part.requests} requests are invalid ({text})")

    # --- fetching

    def _fetch_ended(self) -> None:
        for part in self.ledger.state.with_status("ended"):
            self._download(part)
        for part in self.ledger.state.with_status("downloaded"):
            if part.backend != "local":
                self._merge(part)

    def _download(self, part: Part) -> None:
        workspace = self.ledger.workspace
        files = (
            (part.output_file_id, workspace.output(part.number)),
            (part.error_file_id, workspace.errors(part.number)),
        )
        results: dict[str, str] = {}
        for file_id, path in files:
            if not file_id:
                continue
            content = self.service.download(file_id)
            if content is None:
                self._gone(part, file_id)
                continue
            write_bytes(path, content)
            results[path.name] = hashlib.sha256(content).hexdigest()
        self.ledger.record("downloaded", part=part.number, results=results)
        if len(results) < sum(bool(file_id) for file_id, _ in files):
            self.ledger.record("results_lost", part=part.number)

    def _gone(self, part: Part, file_id: str) -> None:
        price = estimate.estimate([part], self.ledger.state, self.recipe, batch=True)
        self.ledger.record(
            "halted",
            reason=f"the result file `{file_id}` of part {part.number} is not kept by the service any more; "
            f"asking again costs about ${price.cost_usd:.4f}",
        )

    def _merge(self, part: Part) -> None:
        outcomes = part_outcomes(self.ledger.workspace, part, self.recipe.vocabulary)
        billed = part.billed if any(part.billed) else billed_tokens(outcomes)
        self._compare(part, billed[0])
        model = model_of(part, self._clean)
        record_merged(self.ledger, part, outcomes, estimate.usage(billed, model, batch=True))

    def _compare(self, part: Part, prompt_tokens: int) -> None:
        """Say so when the service counts quite differently: prices and limits would be off as well."""
        calibration = estimate.calibrate(self.ledger.state, self.recipe)
        expected = estimate.prompt_tokens(part, calibration)
        if part.counts[1] == part.requests and abs(prompt_tokens - expected) > _SURPRISE * expected:
            console.warn(
                f"part {part.number} was billed {prompt_tokens:,} input tokens, {expected:,} were expected; "
                "check `image_multiplier` of the model"
            )


def _is_queue_limit(batch: Batch) -> bool:
    return any(
        error.code == "token_limit_exceeded" or "enqueued token limit" in error.message.lower()
        for error in batch.errors
    )


def _named_limit(text: str) -> int:
    found = re.search(r"limit:\s*([\d,]+)", text, re.IGNORECASE)
    return int(found.group(1).replace(",", "")) if found else 0
