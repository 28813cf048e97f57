"""`clean finalize`: results -> `cleaned.csv` and `rejected.csv`.

In: the raw catalogue, `rows.jsonl` and all results. Out: every selected row in exactly one of the two
files, raw columns first and in their order, then the cleaned fields; a summary by reason. A raw column
that has the name of a cleaned one is kept as `raw_NAME`. Rows that are still pending stop it, unless
the user wants a partial result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from furnclip.catalogue import (
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
    sheet_in,
)
from furnclip.clean.answers import Outcome, collect
from furnclip.clean.ledger import Ledger
from furnclip.clean.local import SOURCE as LOCAL_SOURCE
from furnclip.clean.local import local_answer
from furnclip.clean.makers import Name, find_makers, plain_title
from furnclip.clean.prompt import Vocabulary
from furnclip.clean.repair import check_results, check_rows, repair_indexes
from furnclip.clean.state import State
from furnclip.clean.workspace import RowEntry, file_digest
from furnclip.config import Config
from furnclip.errors import InputError, ServiceError
from furnclip.images import BrokenImage, open_image
from furnclip.journal import replacing

_FALLBACK_PX = 64


@dataclass
class Summary:
    """What `finalize` wrote, in rows."""

    rows: int = 0
    cleaned: int = 0
    rejected: int = 0
    pending: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    paid_usd: float = 0.0
    unconfirmed_usd: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    was_done: bool = False


def finalize(ledger: Ledger, *, partial: bool) -> Summary:
    """Write both files. Raises `ServiceError` when rows are unaccounted for and `partial` is off."""
    config, state = ledger.config, ledger.state
    check_rows(ledger)
    check_results(ledger)
    repair_indexes(ledger)
    assert state.prepared is not None
    if state.prepared["catalogue_sha256"] != file_digest(config.paths.products):
        raise InputError(
            f"`{config.paths.products}` was changed after it was prepared",
            hint="run `furnclip clean run`: unchanged rows are not asked again",
        )
    fingerprint = _fingerprint(config, state)
    if _is_done(ledger, fingerprint):
        facts = dict(state.finalized or {})
        counts = {name: facts[name] for name in ("rows", "cleaned", "rejected", "pending")}
        return _with_bill(Summary(**counts, reasons=Counter(facts["reasons"]), was_done=True), state)
    outcomes = collect(ledger.workspace, state, Vocabulary.from_config(config.clean))
    summary = _Writer(ledger, outcomes).write(partial=partial)
    ledger.record(
        "finalized",
        fingerprint=fingerprint,
        rows=summary.rows,
        cleaned=summary.cleaned,
        rejected=summary.rejected,
        pending=summary.pending,
        reasons=dict(sorted(summary.reasons.items())),
    )
    return _with_bill(summary, state)


def _with_bill(summary: Summary, state: State) -> Summary:
    """The summary with what the service really billed."""
    paid = state.paid
    return replace(
        summary,
        paid_usd=round(paid.cost_usd, 8),
        unconfirmed_usd=round(state.unconfirmed_usd, 8),
        prompt_tokens=paid.prompt_tokens,
        completion_tokens=paid.completion_tokens,
    )


def _is_done(ledger: Ledger, fingerprint: str) -> bool:
    done = ledger.state.finalized
    files = (ledger.workspace.cleaned, ledger.workspace.rejected)
    return done is not None and done["fingerprint"] == fingerprint and all(path.is_file() for path in files)


def _fingerprint(config: Config, state: State) -> str:
    """Changes when another result file counts or a setting that shapes the output changes."""
    assert state.prepared is not None
    counted = [part.number for part in state.with_status("downloaded", "merged", "replaced")]
    facts = (state.prepared["rows_sha256"], counted, config.clean.fallback, config.clean.max_attempts)
    return content_hash(repr(facts))


def _fate(entry: RowEntry, outcomes: Mapping[str, Outcome], max_attempts: int) -> Outcome | None:
    """What became of a row: cleaned, rejected, or None while it is pending."""
    if entry.reason:
        return Outcome("rejected", reason=entry.reason, detail=entry.detail)
    outcome = outcomes.get(entry.custom_id)
    if outcome is None:
        return None
    settled = outcome.settled(max_attempts)
    return None if settled.kind == "again" else settled


class _Writer:
    """Streams the catalogue past its rows' outcomes into the two files."""

    def __init__(self, ledger: Ledger, outcomes: Mapping[str, Outcome]) -> None:
        self._ledger = ledger
        self._config = ledger.config
        self._outcomes = outcomes
        self._vocabulary = Vocabulary.from_config(ledger.config.clean)
        self._columns = read_records(ledger.config.paths.products)[0]
        self._header = [renamed_column(name) for name in self._columns]

    def write(self, *, partial: bool) -> Summary:
        """Both files, or neither: an error in here leaves the old ones as they were."""
        summary = Summary()
        with ExitStack() as stack:
            cleaned = self._sheet(stack, self._ledger.workspace.cleaned)
            rejected = self._sheet(stack, self._ledger.workspace.rejected)
            cleaned.write_row([*self._header, *CLEAN_COLUMNS])
            rejected.write_row([*self._header, *REJECT_COLUMNS])
            for product, outcome in self._fates():
                summary.rows += 1
                if outcome is None:
                    summary.pending += 1
                elif outcome.kind == "cleaned":
                    summary.cleaned += 1
                    cleaned.write_row([*self._raw(product), *outcome.values, outcome.source])
                else:
                    summary.rejected += 1
                    summary.reasons[outcome.reason] += 1
                    rejected.write_row([*self._raw(product), outcome.reason, outcome.detail])
            if summary.pending and not partial:
                raise ServiceError(
                    f"{summary.pending} rows have no answer yet",
                    hint="run `furnclip clean run` to get them, or add `--partial` to write what is there",
                )
        return summary

    def _fates(self) -> Iterator[tuple[Product | Rejection, Outcome | None]]:
        """Each selected row with what became of it, in catalogue order."""
        paths = self._config.paths
        products = read_products(paths.products, paths)
        attempts = self._config.clean.max_attempts
        offline = self._config.clean.fallback == "local"
        for entry in self._ledger.workspace.read_rows():
            product = next(products)
            while product.row != entry.row:  # a row that was not selected
                product = next(products)
            outcome = _fate(entry, self._outcomes, attempts)
            if offline and outcome and outcome.kind == "rejected" and isinstance(product, Product):
                outcome = self._judged_offline(product) or outcome
            yield product, outcome

    def _judged_offline(self, product: Product) -> Outcome | None:
        """The offline rules' answer, when the product has a picture that opens."""
        for path in _found_images(product, self._config):
            try:
                image = open_image(path, longest_px=_FALLBACK_PX)
            except BrokenImage:
                continue
            answer = local_answer(plain_title(product, self._makers), image, self._vocabulary)
            return Outcome("cleaned", values=answer.values(), source=LOCAL_SOURCE)
        return None

    @cached_property
    def _makers(self) -> frozenset[Name]:
        paths = self._config.paths
        return find_makers(read_products(paths.products, paths), self._vocabulary)

    def _raw(self, product: Product | Rejection) -> list[str]:
        return [product.fields.get(name, "") for name in self._columns]

    @staticmethod
    def _sheet(stack: ExitStack, path: Path) -> SheetWriter:
        return stack.enter_context(sheet_in(stack.enter_context(replacing(path))))


def _found_images(product: Product, config: Config) -> list[Path]:
    try:
        return find_images(product, config.paths.images)
    except BrokenImage:
        return []
