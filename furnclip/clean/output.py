"""`clean finalize` and `clean review`: results -> `cleaned.csv` and `rejected.csv`, and a look at them.

In: the raw catalogue, `rows.jsonl` and all results. Out: every selected row in exactly one of the two
files, raw columns first and in their order, then the cleaned fields; a summary by reason. A raw column
that has the name of a cleaned one is kept as `raw_NAME`. Rows that are still pending stop it, unless
the user wants a partial result. A review shows a few rows, raw beside cleaned, and writes one contact sheet,
`work/clean/review.jpg`.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from furnclip.catalogue import (
    ATTRIBUTES,
    CLEAN_COLUMNS,
    REJECT_COLUMNS,
    Product,
    Rejection,
    SheetWriter,
    content_hash,
    find_images,
    read_products,
    read_records,
    renamed_column,
)
from furnclip.clean import offline
from furnclip.clean.batch.results import Outcome, collect
from furnclip.clean.batch.state import State
from furnclip.clean.offline.titles import find_brands, plain_title
from furnclip.clean.prompt import Vocabulary
from furnclip.clean.workspace import (
    CleaningLedger,
    check_finished,
    check_results,
    check_rows,
    file_digest,
    repair_indexes,
)
from furnclip.config import Config
from furnclip.errors import InputError, MissingStageError, ServiceError
from furnclip.images import BrokenImage, contact_sheet, encode_jpeg, open_image
from furnclip.journal import Event, replacing, write_bytes

_REVIEW_CELL_PX = 220
_REVIEW_COLUMNS = 4
_REVIEW_QUALITY = 90


@dataclass(frozen=True)
class CleaningSummary:
    """What `finalize` wrote, in rows."""

    rows: int
    cleaned: int
    rejected: int
    pending: int
    reasons: Counter[str]
    paid_usd: float
    unconfirmed_usd: float
    prompt_tokens: int
    completion_tokens: int
    was_done: bool


def finalize(ledger: CleaningLedger, *, partial: bool) -> CleaningSummary:
    """Write both files. Raises `ServiceError` when rows are unaccounted for and `partial` is off."""
    clean, paths, state = ledger.config.clean, ledger.config.paths, ledger.state
    prepared = check_rows(ledger)
    check_results(ledger)
    repair_indexes(ledger)
    if prepared["catalogue_sha256"] != file_digest(paths.products):
        raise InputError(
            f"`{paths.products}` was changed after it was prepared",
            hint="run `furnclip clean run`: unchanged rows are not asked again",
        )
    # changes when another result file counts or a setting that shapes the output changes
    counted = [part.number for part in state.with_status("downloaded", "merged", "replaced")]
    facts = (prepared["rows_sha256"], counted, clean.fallback, clean.max_attempts)
    fingerprint, done = content_hash(repr(facts)), state.finalized
    are_there = ledger.workspace.cleaned.is_file() and ledger.workspace.rejected.is_file()
    was_done = done is not None and done["fingerprint"] == fingerprint and are_there
    if done is None or not was_done:
        done = _write_files(ledger, partial=partial)
        ledger.record("finalized", fingerprint=fingerprint, **done)
    counts = {name: done[name] for name in ("rows", "cleaned", "rejected", "pending")}
    return CleaningSummary(**counts, reasons=Counter(done["reasons"]), was_done=was_done, **bill(state))


def bill(state: State) -> Event:
    """What the service really billed, and perhaps billed."""
    return {
        "paid_usd": round(state.paid.cost_usd, 8),
        "unconfirmed_usd": round(state.unconfirmed_usd, 8),
        "prompt_tokens": state.paid.prompt_tokens,
        "completion_tokens": state.paid.completion_tokens,
    }


def _write_files(ledger: CleaningLedger, *, partial: bool) -> Event:
    """Both files, or neither: an error in here leaves the old ones as they were; counts of the rows."""
    counts = dict.fromkeys(("rows", "cleaned", "rejected", "pending"), 0)
    reasons: Counter[str] = Counter()
    columns = read_records(ledger.config.paths.products)[0]
    header = [renamed_column(name) for name in columns]
    with ExitStack() as stack:
        cleaned, rejected = (
            SheetWriter(stack.enter_context(replacing(path)))
            for path in (ledger.workspace.cleaned, ledger.workspace.rejected)
        )
        cleaned.write_row([*header, *CLEAN_COLUMNS])
        rejected.write_row([*header, *REJECT_COLUMNS])
        for product, outcome in _outcomes(ledger):
            raw = [product.fields.get(name, "") for name in columns]
            counts["rows"] += 1
            counts[outcome.kind if outcome else "pending"] += 1
            if outcome and outcome.kind == "cleaned":
                cleaned.write_row([*raw, *outcome.values, outcome.source])
            elif outcome:
                reasons[outcome.reason] += 1
                rejected.write_row([*raw, outcome.reason, outcome.detail])
        if counts["pending"] and not partial:
            raise ServiceError(
                f"{counts['pending']} rows have no answer yet",
                hint="run `furnclip clean run` to get them, or add `--partial` to write what is there",
            )
    return {**counts, "reasons": dict(sorted(reasons.items()))}


def _outcomes(ledger: CleaningLedger) -> Iterator[tuple[Product | Rejection, Outcome | None]]:
    """Each selected row with what became of it, None while it is pending, in catalogue order."""
    config = ledger.config
    vocabulary = Vocabulary.from_config(config.clean)
    answered = collect(ledger.workspace, ledger.state, vocabulary)
    falls_back = config.clean.fallback == "local"
    brands = find_brands(ledger.products() if falls_back else (), vocabulary)
    products = ledger.products()
    for entry in ledger.workspace.read_rows():
        product = next(products)
        while product.row != entry.row:  # a row that was not selected
            product = next(products)
        outcome = answered.get(entry.custom_id)
        if entry.reason:  # rejected before anything was sent
            outcome = Outcome("rejected", reason=entry.reason, detail=entry.detail)
        elif outcome:
            settled = outcome.settled(config.clean.max_attempts)
            outcome = None if settled.kind == "again" else settled
        if falls_back and outcome and outcome.kind == "rejected" and isinstance(product, Product):
            image = _first_image(product, config, offline.IMAGE_PX)
            if image is not None:
                answer = offline.local_answer(plain_title(product, brands), image, vocabulary)
                outcome = Outcome("cleaned", values=answer.values(), source=offline.SOURCE)
        yield product, outcome


def _first_image(product: Product, config: Config, longest_px: int) -> Image.Image | None:
    """The first of the product's images that opens."""
    try:
        paths = find_images(product, config.paths.images)
    except BrokenImage:
        return None
    for path in paths:
        with suppress(BrokenImage):
            return open_image(path, longest_px=longest_px)
    return None


# --- review


def review(config: Config, *, rows: int, seed: int) -> tuple[list[dict[str, Any]], Path]:
    """Some rows before and after, and the contact sheet that shows them in the same order.

    Which rows are shown depends on the seed alone, so two people look at the same ones.
    """
    if not config.paths.cleaned.is_file():
        raise MissingStageError(config.paths.cleaned, command="furnclip clean run")
    check_finished(config.paths)
    cleaned = read_products(config.paths.cleaned, config.paths)
    products = (product for product in cleaned if isinstance(product, Product))
    chosen = heapq.nsmallest(rows, products, key=lambda p: content_hash(str(seed), p.product_id))
    chosen.sort(key=lambda product: product.row)
    shown = [
        {
            "product_id": product.product_id,
            "title": product.title,
            "clean_title": product.fields["clean_title"],
            "attributes": {name: product.fields[name] for name in ATTRIBUTES},
            "source": product.fields["clean_source"],
        }
        for product in chosen
    ]
    cells = [(_first_image(p, config, _REVIEW_CELL_PX), p.fields["clean_title"]) for p in chosen]
    lines = [cells[start : start + _REVIEW_COLUMNS] for start in range(0, len(cells), _REVIEW_COLUMNS)]
    path = config.paths.clean / "review.jpg"
    write_bytes(path, encode_jpeg(contact_sheet(lines, cell_px=_REVIEW_CELL_PX), _REVIEW_QUALITY))
    return shown, path
