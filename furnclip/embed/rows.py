"""Catalogue rows on their way to a model: what is stored, what is encoded, what identifies them.

The content hash of a row covers its caption and its image, so a row whose hash is known needs no
decoding and no model. Only the first image that is there is read for it; of further ones, which
step in when the first is broken, name and size count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from furnclip.catalogue import (
    ATTRIBUTES,
    Product,
    Rejection,
    catalogue_path,
    content_hash,
    find_images,
    read_products,
)
from furnclip.config import Config
from furnclip.errors import MissingStageError
from furnclip.images import BrokenImage, load_square, read_bytes
from furnclip.relevance import default_caption
from furnclip.shards import read_assignments


@dataclass(frozen=True)
class Row:
    """One product. `stored` has the product columns of the vector file but the content hash."""

    stored: dict[str, str]
    caption: str
    images: tuple[Path, ...]
    problem: str
    """why there is no image to try; empty where there is one"""


@dataclass(frozen=True)
class Content:
    """What identifies a row's content, and the bytes of its first image."""

    content_hash: str
    first: bytes
    problem: str


@dataclass
class Decoded:
    """A row ready for the model. `squares`: side in pixels -> image; empty with a `reason`."""

    row: Row
    content_hash: str
    squares: dict[int, Image.Image] = field(default_factory=dict)
    reason: str = ""


class CatalogueReader:
    """The catalogue as rows, streamed; read it as often as needed.

    Groups and splits are those of `work/shards`; without shards the split is empty and a product
    without a group is its own.
    """

    def __init__(self, config: Config) -> None:
        self.path = catalogue_path(config.paths)
        self._paths = config.paths
        try:
            self._assignments = read_assignments(config.paths.shards)
        except MissingStageError:
            self._assignments = {}

    def rows(self) -> Iterator[Row]:
        """Every usable product, in file order."""
        for product in read_products(self.path, self._paths):
            if isinstance(product, Product):
                yield self._row(product)

    def rejections(self) -> Iterator[Rejection]:
        """Every row that is no usable product."""
        for product in read_products(self.path, self._paths):
            if isinstance(product, Rejection):
                yield product

    def _row(self, product: Product) -> Row:
        group, split = self._assignments.get(product.product_id, (product.group or product.product_id, ""))
        stored = {
            "product_id": product.product_id,
            "title": product.title,
            "clean_title": product.fields.get("clean_title", ""),
            **{name: product.fields.get(name, "") for name in ATTRIBUTES},
            "group": group,
            "split": split,
            "image": product.images[0] if product.images else "",
        }
        caption = default_caption(product.fields, title=product.title)
        try:
            images, problem = tuple(find_images(product, self._paths.images)), ""
        except BrokenImage as error:
            images, problem = (), f"{error.reason}: {error.message}"
        return Row(stored, caption, images, problem)


def read_content(row: Row) -> Content:
    """The row's content hash and the bytes of its first image; never raises for a bad image."""
    if not row.images:
        return Content(content_hash(row.caption, row.problem), b"", row.problem)
    first, problem = b"", ""
    try:
        first = read_bytes(row.images[0])
    except BrokenImage as error:
        problem = f"{error.reason}: {error.message}"
    others = [f"{path.name} {path.stat().st_size}" for path in row.images[1:]]
    return Content(content_hash(row.caption, first, problem, *others), first, problem)


def decode(row: Row, content: Content, sides_px: frozenset[int]) -> Decoded:
    """The row's first image that can be read, as squares; a reason where there is none."""
    reason = content.problem
    sources: list[bytes | Path] = [content.first] if content.first else []
    for source in [*sources, *row.images[1:]]:
        try:
            squares = {side_px: load_square(source, side_px) for side_px in sides_px}
            return Decoded(row, content.content_hash, squares)
        except BrokenImage as error:
            reason = reason or f"{error.reason}: {error.message}"
    return Decoded(row, content.content_hash, reason=reason or "empty: the image is empty")
