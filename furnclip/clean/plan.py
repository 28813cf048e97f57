"""`clean prepare`: the catalogue -> request parts, or the offline rules' answers.

In: the raw catalogue and its pictures. Out: `parts/`, `rows.jsonl` and, in the journal, one `planned`
event a part and `prepared` at the end. A kill loses at most the part being written; requests that were
planned before, in this run or an earlier one with other settings, are not planned twice.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from furnclip import console
from furnclip.catalogue import (
    Product,
    Rejection,
    content_hash,
    find_files,
    read_products,
    tell_near_matches,
)
from furnclip.clean.encode import Encoded, Job, encode_all
from furnclip.clean.ledger import Ledger
from furnclip.clean.local import SOURCE, rules_identity
from furnclip.clean.makers import find_makers
from furnclip.clean.merge import keep_live_answers
from furnclip.clean.models import VisionModel, is_openai
from furnclip.clean.parts import Limits, Line, write_parts
from furnclip.clean.repair import drop_damaged, repair_indexes
from furnclip.clean.requests import Recipe
from furnclip.clean.state import State
from furnclip.clean.workspace import RowEntry, Workspace, file_digest, is_intact
from furnclip.config import CleaningConfig, Config
from furnclip.errors import InputError
from furnclip.images import BrokenImage
from furnclip.journal import Event, encode_event, replacing

QUEUE_HEADROOM = 0.9  # the service counts tokens in its own way; stay below its limit


@dataclass(frozen=True)
class Selection:
    """Which rows to clean: all, the first `limit`, or a sample of `sample` that is always the same."""

    limit: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found."""

    rows: int
    requests: int
    rejected: int
    parts: int
    was_done: bool


def prepare(ledger: Ledger, selection: Selection) -> Prepared:
    """Plan every request of the selected rows. Does nothing when nothing changed."""
    config = ledger.config
    recipe = Recipe.from_config(config.clean)
    _mention_family(config.clean, recipe.model)
    fingerprint, total = _fingerprint(config, recipe, selection)
    has_dropped = drop_damaged(ledger)
    repair_indexes(ledger)
    before, rows_path = ledger.state.prepared, ledger.workspace.rows
    is_same = before is not None and before["fingerprint"] == fingerprint and not has_dropped
    if before is not None and is_same and is_intact(rows_path, before["rows_sha256"]):
        return _summary(ledger.state, was_done=True)
    if fingerprint != ledger.state.preparing:
        keep_live_answers(ledger)
    ledger.record("preparing", fingerprint=fingerprint)
    _remove_dropped(ledger)
    known = frozenset(_known_ids(ledger.workspace, ledger.state))
    is_local = config.clean.backend == "local"
    named = read_products(config.paths.products, config.paths) if is_local else ()
    job = Job(config.paths.images, recipe, is_local, known, find_makers(named, recipe.vocabulary))
    products = _selected(config, selection)
    with (
        console.progress("reading pictures", total=selection.limit or selection.sample or total) as meter,
        replacing(ledger.workspace.rows) as file,
    ):
        rows = _Rows(file)
        encoded = _counted(encode_all(products, job, workers=config.clean.workers), rows, meter)
        _write(ledger, (item.line for item in encoded if item.line), recipe)
    if not rows.total:
        raise InputError(f"`{config.paths.products}` has no rows", hint="export the catalogue again")
    ledger.record(
        "prepared",
        fingerprint=fingerprint,
        backend=config.clean.backend,
        identity=recipe.identity,
        catalogue_sha256=file_digest(config.paths.products),
        **rows.facts(),
    )
    return _summary(ledger.state, was_done=False)


def _mention_family(config: CleaningConfig, model: VisionModel) -> None:
    """Say whose parameters and price a model has that the table does not know by its own name."""
    if config.backend == "local":
        return
    has_price = "input_usd" in config.models.get(model.id, {})
    table = f'set the prices in `[clean.models."{model.id}"]`'
    if model.family:
        price = "" if has_price else " and the price"
        dearer = f"; fine-tuned models usually cost more: {table}" if price and model.id[:3] == "ft:" else ""
        console.note(f"the model `{model.id}` has the parameters{price} of `{model.family}`{dearer}")
    elif not model.input_usd and not has_price and is_openai(config):
        console.warn(f"no price is known for `{model.id}`, so the bill will show $0: {table}")


def part_limits(config: CleaningConfig, recipe: Recipe) -> Limits:
    """What one batch may hold."""
    return Limits(
        requests=config.part_requests,
        size_bytes=int(config.part_mb * 1e6),
        tokens=queue_limit(config, recipe),
        overhead_tokens=recipe.overhead_tokens,
    )


def queue_limit(config: CleaningConfig, recipe: Recipe, *, learned: int = 0) -> int:
    """Input tokens that may wait at once: configured or from the table, and learned from the service."""
    limit = config.max_queued_tokens or recipe.model.queue_limit(config.tier)
    known = [tokens for tokens in (limit, learned) if tokens]
    return int(min(known) * QUEUE_HEADROOM) if known else sys.maxsize


def _write(ledger: Ledger, lines: Iterator[Line], recipe: Recipe) -> None:
    config, workspace = ledger.config.clean, ledger.workspace
    is_local = config.backend == "local"
    target = workspace.output if is_local else workspace.part
    source = SOURCE if is_local else f"{config.backend}:{config.model}"
    parts = write_parts(
        workspace,
        lines,
        part_limits(config, recipe),
        first_number=ledger.state.next_number,
        target=target,
    )
    for facts in parts:
        status = "downloaded" if is_local else "planned"
        origin = {"backend": config.backend, "source": source, "identity": recipe.identity}
        ledger.record("planned", **facts, **origin, status=status)


class _Rows:
    """Writes `rows.jsonl` while rows stream by, and counts them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.total = self.requests = self.rejected = 0

    def add(self, item: Encoded) -> None:
        entry = RowEntry(item.row, item.product_id, item.custom_id, item.reason, item.detail)
        line = encode_event(entry._asdict())
        self._digest.update(line)
        self._file.write(line)
        self.total += 1
        self.requests += bool(item.custom_id)
        self.rejected += bool(item.reason)

    def facts(self) -> Event:
        counts = {"rows": self.total, "requests": self.requests, "rejected": self.rejected}
        return {**counts, "rows_sha256": self._digest.hexdigest()}


def _counted(items: Iterator[Encoded], rows: _Rows, meter: console.Meter) -> Iterator[Encoded]:
    for item in items:
        rows.add(item)
        meter.advance()
        yield item


def _summary(state: State, *, was_done: bool) -> Prepared:
    facts = state.prepared
    assert facts is not None
    parts = [part for part in state.parts.values() if part.status not in ("dropped", "replaced")]
    return Prepared(facts["rows"], facts["requests"], facts["rejected"], len(parts), was_done)


def _known_ids(workspace: Workspace, state: State) -> Iterator[str]:
    """Requests that are planned, sent or answered already."""
    for part in state.parts.values():
        if part.status not in ("dropped", "replaced"):
            yield from workspace.read_ids(part.number)
        yield from (custom_id for custom_id, _, _ in part.rejected_lines)


def _remove_dropped(ledger: Ledger) -> None:
    for part in ledger.state.with_status("dropped"):
        ledger.workspace.part(part.number).unlink(missing_ok=True)
        ledger.workspace.index(part.number).unlink(missing_ok=True)
        if part.backend == "local":
            ledger.workspace.output(part.number).unlink(missing_ok=True)


def _fingerprint(config: Config, recipe: Recipe, selection: Selection) -> tuple[str, int]:
    """What changes with every row, picture file and setting that shapes the parts; and the number of rows."""
    clean = config.clean
    limits = (clean.part_requests, clean.part_mb, clean.tier, clean.max_queued_tokens)
    settings = [clean.backend, recipe.identity, rules_identity(recipe.vocabulary), *limits]
    pictures = hashlib.blake2b(digest_size=16)
    rows = 0
    for product in read_products(config.paths.products, config.paths):
        rows += 1
        if isinstance(product, Product):
            pictures.update(_picture_facts(product, config.paths.images).encode())
    tell_near_matches(config.paths.images)
    text = json.dumps([settings, asdict(selection)])
    return content_hash(text, file_digest(config.paths.products), pictures.digest()), rows


def _picture_facts(product: Product, root: Path) -> str:
    """Size and time of each picture: cheap to look at, and different after every change."""
    facts = []
    for name in product.images:
        try:
            stat = find_files([name], root)[0].stat()
            facts.append(f"{name} {stat.st_size} {stat.st_mtime_ns}")
        except (BrokenImage, OSError):
            facts.append(f"{name} -")
    return json.dumps(facts)


def _selected(config: Config, selection: Selection) -> Iterator[Product | Rejection]:
    """The selected rows, in catalogue order."""
    chosen = _sampled_rows(config, selection.sample) if selection.sample else None
    count = 0
    for product in read_products(config.paths.products, config.paths):
        if selection.limit and count >= selection.limit:
            return
        if chosen is None or product.row in chosen:
            count += 1
            yield product


def _sampled_rows(config: Config, size: int) -> frozenset[int]:
    """Rows with the smallest hashes of their ids: a fair sample that does not change when rows are added."""
    products = read_products(config.paths.products, config.paths)
    hashed = ((content_hash(product.product_id), product.row) for product in products)
    return frozenset(row for _, row in heapq.nsmallest(size, hashed))
