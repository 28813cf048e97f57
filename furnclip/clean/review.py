"""`clean review`: a few rows, raw beside cleaned, with their pictures.

In: `cleaned.csv` and the pictures. Out: pairs to print, and `work/clean/review.jpg`, one contact sheet.
Which rows are shown depends on the seed alone, so two people look at the same ones.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from furnclip.catalogue import ATTRIBUTES, Product, content_hash, find_images, read_products
from furnclip.clean.workspace import check_finished
from furnclip.config import Config
from furnclip.errors import MissingStageError
from furnclip.images import BrokenImage, contact_sheet, encode_jpeg, open_image
from furnclip.journal import write_bytes

_CELL_PX = 220
_COLUMNS = 4
_QUALITY = 90


@dataclass(frozen=True)
class Pair:
    """One row before and after."""

    product_id: str
    title: str
    clean_title: str
    attributes: dict[str, str]
    source: str


def review(config: Config, *, rows: int, seed: int) -> tuple[list[Pair], Path]:
    """Some rows, and the contact sheet that shows them in the same order."""
    if not config.paths.cleaned.is_file():
        raise MissingStageError(config.paths.cleaned, command="furnclip clean run")
    check_finished(config.paths)
    products = _chosen(config, rows, seed)
    cells = [(_picture(product, config), f"{_pair(product).clean_title}") for product in products]
    sheet = contact_sheet(
        [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)], cell_px=_CELL_PX
    )
    path = config.paths.clean / "review.jpg"
    write_bytes(path, encode_jpeg(sheet, _QUALITY))
    return [_pair(product) for product in products], path


def _chosen(config: Config, rows: int, seed: int) -> list[Product]:
    cleaned = read_products(config.paths.cleaned, config.paths)
    products = (product for product in cleaned if isinstance(product, Product))
    chosen = heapq.nsmallest(rows, products, key=lambda p: content_hash(str(seed), p.product_id))
    return sorted(chosen, key=lambda product: product.row)


def _pair(product: Product) -> Pair:
    fields = product.fields
    return Pair(
        product_id=product.product_id,
        title=product.title,
        clean_title=fields["clean_title"],
        attributes={name: fields[name] for name in ATTRIBUTES},
        source=fields["clean_source"],
    )


def _picture(product: Product, config: Config) -> Image.Image | None:
    try:
        return open_image(find_images(product, config.paths.images)[0], longest_px=_CELL_PX)
    except BrokenImage:
        return None
