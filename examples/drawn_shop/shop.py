"""A drawn shop: images, a messy product file, and the true attributes of every product.

Writes `images/NNN/pNNNNNN.jpg`, `products.csv` (what a shop exports), `truth.csv` (the true attributes; no
furnclip command reads it) and `shop.json`: the options, and whether the shop is finished. An interrupted
run continues where it stopped; product N of a seed is always the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from furnclip.errors import InputError, UsageError
from furnclip.journal import read_json, replacing, write_json, write_text
from furnclip.parallel import Workers

from .drawing import DRAWING_STYLES, draw, family_of, new_design
from .pieces import KINDS
from .pieces.design import Design, Dice
from .titles import messy_title, sku, true_title

MANIFEST_NAME = "shop.json"
_JPEG_QUALITY = 88
_NEW_FOLDER = "choose a new folder, or remove this one"
_ALONE = 40  # fewer products than this are not worth starting processes for


@dataclass(frozen=True)
class ShopOrder:
    """Which shop to draw."""

    products: int
    seed: int = 0
    drawing_styles: tuple[str, ...] = DRAWING_STYLES
    image_px: int = 224
    own_words: bool = False  # the shop's own names for some colors


@dataclass(frozen=True)
class ProductRow:
    """One drawn product: the shop's columns and the true ones."""

    shop: dict[str, str]
    truth: dict[str, str]


def write_shop(
    folder: Path, order: ShopOrder, *, workers: int = 0, on_progress: Callable[[int], None] | None = None
) -> bool:
    """Draw the shop into `folder`; False when it is there already, as ordered.

    `workers`: processes; 0: one a core. Raises `InputError` when another shop is in the folder.
    """
    _check(order)
    if _already_drawn(folder, order):
        return False
    write_json(folder / MANIFEST_NAME, _described(order, finished=False))
    shop, truth = _CsvText(), _CsvText()
    with Workers(partial(_draw_product, folder, order), workers, here_first=_ALONE) as pool:
        for row in pool.map(range(order.products)):
            shop.add(row.shop)
            truth.add(row.truth)
            if on_progress:
                on_progress(1)
    write_text(folder / "products.csv", shop.text())
    write_text(folder / "truth.csv", truth.text())
    write_json(folder / MANIFEST_NAME, _described(order, finished=True))
    return True


def _check(order: ShopOrder) -> None:
    unknown = [style for style in order.drawing_styles if style not in DRAWING_STYLES]
    if unknown:
        raise UsageError(
            f"there is no drawing style `{unknown[0]}`", hint=f"choose from {', '.join(DRAWING_STYLES)}"
        )


def _described(order: ShopOrder, *, finished: bool) -> dict[str, object]:
    described = {**asdict(order), "drawing_styles": list(order.drawing_styles)}
    return {"format": 1, "finished": finished, **described}


def _already_drawn(folder: Path, order: ShopOrder) -> bool:
    """Whether the shop is complete. Files that this program did not write are never overwritten."""
    manifest = folder / MANIFEST_NAME
    if not manifest.exists():
        own = [name for name in ("products.csv", "truth.csv", "images") if (folder / name).exists()]
        if own:
            raise InputError(
                f"`{folder / own[0]}` was not drawn by this program",
                hint="choose a new folder for the catalogue",
            )
        return False
    found = read_json(manifest, dict[str, Any], what="the drawn shop's record", hint=_NEW_FOLDER)
    finished = bool(found.get("finished"))
    if found == _described(order, finished=finished):
        return finished
    raise InputError(f"`{folder}` holds a shop drawn with other settings", hint=_NEW_FOLDER)


def _draw_product(folder: Path, order: ShopOrder, number: int) -> ProductRow:
    design = new_design(order.seed, number)
    style = order.drawing_styles[number % len(order.drawing_styles)]
    name = f"{number // 1000:03d}/p{number:06d}.jpg"
    image = draw(design, style, image_px=order.image_px)
    path = folder / "images" / name
    if not path.exists() or not path.stat().st_size:  # a power cut may leave it empty
        with replacing(path, durable=False) as file:
            image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return _row(design, order, number, image=name, drawing_style=style)


def _row(design: Design, order: ShopOrder, number: int, *, image: str, drawing_style: str) -> ProductRow:
    dice = Dice(np.random.default_rng([order.seed, number, 2]))
    product_id = f"p{number:06d}"
    shop = {
        "product_id": product_id,
        "title": messy_title(design, dice, number, own_words=order.own_words),
        "image": image,
        "model": f"m{family_of(number):06d}",
        "sku": sku(number),
        "price": f"{dice.count(39, 1899)}.99",
    }
    truth = {
        "product_id": product_id,
        "true_title": true_title(design),
        "true_style": design.style,
        "true_material": design.material,
        "true_color": design.color,
        "true_object_type": KINDS[design.kind].object_type,
        "kind": design.kind,
        "details": "; ".join(design.details),
        "drawing_style": drawing_style,
    }
    return ProductRow(shop, truth)


class _CsvText:
    """Rows of one CSV file, its header taken from the first."""

    def __init__(self) -> None:
        self._lines = io.StringIO(newline="")
        self._writer: csv.DictWriter[str] | None = None

    def add(self, row: dict[str, str]) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._lines, list(row), lineterminator="\n")
            self._writer.writeheader()
        self._writer.writerow(row)

    def text(self) -> str:
        return self._lines.getvalue()
