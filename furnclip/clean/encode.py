"""Products -> requests or offline answers, on all cores, in catalogue order.

In: products of the catalogue. Out: one `Encoded` each: a request, an answer of the offline rules, or the
reason why there is none. Only a bounded number of products is under way at once, so memory does not grow
with the catalogue.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from furnclip.catalogue import Product, Rejection, find_images
from furnclip.clean.local import answer_line, local_id
from furnclip.clean.makers import Name, plain_title
from furnclip.clean.parts import Line
from furnclip.clean.prompt import user_text
from furnclip.clean.requests import Recipe, request_picture, text_tokens
from furnclip.images import BrokenImage, read_bytes

_CHUNK = 16
_INLINE_PRODUCTS = 256  # starting processes costs more than so many pictures


@dataclass(frozen=True)
class Job:
    """What a worker has to know besides the product."""

    image_root: Path
    recipe: Recipe
    is_local: bool
    known: frozenset[str]
    makers: frozenset[Name]  # of the whole catalogue


@dataclass(frozen=True)
class Encoded:
    """One catalogue row on its way: a line to send, a line known already (None), or a rejection."""

    row: int
    product_id: str
    custom_id: str = ""
    line: Line | None = None
    reason: str = ""
    detail: str = ""


def encode_product(product: Product | Rejection, job: Job) -> Encoded:
    """The first of the product's pictures that can be read decides; without one the row is rejected."""
    if isinstance(product, Rejection):
        return Encoded(product.row, product.product_id, reason=product.reason, detail=product.detail)
    problem: BrokenImage | None = None
    try:
        for path in find_images(product, job.image_root):
            try:
                custom_id, line = _encode(product, read_bytes(path), job)
                return Encoded(product.row, product.product_id, custom_id, line)
            except BrokenImage as error:
                problem = problem or error
    except BrokenImage as error:
        problem = error
    assert problem is not None
    reason = f"picture-{problem.reason}"
    return Encoded(product.row, product.product_id, reason=reason, detail=problem.message)


def _encode(product: Product, picture: bytes, job: Job) -> tuple[str, Line | None]:
    recipe = job.recipe
    if job.is_local:
        title = plain_title(product, job.makers)
        custom_id = local_id(product.product_id, title, picture, recipe.vocabulary)
        if custom_id in job.known:
            return custom_id, None
        return custom_id, Line(custom_id, answer_line(custom_id, title, picture, recipe.vocabulary))
    custom_id = recipe.custom_id(product, picture)
    if custom_id in job.known:
        return custom_id, None
    jpeg, picture_tokens = request_picture(picture, recipe)
    content = recipe.line(custom_id, recipe.body(product.title, jpeg))
    return custom_id, Line(custom_id, content, picture_tokens, text_tokens(user_text(product.title)))


def encode_all(products: Iterable[Product | Rejection], job: Job, *, workers: int) -> Iterator[Encoded]:
    """Every product encoded, in order. `workers`: processes; 0 is one a core."""
    source = iter(products)
    first = list(islice(source, _INLINE_PRODUCTS))
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(first) < _INLINE_PRODUCTS:
        for product in chain(first, source):
            yield encode_product(product, job)
        return
    with _pool(workers, job) as pool:
        waiting: deque[Future[list[Encoded]]] = deque()
        for chunk in _chunks(chain(first, source)):
            waiting.append(pool.submit(_encode_chunk, chunk))
            if len(waiting) > 3 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


@contextmanager
def _pool(workers: int, job: Job) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")  # forking a process that has threads can hang
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(job,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_jobs: list[Job] = []  # of a worker process: one, set when it starts


def _start_worker(job: Job) -> None:
    _jobs.append(job)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_chunk(chunk: list[Product | Rejection]) -> list[Encoded]:
    return [encode_product(product, _jobs[0]) for product in chunk]


def _chunks(products: Iterator[Product | Rejection]) -> Iterator[list[Product | Rejection]]:
    while chunk := list(islice(products, _CHUNK)):
        yield chunk
