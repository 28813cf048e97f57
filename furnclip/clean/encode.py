"""Products -> requests or offline answers, on all cores, in catalogue order.

In: products of the catalogue. Out: one `Encoded` each: a request, an answer of the offline rules, or the
reason why there is none. Only a bounded number of products is under way at once, so memory does not grow
with the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from furnclip.catalogue import Product, Rejection, find_images
from furnclip.clean.local import answer_line, local_id
from furnclip.clean.makers import Name, plain_title
from furnclip.clean.parts import Line
from furnclip.clean.prompt import user_text
from furnclip.clean.requests import Recipe, request_picture, text_tokens
from furnclip.images import BrokenImage, read_bytes
from furnclip.parallel import Workers

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
    function = partial(encode_product, job=job)
    with Workers(function, workers, here_first=_INLINE_PRODUCTS, setting="clean.workers") as pool:
        yield from pool.map(products, name_of=lambda product: product.product_id)
