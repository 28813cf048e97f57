"""`clean prepare`: the catalogue -> request parts, or the offline rules' answers.

Out: `parts/`, `rows.jsonl` and, in the journal, one `planned` event a part and `prepared` at the end. A
kill loses at most the part being written; requests planned before, also with other settings, are not
planned twice. Rows are encoded on all cores, in catalogue order; only a bounded number of them is under way
at once.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import IO

from furnclip import console
from furnclip.catalogue import Product, Rejection, content_hash
from furnclip.clean import offline
from furnclip.clean.batch.parts import part_limits, write_parts
from furnclip.clean.batch.requests import Recipe, is_openai, request_image, text_tokens
from furnclip.clean.batch.results import merge
from furnclip.clean.batch.state import UNSENT
from furnclip.clean.offline import BrandName, find_brands, plain_title
from furnclip.clean.prompt import user_text
from furnclip.clean.workspace import (
    CleaningLedger,
    RequestLine,
    RowEntry,
    drop_damaged,
    is_intact,
    repair_indexes,
)
from furnclip.errors import InputError
from furnclip.images import BrokenImage
from furnclip.journal import Event, encode_event, replacing, sha256_of
from furnclip.parallel import Workers
from furnclip.sources import FoundImage

_INLINE_PRODUCTS = 256  # starting processes costs more than this many images


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
        counts = _write_parts(ledger, products, total=limit or sample or total)
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


def _write_parts(ledger: CleaningLedger, products: Iterable[Product | Rejection], *, total: int) -> Event:
    """Write `rows.jsonl` and the parts, each of them journalled when it is complete; counts of the rows."""
    clean, is_local = ledger.config.clean, ledger.config.clean.backend == "local"
    counts = dict.fromkeys(("rows", "requests", "rejected"), 0)
    with console.progress("reading images", total=total) as meter, replacing(ledger.workspace.rows) as file:
        parts = write_parts(
            ledger.workspace,
            _lines_to_send(ledger, products, file, counts, meter),
            part_limits(clean, ledger.recipe),
            first_number=ledger.state.next_number,
            backend=clean.backend,
            source=offline.SOURCE if is_local else f"{clean.backend}:{clean.model}",
            identity=ledger.recipe.identity,
            status="downloaded" if is_local else "planned",
        )
        for facts in parts:
            ledger.record("planned", **facts)
    return counts


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


def _lines_to_send(
    ledger: CleaningLedger,
    products: Iterable[Product | Rejection],
    file: IO[bytes],
    counts: dict[str, int],
    meter: console.Meter,
) -> Iterator[RequestLine]:
    """The lines to be sent; the entries of the rows are written, and counted, while they stream by."""
    clean, state, recipe = ledger.config.clean, ledger.state, ledger.recipe
    known = {
        request.custom_id
        for part in state.current_parts
        for request in ledger.workspace.read_index(part.number)
    }
    known.update(line["custom_id"] for part in state.parts.values() for line in part.rejected_lines)
    brands = find_brands(ledger.products(), recipe.vocabulary) if clean.backend == "local" else None
    items = ((product, _found(ledger, product)) for product in products)
    function = partial(encode_product, recipe=recipe, known=known, brands=brands)
    with Workers(function, clean.workers, here_first=_INLINE_PRODUCTS, setting="clean.workers") as pool:
        for entry, line in pool.map(items, name_of=lambda item: item[0].product_id):
            file.write(encode_event(entry._asdict()))
            counts["rows"] += 1
            counts["requests"] += bool(entry.custom_id)
            counts["rejected"] += bool(entry.reason)
            meter.advance()
            if line:
                yield line


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
    brands: frozenset[BrandName] | None,
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
    if not product.images and product.title:
        custom_id, line = _encode(product, b"", recipe, known, brands)
        return entry._replace(custom_id=custom_id), line
    problem = found if isinstance(found, BrokenImage) else None
    for image in found if isinstance(found, list) else ():
        try:
            custom_id, line = _encode(product, image.read(), recipe, known, brands)
            return entry._replace(custom_id=custom_id), line
        except BrokenImage as error:
            problem = problem or error
    assert problem is not None
    return entry._replace(reason=f"picture-{problem.reason}", detail=problem.message), None


def _encode(
    product: Product, image: bytes, recipe: Recipe, known: set[str], brands: frozenset[BrandName] | None
) -> tuple[str, RequestLine | None]:
    if brands is not None:
        title, vocabulary = plain_title(product, brands), recipe.vocabulary
        rules = offline.rules_identity(vocabulary)
        custom_id = f"local-{content_hash(rules, product.product_id, title, image)}"
        if custom_id in known:
            return custom_id, None
        return custom_id, RequestLine(custom_id, offline.answer_line(custom_id, title, image, vocabulary))
    custom_id = recipe.custom_id(product, image)
    if custom_id in known:
        return custom_id, None
    jpeg, image_tokens = request_image(image, recipe) if image else (b"", 0)
    content = recipe.line(custom_id, recipe.body(product.title, jpeg))
    return custom_id, RequestLine(custom_id, content, image_tokens, text_tokens(user_text(product.title)))
