"""`furnclip clean`: a messy catalogue -> clean titles and attributes, without losing a row or paying twice.

In: `products.csv` and its images. Out: `work/clean/cleaned.csv` and `rejected.csv`; every row is in exactly
one of them, raw columns first and in their order, then the cleaned fields. A raw column that has the name
of a cleaned one is kept as `raw_NAME`. Everything is journalled before it is done, in
`work/clean/journal.jsonl`, so each command can be killed at any moment and run again.

Here are the commands, each from start to end; what they return is what `cli` prints. The client library
takes over a second to load, so only what talks to a service imports it.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from PIL import Image

from furnclip import console
from furnclip.catalogue import (
    ATTRIBUTES,
    CLEAN_COLUMNS,
    REJECT_COLUMNS,
    Product,
    Rejection,
    content_hash,
    read_products,
    read_records,
    renamed_column,
    write_row,
)
from furnclip.clean import offline
from furnclip.clean.batch.results import Outcome, collect
from furnclip.clean.batch.results import estimate as estimate_parts
from furnclip.clean.batch.state import SENT, UNSENT, State
from furnclip.clean.offline import find_brands, names_of, plain_title, settled
from furnclip.clean.plan import prepare
from furnclip.clean.prompt import FIELDS
from furnclip.clean.workspace import (
    CleaningLedger,
    Workspace,
    check_finished,
    check_results,
    check_rows,
    open_ledger,
    read_state,
    repair_indexes,
    restore_results,
)
from furnclip.config import Config
from furnclip.errors import ConfigError, InputError, MissingStageError, ServiceError, UsageError
from furnclip.images import BrokenImage, contact_sheet, encode_jpeg, open_image
from furnclip.journal import Event, replacing, sha256_of, write_bytes
from furnclip.sources import ShopImages

if TYPE_CHECKING:
    from furnclip.clean.batch.service import BatchService

# of other modules, for callers of this one
__all__ = ["open_ledger", "prepare"]

_REVIEW_CELL_PX = 220
_REVIEW_COLUMNS = 4
_REVIEW_QUALITY = 90

Report = dict[str, Any]  # what a command has to tell, as `--json` prints it


def run(
    ledger: CleaningLedger, *, limit: int | None, sample: int | None, partial: bool, ignore_errors: bool
) -> Report:
    """Prepare, send, watch, write. Does nothing when nothing changed."""
    if ledger.config.clean.backend == "openai" and ledger.config.paths.products.exists():
        _need_key(ledger.config)  # before an hour of reading images
    prepare(ledger, limit=limit, sample=sample)
    answer(ledger, ignore_errors=ignore_errors)
    return finalize(ledger, partial=partial)


def answer(ledger: CleaningLedger, *, ignore_errors: bool) -> None:
    """Bring every planned part to its end with the configured backend."""
    _start_sending(ledger, ignore_errors=ignore_errors)
    if ledger.config.clean.backend == "openai":
        from furnclip.clean.batch.monitor import Monitor

        with _service(ledger.config) as service:
            restore_results(ledger, service, give_up=ignore_errors)
            Monitor(ledger, service).watch()
        return
    restore_results(ledger, None, give_up=ignore_errors)
    if ledger.config.clean.backend == "live":
        from furnclip.clean.live import ask_live

        ask_live(ledger)


def dispatch(ledger: CleaningLedger, *, ignore_errors: bool) -> Report:
    """Send what may be sent now, without waiting for answers."""
    _start_sending(ledger, ignore_errors=ignore_errors)
    if ledger.config.clean.backend != "openai":
        console.note(f"nothing to send: the backend `{ledger.config.clean.backend}` has no batches")
        return _status(ledger.state)
    with _service(ledger.config) as service:
        from furnclip.clean.batch.dispatch import Dispatcher

        dispatcher = Dispatcher(ledger, service)
        dispatcher.reconcile()
        dispatcher.send()
    if waiting := len(dispatcher.waiting()):
        parts = "1 part" if waiting == 1 else f"{waiting} parts"
        console.note(f"{parts} waiting (queue full); `furnclip clean monitor` sends them")
    return _status(ledger.state)


def monitor(ledger: CleaningLedger) -> Report:
    """Watch until every part has ended."""
    sent = ledger.state.with_status(*SENT, "ended", "downloaded", "merged", backend="openai")
    if ledger.config.clean.backend == "openai" and not sent:
        raise MissingStageError("an open batch", command="furnclip clean dispatch")
    answer(ledger, ignore_errors=False)
    return _status(ledger.state)


def estimate(ledger: CleaningLedger, *, limit: int | None, sample: int | None, calibrated: bool) -> Report:
    """The price of what is still to be sent; `calibrated` sends one real request to know it better."""
    prepare(ledger, limit=limit, sample=sample)
    backend = ledger.config.clean.backend
    waiting = ledger.state.with_status(*UNSENT, backend=backend)
    if calibrated and waiting and backend == "openai":
        from furnclip.clean.batch.dispatch import send_canary

        with _service(ledger.config) as service:
            send_canary(ledger, service, waiting[0], once_more=True)
    return estimate_parts(waiting, ledger)._asdict()


def cancel(ledger: CleaningLedger) -> list[int]:
    """Ask the service to stop every open batch; numbers of their parts."""
    if not ledger.state.current_parts:
        return []
    with _service(ledger.config) as service:
        from furnclip.clean.batch.dispatch import Dispatcher
        from furnclip.clean.batch.service import counts_of

        Dispatcher(ledger, service).reconcile()
        parts = ledger.state.with_status("open")
        for part in parts:
            batch = service.cancel(part.batch_id)
            if batch.status != part.batch_status:
                ledger.record("seen", part=part.number, status=batch.status, counts=list(counts_of(batch)))
    return [part.number for part in parts]


def status(config: Config) -> Report:
    """Where things stand, read without touching anything, also while another process works."""
    if not (journal := Workspace(config.paths.clean).journal).is_file():
        raise MissingStageError(journal, command="furnclip clean prepare")
    return _status(read_state(config))


def _status(state: State) -> Report:
    parts = [part for part in state.current_parts if part.backend != "local"]
    outcomes: Counter[str] = Counter()
    for part in parts:
        outcomes.update(dict(zip(("cleaned", "rejected", "again"), part.outcomes, strict=True)))
    facts = state.prepared or {"rows": 0, "rejected": 0}
    shown = [
        {
            "part": part.number,
            "attempt": part.attempt,
            # the service's own word while the batch is open
            "status": part.batch_status if part.status == "open" else part.status,
            "done": sum(part.counts[1:]),
            "requests": part.requests,
            "batch_id": part.batch_id,
            "cost_usd": round(part.usage.cost_usd, 8),
        }
        for part in parts
    ]
    return {
        "rows": facts["rows"],
        "rejected_before_sending": facts["rejected"],
        "parts": shown,
        "statuses": dict(Counter(part.status for part in parts)),
        "outcomes": dict(outcomes),
        **_bill(state),
        "halted": state.halted,
    }


def _bill(state: State) -> Report:
    """What the service really billed, and perhaps billed."""
    return {
        "paid_usd": round(state.paid.cost_usd, 8),
        "unconfirmed_usd": round(state.unconfirmed_usd, 8),
        "prompt_tokens": state.paid.prompt_tokens,
        "completion_tokens": state.paid.completion_tokens,
    }


def _start_sending(ledger: CleaningLedger, *, ignore_errors: bool) -> None:
    """Raises where the requests are not there or made by other settings; lifts a halt that is ignored."""
    prepared, clean = check_rows(ledger), ledger.config.clean
    repair_indexes(ledger)
    if (clean.backend, ledger.recipe.identity) != (prepared["backend"], prepared["identity"]):
        hint = "run `furnclip clean prepare` with these settings first"
        raise UsageError("the requests were prepared for another backend, model or vocabulary", hint=hint)
    if ignore_errors and ledger.state.halted:
        ledger.record("resumed", at=time.time())


def _need_key(config: Config) -> None:
    if not config.openai_api_key.get_secret_value():
        hint = "put it into `.env` or the environment, or use `--backend local`: free and offline"
        raise ConfigError("there is no OPENAI_API_KEY", hint=hint)


@contextmanager
def _service(config: Config) -> Iterator[BatchService]:
    _need_key(config)
    from furnclip.clean.batch.service import BatchService

    with closing(BatchService(config)) as service:
        yield service


def finalize(ledger: CleaningLedger, *, partial: bool) -> Report:
    """Write both files. Raises `ServiceError` when rows are unaccounted for and `partial` is off."""
    clean, paths, state = ledger.config.clean, ledger.config.paths, ledger.state
    prepared = check_rows(ledger)
    check_results(ledger)
    repair_indexes(ledger)
    if prepared["catalogue_sha256"] != sha256_of(paths.products):
        hint = "run `furnclip clean run`: unchanged rows are not asked again"
        raise InputError(f"`{paths.products}` was changed after it was prepared", hint=hint)
    # changes when another result file counts or a setting that shapes the output changes
    counted = [part.number for part in state.with_status("downloaded", "merged", "replaced")]
    facts = (prepared["rows_sha256"], counted, clean.fallback, clean.max_attempts, clean.queries)
    fingerprint, done = content_hash(repr(facts)), state.finalized
    are_there = ledger.workspace.cleaned.is_file() and ledger.workspace.rejected.is_file()
    was_done = done is not None and done["fingerprint"] == fingerprint and are_there
    if done is None or not was_done:
        done = _write_files(ledger, partial=partial)
        ledger.record("finalized", fingerprint=fingerprint, **done)
    counts = {name: done[name] for name in ("rows", "cleaned", "rejected", "pending", "reasons")}
    counts["queries_by_rule"] = done.get("queries_by_rule", 0)  # not known to earlier versions
    files = {"cleaned_csv": str(ledger.workspace.cleaned), "rejected_csv": str(ledger.workspace.rejected)}
    return {**counts, **_bill(state), "was_done": was_done, **files}


def _write_files(ledger: CleaningLedger, *, partial: bool) -> Event:
    """Both files, or neither: an error in here leaves the old ones as they were; counts of the rows."""
    counts = dict.fromkeys(("rows", "cleaned", "rejected", "pending", "queries_by_rule"), 0)
    reasons, wanted = Counter[str](), ledger.config.clean.queries
    columns = read_records(ledger.config.paths.products)[0]
    header = [renamed_column(name) for name in columns]
    with ExitStack() as stack:
        cleaned, rejected = (
            stack.enter_context(replacing(path))
            for path in (ledger.workspace.cleaned, ledger.workspace.rejected)
        )
        write_row(cleaned, [*header, *CLEAN_COLUMNS])
        write_row(rejected, [*header, *REJECT_COLUMNS])
        for product, outcome in _outcomes(ledger):
            raw = [product.fields.get(name, "") for name in columns]
            counts["rows"] += 1
            counts[outcome.kind if outcome else "pending"] += 1
            if outcome and outcome.kind == "cleaned":
                names = names_of(product) if wanted and isinstance(product, Product) else []
                values = dict(zip(FIELDS, outcome.values, strict=True))
                queries = settled(outcome.queries, values, names, wanted)
                counts["queries_by_rule"] += not set(queries).issubset(outcome.queries)
                write_row(cleaned, [*raw, *outcome.values, " | ".join(queries), outcome.source])
            elif outcome:
                reasons[outcome.reason] += 1
                write_row(rejected, [*raw, outcome.reason, outcome.detail])
        if counts["pending"] and not partial:
            hint = "run `furnclip clean run` to get them, or add `--partial` to write what is there"
            raise ServiceError(f"{counts['pending']} rows have no answer yet", hint=hint)
    return {**counts, "reasons": dict(sorted(reasons.items()))}


def _outcomes(ledger: CleaningLedger) -> Iterator[tuple[Product | Rejection, Outcome | None]]:
    """Each selected row with what became of it, None while it is pending, in catalogue order."""
    clean, vocabulary = ledger.config.clean, ledger.recipe.vocabulary
    answered = collect(ledger.workspace, ledger.state, vocabulary)
    falls_back = clean.fallback == "local"
    brands = find_brands(ledger.products() if falls_back else (), vocabulary)
    products = ledger.products()
    for entry in ledger.workspace.read_rows():
        product = next(product for product in products if product.row == entry.row)
        outcome = answered.get(entry.custom_id)
        if entry.reason:  # rejected before anything was sent
            outcome = Outcome("rejected", reason=entry.reason, detail=entry.detail)
        elif outcome:
            outcome = outcome.settled(clean.max_attempts)
            outcome = None if outcome.kind == "again" else outcome
        if falls_back and outcome and outcome.kind == "rejected" and isinstance(product, Product):
            image = _first_image(product, ledger.images, offline.IMAGE_PX)
            if image is not None or not product.images:
                title, is_own_image = plain_title(product, brands), not product.variant
                answer = offline.local_answer(title, image, vocabulary, is_own_image=is_own_image)
                outcome = Outcome("cleaned", values=answer.values(), source=offline.SOURCE)
        yield product, outcome


def _first_image(product: Product, images: ShopImages, longest_px: int) -> Image.Image | None:
    for name in product.images:
        with suppress(BrokenImage):
            return open_image(images.read(name), longest_px=longest_px)
    return None


def review(config: Config, *, rows: int, seed: int) -> Report:
    """Some rows before and after, chosen by the seed alone, and the contact sheet with their images."""
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
    images = ShopImages(config)
    cells = [(_first_image(p, images, _REVIEW_CELL_PX), p.fields["clean_title"]) for p in chosen]
    lines = [cells[start : start + _REVIEW_COLUMNS] for start in range(0, len(cells), _REVIEW_COLUMNS)]
    path = config.paths.clean / "review.jpg"
    write_bytes(path, encode_jpeg(contact_sheet(lines, cell_px=_REVIEW_CELL_PX), _REVIEW_QUALITY))
    return {"rows": shown, "sheet": str(path)}
