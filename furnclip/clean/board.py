"""The live table of `clean monitor`: part, status, done, tokens, cost, age, time left.

In: the ledger and the batches as last seen. Out: a table on stderr that redraws itself in a terminal, and
one plain line for each change elsewhere. Times left are guesses from the rate so far.
"""

from __future__ import annotations

import time

from furnclip import console
from furnclip.clean import estimate
from furnclip.clean.ledger import Ledger
from furnclip.clean.openai import Batch
from furnclip.clean.requests import Recipe
from furnclip.clean.state import Part

COLUMNS = ("part", "status", "done", "tokens", "cost", "age", "left")


class Board:
    """Shows where the parts stand while a block runs."""

    def __init__(self, ledger: Ledger, recipe: Recipe) -> None:
        from rich.live import Live

        self._ledger = ledger
        self._recipe = recipe
        self._seen: dict[int, Batch] = {}
        self._said: dict[int, str] = {}
        self._is_live = console.stderr().is_terminal
        self._live = Live(console=console.stderr(), auto_refresh=False, transient=True)

    def __enter__(self) -> Board:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._is_live:
            self._live.stop()

    def saw(self, number: int, batch: Batch) -> None:
        self._seen[number] = batch
        if not self._is_live and self._said.get(number) != batch.status:
            self._said[number] = batch.status
            total, completed, failed = batch.counts
            console.note(f"part {number}: {batch.status}, {completed + failed} of {total} done")

    def show(self) -> None:
        """Draw the table again."""
        if self._is_live:
            self._live.update(console.table(COLUMNS, self.rows()), refresh=True)

    def rows(self) -> list[tuple[object, ...]]:
        """The table's cells."""
        return [
            self._row(part)
            for part in sorted(self._ledger.state.parts.values(), key=lambda part: part.number)
            if part.status not in ("dropped", "replaced") and part.backend != "local"
        ]

    def _row(self, part: Part) -> tuple[object, ...]:
        batch = self._seen.get(part.number)
        total, completed, failed = batch.counts if batch else part.counts
        done = completed + failed
        calibration = estimate.calibrate(self._ledger.state, self._recipe)
        tokens = part.usage.prompt_tokens or estimate.prompt_tokens(part, calibration)
        cost = part.usage.cost_usd
        if part.status != "merged":
            cost = estimate.estimate([part], self._ledger.state, self._recipe, batch=True).cost_usd
        began = batch.created_at if batch else 0.0
        age_s = time.time() - began if began and part.status == "open" else None
        left_s = _left_s(batch, done, total) if part.status == "open" else None
        status = part.batch_status if part.status == "open" else part.status
        return (
            part.number,
            status,
            f"{done}/{total or part.requests}",
            f"{tokens:,}",
            f"${cost:.4f}",
            duration(age_s),
            duration(left_s),
        )


def _left_s(batch: Batch | None, done: int, total: int) -> float | None:
    """Seconds to go at the rate so far; None while there is no rate."""
    if batch is None or not done or not batch.in_progress_at:
        return None
    elapsed_s = max(0.0, time.time() - batch.in_progress_at)
    return elapsed_s / done * (total - done)


def duration(seconds: float | None) -> str:
    """`3:05:07`, or a dash when it is not known."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
