"""What is to be asked: the catalogue -> parts, files of requests each small enough for one batch.

In: catalogue and images. Out: `parts/`, `rows.jsonl` and, in the journal, one `planned` event a part and
`prepared` at the end. A kill loses at most the part being written: requests planned before, also with other
settings, are not planned twice, and the same requests and limits give the same bytes.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import NamedTuple

from furnclip import console
from furnclip.catalogue import Product, Rejection, content_hash
from furnclip.clean import offline
from furnclip.clean.batch.requests import Recipe, is_openai, request_image, text_tokens, with_cap
from furnclip.clean.batch.results import Outcome, backoff_s, collect, merge
from furnclip.clean.batch.state import UNSENT, BatchPart
from furnclip.clean.prompt import user_text
from furnclip.clean.workspace import (
    CleaningLedger,
    PartRequest,
    RequestLine,
    RowEntry,
    Workspace,
    drop_damaged,
    is_intact,
    repair_indexes,
)
from furnclip.config import CleaningConfig
from furnclip.errors import InputError
from furnclip.images import BrokenImage
from furnclip.journal import Event, encode_event, replacing, sha256_of
from furnclip.parallel import Workers
from furnclip.sources import FoundImage

_TITLES_HERE, _PHOTOS_HERE = 256, 32  # rows that are done sooner than other processes have started
_QUEUE_HEADROOM = 0.9  # the service counts tokens in its own way; stay below its limit
_CAP_CEILING_TOKENS = 8000


def prepare(ledger: CleaningLedger, *, limit: int | None, sample: int | None) -> Event:
    """Plan every request of the selected rows; does nothing when nothing changed. Returns the counts.

    limit: at most N rows, from the first on; sample: at most N, always the same.
    """
    clean, paths, workspace = ledger.config.clean, ledger.config.paths, ledger.workspace
    _mention_family(ledger)
    if ledger.recipe.queries != clean.queries:
        count = ledger.recipe.queries or "no"
        console.note(f"this run was begun with {count} shopper queries for a product, and goes on so")
    fingerprint, total = _fingerprint(ledger, {"limit": limit or 0, "sample": sample or 0})
    drop_damaged(ledger)
    repair_indexes(ledger)
    facts = ledger.state.prepared
    is_same = facts is not None and facts["fingerprint"] == fingerprint
    was_done = facts is not None and is_same and is_intact(workspace.rows, facts["rows_sha256"])
    if facts is None or not was_done:
        for part in ledger.state.with_status(*UNSENT, backend="live"):
            # answers of an interrupted run, before other settings drop what was not sent
            if fingerprint != ledger.state.preparing and workspace.live(part.number).is_file():
                merge(ledger, part)
        ledger.record("preparing", fingerprint=fingerprint)
        for part in ledger.state.with_status("dropped"):
            workspace.content(part.number, part.backend).unlink(missing_ok=True)
            workspace.index(part.number).unlink(missing_ok=True)
        products = _selected(ledger, limit, sample)
        counts = _plan_rows(ledger, products, total=limit or sample or total)
        if not counts["rows"]:
            raise InputError(f"`{paths.products}` has no rows", hint="export the catalogue again")
        facts = {
            "fingerprint": fingerprint,
            "backend": clean.backend,
            "identity": ledger.recipe.identity,
            "catalogue_sha256": sha256_of(paths.products),
            **counts,
            "rows_sha256": sha256_of(workspace.rows),
        }
        ledger.record("prepared", **facts)
    found = {name: facts[name] for name in ("rows", "requests", "rejected")}
    return {**found, "parts": len(ledger.state.current_parts), "was_done": was_done}


def _plan_rows(ledger: CleaningLedger, products: Iterable[Product | Rejection], *, total: int) -> Event:
    """Write `rows.jsonl` and the parts, each of them journalled when it is complete; counts of the rows."""
    clean, state, recipe = ledger.config.clean, ledger.state, ledger.recipe
    known = {line["custom_id"] for part in state.parts.values() for line in part.rejected_lines}
    for part in state.current_parts:
        known.update(request.custom_id for request in ledger.workspace.read_index(part.number))
    is_local = clean.backend == "local"
    brands = offline.find_brands(ledger.products(), recipe.vocabulary) if is_local else None
    function = partial(encode_product, recipe=recipe, known=known, brands=brands)
    counts = dict.fromkeys(("rows", "requests", "rejected"), 0)

    def lines_to_send() -> Iterator[RequestLine]:
        """The entries of the rows are written, and counted, while their lines stream by."""
        items = ((product, _found(ledger, product)) for product in products)
        for entry, line in pool.map(items, name_of=lambda item: item[0].product_id):
            file.write(encode_event(entry._asdict()))
            counts["rows"] += 1
            counts["requests"] += bool(entry.custom_id)
            counts["rejected"] += bool(entry.reason)
            meter.advance()
            if line:
                yield line

    here_first = _TITLES_HERE if is_local else _PHOTOS_HERE
    with (
        console.progress("reading images", total=total) as meter,
        replacing(ledger.workspace.rows) as file,
        Workers(function, clean.workers, here_first=here_first, setting="clean.workers") as pool,
    ):
        status = "downloaded" if is_local else "planned"
        for facts in _write_own(ledger, lines_to_send(), state.next_number, status=status):
            ledger.record("planned", **facts)
    return counts


def _write_own(
    ledger: CleaningLedger, lines: Iterable[RequestLine], first_number: int, **more: object
) -> Iterator[Event]:
    """Write parts for the backend, model and limits of the settings."""
    clean, recipe = ledger.config.clean, ledger.recipe
    tokens = queue_limit(clean, recipe)
    limits = Limits(clean.part_requests, int(clean.part_mb * 1e6), tokens, recipe.overhead_tokens)
    source = offline.SOURCE if clean.backend == "local" else f"{clean.backend}:{clean.model}"
    made_by = {"backend": clean.backend, "source": source, "identity": recipe.identity}
    return write_parts(ledger.workspace, lines, limits, first_number=first_number, **made_by, **more)


def _mention_family(ledger: CleaningLedger) -> None:
    """Say whose parameters and price a model has that the table does not know by its own name."""
    config, model = ledger.config.clean, ledger.recipe.model
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


def _fingerprint(ledger: CleaningLedger, selection: dict[str, int]) -> tuple[str, int]:
    """What changes with every row, image file and setting that shapes the parts; and the number of rows."""
    clean, recipe = ledger.config.clean, ledger.recipe
    limits = (clean.part_requests, clean.part_mb, clean.tier, clean.max_queued_tokens)
    settings = [clean.backend, recipe.identity, offline.rules_identity(recipe.vocabulary), *limits]
    images = hashlib.blake2b(digest_size=16)
    rows = 0
    for product in ledger.products():
        rows += 1
        images.update(json.dumps([product.product_id, getattr(product, "title", "")]).encode())
        for name in product.images if isinstance(product, Product) else ():
            facts = f"{name} -"
            with suppress(BrokenImage):  # cheap to look at, other after every change
                facts = f"{name} {ledger.images.find([name])[0].status}"
            images.update(json.dumps(facts).encode())
    ledger.images.tell_near_matches()
    text = json.dumps([settings, selection])
    return content_hash(text, sha256_of(ledger.config.paths.products), images.digest()), rows


def _selected(ledger: CleaningLedger, limit: int | None, sample: int | None) -> Iterator[Product | Rejection]:
    """The selected rows, in catalogue order.

    A sample has the smallest hashes of ids: it is fair, and does not change when rows are added.
    """
    if not sample:
        yield from islice(ledger.products(), limit)
        return
    hashed = ((content_hash(product.product_id), product.row) for product in ledger.products())
    chosen = {row for _, row in heapq.nsmallest(sample, hashed)}
    yield from islice((p for p in ledger.products() if p.row in chosen), limit)


def _found(ledger: CleaningLedger, product: Product | Rejection) -> list[FoundImage] | BrokenImage:
    try:
        return ledger.images.find(product.images) if isinstance(product, Product) else []
    except BrokenImage as error:
        return error


def encode_product(
    item: tuple[Product | Rejection, list[FoundImage] | BrokenImage],
    *,
    recipe: Recipe,
    known: set[str],
    brands: frozenset[offline.BrandName] | None,
) -> tuple[RowEntry, RequestLine | None]:
    """A row and the line to send for it, None where that is known already: planned, sent or answered.

    item: a product, and its images or why there are none. The first image that can be read decides; without
    one the row is rejected, unless it names none: then its title alone counts. brands: of the whole
    catalogue, for the offline rules; None where a model is asked.
    """
    product, found = item
    entry = RowEntry(product.row, product.product_id)
    if isinstance(product, Rejection):
        return entry._replace(reason=product.reason, detail=product.detail), None
    problem = found if isinstance(found, BrokenImage) else None
    readers = [] if isinstance(found, BrokenImage) else [image.read for image in found]
    if not product.images and product.title:
        readers = [bytes]  # no bytes: there is no image to look at
    for read in readers:
        try:
            custom_id, line = _encode(product, read(), recipe, known, brands)
            return entry._replace(custom_id=custom_id), line
        except BrokenImage as error:
            problem = problem or error
    assert problem is not None
    return entry._replace(reason=f"picture-{problem.reason}", detail=problem.message), None


def _encode(
    product: Product,
    image: bytes,
    recipe: Recipe,
    known: set[str],
    brands: frozenset[offline.BrandName] | None,
) -> tuple[str, RequestLine | None]:
    if brands is not None:
        title, vocabulary = offline.plain_title(product, brands), recipe.vocabulary
        rules = offline.rules_identity(vocabulary)
        is_own_image = not product.variant
        marks = () if is_own_image else ("variant",)
        custom_id = f"local-{content_hash(rules, product.product_id, title, image, *marks)}"
        if custom_id in known:
            return custom_id, None
        answer = offline.answer_line(custom_id, title, image, vocabulary, is_own_image=is_own_image)
        return custom_id, RequestLine(custom_id, answer)
    custom_id = recipe.custom_id(product, image)
    if custom_id in known:
        return custom_id, None
    jpeg, image_tokens = request_image(image, recipe) if image else (b"", 0)
    content = recipe.line(custom_id, recipe.body(product, jpeg))
    return custom_id, RequestLine(custom_id, content, image_tokens, text_tokens(user_text(product)))


class Limits(NamedTuple):
    """What one part may hold at most."""

    requests: int
    size_bytes: int
    tokens: int
    overhead_tokens: int  # of every request: prompt and schema


def queue_limit(config: CleaningConfig, recipe: Recipe, *, learned: int = 0) -> int:
    """Input tokens that may wait at once: configured or from the table, and learned from the service."""
    limit = config.max_queued_tokens or recipe.model.queue_limit(config.tier)
    known = [tokens for tokens in (limit, learned) if tokens]
    return int(min(known) * _QUEUE_HEADROOM) if known else sys.maxsize


def write_parts(
    workspace: Workspace, lines: Iterable[RequestLine], limits: Limits, *, first_number: int, **shared: object
) -> Iterator[Event]:
    """Write parts one after another; yields the facts of each, with those `shared`, when it is complete."""
    source, number = iter(lines), first_number
    pending = next(source, None)
    while pending is not None:
        requests: dict[str, PartRequest] = {}
        size_bytes = tokens = 0
        path = workspace.content(number, str(shared.get("backend")))
        with replacing(path) as file:
            while pending is not None:
                custom_id, content, *own_tokens = pending
                end_bytes, total_tokens = size_bytes + len(content), tokens + sum(own_tokens)
                overhead_tokens = (len(requests) + 1) * limits.overhead_tokens
                is_full = len(requests) >= limits.requests or end_bytes > limits.size_bytes
                if requests and (is_full or total_tokens + overhead_tokens > limits.tokens):
                    break
                if custom_id in requests:
                    raise InputError(f"two rows ask for `{custom_id}`", hint="make the product ids unique")
                requests[custom_id] = PartRequest(custom_id, size_bytes, len(content), *own_tokens)
                file.write(content)
                size_bytes, tokens = end_bytes, total_tokens
                pending = next(source, None)
        workspace.write_index(number, requests.values())
        yield {
            "part": number,
            "requests": len(requests),
            "size_bytes": size_bytes,
            "tokens": tokens,
            "sha256": sha256_of(path),
            "index_sha256": sha256_of(workspace.index(number)),
            **shared,
        }
        number += 1


def plan_retries(ledger: CleaningLedger) -> int:
    """Plan the rows that have to be retried; how many there are."""
    clean = ledger.config.clean
    outcomes = collect(ledger.workspace, ledger.state, ledger.recipe.vocabulary)
    by_attempt: dict[int, dict[str, Outcome]] = defaultdict(dict)
    for entry in ledger.workspace.read_rows():
        outcome = outcomes.get(entry.custom_id)
        if outcome and outcome.settled(clean.max_attempts).kind == "again":
            by_attempt[outcome.attempt][entry.custom_id] = outcome
    planned: list[Event] = []
    for attempt, failed in sorted(by_attempt.items()):
        at_once = all(outcome.reason != "service-error" for outcome in failed.values())
        wait_s = 0.0 if at_once else backoff_s(clean.retry_wait_s, attempt)
        lines, first_number = _lines_to_retry(ledger, failed), ledger.state.next_number + len(planned)
        more = {"attempt": attempt + 1, "not_before": time.time() + wait_s}
        planned += _write_own(ledger, lines, first_number, **more)
    if planned:
        ledger.record("again", parts=planned)
    return sum(facts["requests"] for facts in planned)


def _lines_to_retry(ledger: CleaningLedger, failed: Mapping[str, Outcome]) -> Iterator[RequestLine]:
    """The requests as they were sent last; with a higher cap where the answer was cut."""
    left, found = set(failed), []
    for part in reversed(ledger.state.with_status("merged")):
        requests = [r for r in ledger.workspace.read_index(part.number) if r.custom_id in left]
        left.difference_update(request.custom_id for request in requests)
        if requests:
            found.append((part, requests))
    for part, requests in reversed(found):
        path = ledger.workspace.part(part.number)
        if not is_intact(path, part.sha256):
            raise InputError(
                f"`{path}` is missing or damaged, and {len(requests)} of its rows have to be retried",
                hint="restore it from a backup, or write what is there: `furnclip clean finalize --partial`",
            )
        for line in ledger.workspace.read_requests(part.number, requests):
            is_cut = failed[line.custom_id].reason in ("cut-off", "empty-answer")
            yield line._replace(content=with_cap(line.content, 2, _CAP_CEILING_TOKENS)) if is_cut else line


def cut_part(
    ledger: CleaningLedger,
    part: BatchPart,
    limits: Limits,
    *,
    requests: Iterable[PartRequest] | None = None,
    rejected: Sequence[Event] = (),
) -> None:
    """Replace a part by others within these limits; `requests`: only these, the `rejected` are left out."""
    if requests is None:
        requests = ledger.workspace.read_index(part.number)
    shared = {name: getattr(part, name) for name in ("attempt", "backend", "source", "identity")}
    lines = ledger.workspace.read_requests(part.number, requests)
    first = ledger.state.next_number
    new = list(write_parts(ledger.workspace, lines, limits, first_number=first, **shared))
    ledger.record("replaced", part=part.number, by=new, rejected_lines=list(rejected))
