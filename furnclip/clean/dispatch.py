"""Sending parts: checks before money is spent, uploads, batches, and finding out after a crash.

In: planned parts. Out: open batches, every one of them journalled before it was asked for and marked with
run, part and try in its metadata. When the reply to a creation is lost, the service's list is read until
it is certain enough that there is no such batch; only then is another one asked for.
"""

from __future__ import annotations

import time
from datetime import date, datetime, timedelta, timezone

from furnclip import console
from furnclip.clean import estimate
from furnclip.clean.again import backoff_s, cut_smaller
from furnclip.clean.canary import send_canary
from furnclip.clean.ledger import Ledger, key_print
from furnclip.clean.openai import TERMINAL, Batch, BatchService, RefusedError, UnsureError, account_problem
from furnclip.clean.parts import Limits
from furnclip.clean.plan import queue_limit
from furnclip.clean.requests import Recipe
from furnclip.clean.state import SENT, UNSENT, Part
from furnclip.clean.workspace import file_digest
from furnclip.errors import ConfigError, JournalError

_WARN_DAYS = 30
_BATCH_DAYS = 2  # a batch may take 24 h; the other day is for clocks and time zones
_LOOKS = 3
_FRESH_FILE_TRIES = 6  # with waits of 1, 2, 4, 8 and 16 s
_FURTHEST = ("completed", "finalizing", "in_progress", "validating")


class Dispatcher:
    """Sends waiting parts, as far as limits, budget and the service allow."""

    def __init__(self, ledger: Ledger, service: BatchService, recipe: Recipe) -> None:
        self._ledger = ledger
        self._service = service
        self._recipe = recipe
        self._clean = ledger.config.clean
        self._checked = False
        self.over_budget = False

    def waiting(self) -> list[Part]:
        """Parts that still have to be sent."""
        return [part for part in self._ledger.state.with_status(*UNSENT) if part.backend == "openai"]

    def open(self) -> list[Part]:
        return [part for part in self._ledger.state.with_status(*SENT) if part.backend == "openai"]

    def reconcile(self) -> None:
        """Settle what a crash or a lost reply left open, before anything new is sent."""
        now_print = key_print(self._ledger.config, self._ledger.state.run)
        if self.open() and self._ledger.state.key_print not in ("", now_print):
            console.warn("the batches were sent with another API key; if they cannot be found, use that one")
        for part in self._ledger.state.with_status("creating"):
            self._find_created(part)
        if self.waiting() or self.open():
            self._settle_strays()

    def stop_second_batches(self) -> None:
        """Look again where a batch was asked for twice: the list may have shown the first one late."""
        if any(part.creations > 1 for part in self.open()):
            self._settle_strays()

    def send(self) -> int:
        """Send what may be sent now; how many batches were created."""
        created = 0
        while (part := self._next()) is not None:
            self._check_once(part)
            if self._too_large(part):
                continue
            created += self._send(part)
        return created

    # --- what may be sent

    def _next(self) -> Part | None:
        """The first waiting part, unless a limit says to wait."""
        waiting, running = self.waiting(), self.open()
        if not waiting or self._ledger.state.halted or len(running) >= self._clean.max_concurrent_batches:
            return None
        part = waiting[0]
        if part.not_before > time.time():
            return None
        calibration = estimate.calibrate(self._ledger.state, self._recipe)
        queued = sum(estimate.prompt_tokens(other, calibration) for other in [*running, part])
        if running and queued > self._queue_limit():
            return None
        if calibration.basis == "table" and any(other.identity == part.identity for other in running):
            return None  # the canary's reply was lost: the first batch goes alone in its place
        self.over_budget = self._budget_left() < self._cost(part)
        return None if self.over_budget else part

    def _queue_limit(self) -> int:
        return queue_limit(self._clean, self._recipe, learned=self._ledger.state.queue_limit)

    def _budget_left(self) -> float:
        if not self._clean.max_cost_usd:
            return float("inf")
        return self._clean.max_cost_usd - estimate.committed_usd(self._ledger.state, self._recipe, batch=True)

    def _cost(self, part: Part) -> float:
        return estimate.estimate([part], self._ledger.state, self._recipe, batch=True).cost_usd

    def _too_large(self, part: Part) -> bool:
        """Cut a part that the queue will never take, now that its real limit is known."""
        calibration = estimate.calibrate(self._ledger.state, self._recipe)
        limit = self._queue_limit()
        if part.requests == 1 or estimate.prompt_tokens(part, calibration) <= limit:
            return False
        overhead = round(calibration.overhead_tokens)
        cut_smaller(self._ledger, part, Limits(self._clean.part_requests, part.size_bytes, limit, overhead))
        return True

    # --- checks before the first batch of a process

    def _check_once(self, part: Part) -> None:
        if self._checked:
            return
        self._check_retirement()
        send_canary(self._ledger, self._service, self._recipe, part)
        self._checked = True

    def _check_retirement(self) -> None:
        """Warn of a model that will be switched off, and stop when a batch might still be running then."""
        model = self._recipe.model
        day = self._service.shutdown_date(model.id)
        if day is None:
            return
        left = day - _today()
        successor = f"; its successor is `{model.successor}`" if model.successor else ""
        if left <= timedelta(days=_BATCH_DAYS) and not self._clean.allow_retiring_model:
            raise ConfigError(
                f"the model `{model.id}` is shut down on {day}, before a batch sent now is sure to end",
                hint=f"set `clean.model` in furnclip.toml to another one{successor}",
            )
        if left < timedelta(days=_WARN_DAYS):
            console.warn(
                f"the model `{model.id}` is shut down on {day}, in {left.days} days; "
                f"`clean.model` in furnclip.toml chooses another one{successor}"
            )

    # --- one part

    def _send(self, part: Part) -> bool:
        """Upload and create; whether there is a batch now."""
        if part.status != "uploaded":
            self._upload(part)
        part = self._part(part)
        at = time.time()
        self._ledger.record("creating", part=part.number, at=at)
        try:
            batch = self._create(self._part(part))
        except UnsureError:
            return self._find_created(self._part(part))
        except RefusedError as error:
            self._not_created(part, error)
            return False
        self._created(part, batch, adopted=False)
        return True

    def _upload(self, part: Part) -> None:
        ledger = self._ledger
        path = ledger.workspace.part(part.number)
        if file_digest(path) != part.sha256:
            raise JournalError(
                f"`{path}` was changed after it was planned",
                hint="restore the file, or remove the folder `work/clean` to start again",
            )
        file_id: str | None = None
        if part.status == "uploading":  # a crash came between the upload and its note
            file_id = self._service.find_upload(part.filename, part.size_bytes)
        else:
            number = f"{part.number:04d}-{part.uploads + 1}"
            filename = f"furnclip-{ledger.state.run}-{number}-{part.sha256[:8]}.jsonl"
            ledger.record("uploading", part=part.number, filename=filename)
        part = self._part(part)
        if file_id is None:
            file_id = self._service.upload(path, part.filename)
        ledger.record("uploaded", part=part.number, file_id=file_id)

    def _create(self, part: Part) -> Batch:
        """Ask for the batch; a file that was just uploaded may take a moment to be found."""
        metadata = {**self._mark(part), "try": str(part.creations), "n": str(part.requests)}
        wait_s = min(1.0, self._clean.poll_interval_s)
        for _ in range(_FRESH_FILE_TRIES - 1):
            try:
                return self._service.create(part.file_id, self._recipe.endpoint, metadata)
            except RefusedError as error:
                if not _file_is_missing(error):
                    raise
            time.sleep(wait_s)
            wait_s *= 2
        return self._service.create(part.file_id, self._recipe.endpoint, metadata)

    def _not_created(self, part: Part, error: RefusedError) -> None:
        """A definite no: note it, then wait, upload again, or stop."""
        strikes = part.strikes + 1
        if _file_is_missing(error):
            self._ledger.record("upload_lost", part=part.number)
            if part.uploads >= _LOOKS:
                raise error.as_service_error()
            return
        wait_s = backoff_s(self._clean.retry_wait_s, strikes)
        self._ledger.record("not_created", part=part.number, not_before=time.time() + wait_s)
        problem = account_problem(error)
        if problem is not None:
            raise problem
        if error.status != 429:
            raise error.as_service_error()

    def _created(self, part: Part, batch: Batch, *, adopted: bool) -> None:
        self._ledger.record(
            "created",
            part=part.number,
            batch_id=batch.id,
            status=batch.status,
            at=batch.created_at,
            adopted=adopted,
        )

    def _find_created(self, part: Part) -> bool:
        """Look for the batch of a part whose creation was not confirmed; adopt it if there is one."""
        for look in range(_LOOKS):
            if look:
                time.sleep(self._clean.reconcile_wait_s)
            listed = self._service.find_batches(self._ledger.state.run, file_id=part.file_id)
            found = [
                batch for batch in listed if self._is_of(batch, part) and batch.id not in part.old_batches
            ]
            if found:
                self._adopt(part, found)
                return True
        self._ledger.record("not_created", part=part.number, not_before=0.0)
        return False

    def _settle_strays(self) -> None:
        """Take over batches of this run that the journal lost, as after a restored backup; and stop those
        whose requests are in another batch already."""
        state = self._ledger.state
        known = {batch_id for part in state.parts.values() for batch_id in (part.batch_id, *part.old_batches)}
        strays = [
            batch
            for batch in self._service.find_batches(state.run)
            if batch.id not in known and batch.status != "failed"
        ]
        for part in state.parts.values():
            found = [batch for batch in strays if self._is_of(batch, part)]
            if found and part.status in UNSENT:
                self._adopt(part, found)
            elif part.batch_id:
                self._stop_others(part, found)

    def _is_of(self, batch: Batch, part: Part) -> bool:
        """Whether a batch runs this part's requests, by what it is marked with or by its very file."""
        is_marked = self._mark(part).items() <= batch.metadata.items()
        return is_marked or bool(part.file_id and batch.input_file_id == part.file_id)

    def _adopt(self, part: Part, found: list[Batch]) -> None:
        """Keep the batch that is furthest along, of equals the earliest; stop the others."""
        ranked = sorted(found, key=lambda batch: (_rank(batch), batch.created_at))
        self._stop_others(part, ranked[1:])
        self._created(part, ranked[0], adopted=True)

    def _stop_others(self, part: Part, others: list[Batch]) -> None:
        for other in others:
            if other.status not in (*TERMINAL, "cancelling"):
                console.warn(f"part {part.number} has a second batch `{other.id}`; it is cancelled")
                self._service.cancel(other.id)

    def _mark(self, part: Part) -> dict[str, str]:
        """The metadata by which a batch of this part is known again, down to its content."""
        return {
            "furnclip_run": self._ledger.state.run,
            "part": str(part.number),
            "sha256": part.sha256,
        }

    def _part(self, part: Part) -> Part:
        """The part as the journal knows it now."""
        return self._ledger.state.parts[part.number]


def _rank(batch: Batch) -> int:
    return _FURTHEST.index(batch.status) if batch.status in _FURTHEST else len(_FURTHEST)


def _file_is_missing(error: RefusedError) -> bool:
    return error.status in (400, 404) and "file" in f"{error.code} {error.message}".lower()


def _today() -> date:
    return datetime.now(timezone.utc).date()
