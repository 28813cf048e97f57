"""What of a catalogue can be used, counted before anything is done; and what would mend the rest.

`doctor`, `clean estimate`, `clean run` and `prepare --check` tell it. Images are looked for; few are opened.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from furnclip.catalogue import Product, read_products, recognize
from furnclip.errors import FurnclipError
from furnclip.images import BrokenImage, image_format
from furnclip.sources import ShopImages

if TYPE_CHECKING:
    from furnclip.config import Config

_NAMES_TRIED = 40
_FOLDERS_TRIED = 300
_DEEPEST = 3
_ROWS_TOLD_BY = 1000
_OPENED = 12
_NO_IMAGE = "no-image"
_ADVICE = {
    "not-fetched": "run `furnclip fetch`",
    "unpublished": "publish them in the shop, or empty `paths.published_columns`",
}
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")


@dataclass
class Survey:
    """Counts of a catalogue, or of its first rows. `usable`: products with an image that is there."""

    rows: int = 0  # of the file; several can make one product
    products: int = 0
    usable: int = 0
    images: int = 0
    to_fetch: int = 0  # web addresses whose image was not fetched yet
    missing: int = 0  # images that are named and not there
    reasons: dict[str, int] = field(default_factory=dict)  # of what is not usable
    example: str = ""  # the first that has the most frequent reason
    advice: str = ""  # the folder, column or setting that would mend most of it
    unreadable: str = ""
    """what is wrong with images that were drawn by lot, where not one of them can be read"""

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing of it can be used as things are; products that name no image have their words."""
        return (bool(self.unreadable) or not self.usable) and _NO_IMAGE not in self.reasons

    def text(self) -> str:
        """One line for people."""
        rows = "" if self.rows == self.products else f"{self.rows:,} rows make "
        parts = [f"{rows}{self.products:,} products, {self.usable:,} with an image"]
        parts += [f"{self.to_fetch:,} addresses to fetch"] * bool(self.to_fetch)
        parts += [f"{self.missing:,} images missing"] * bool(self.missing)
        if self.reasons:
            reason, count = next(iter(self.reasons.items()))
            parts.append(f"{count:,} without one that can be used, {reason}: first {self.example}")
        parts += [f"of those drawn by lot not one can be read: {self.unreadable}"] * bool(self.unreadable)
        return "; ".join(parts)


def survey(config: Config, *, most_rows: int | None = None) -> Survey:
    """The counts of the raw catalogue. Raises what `read_products` does."""
    found, reasons, examples = Survey(), Counter[str](), dict[str, str]()
    images = ShopImages(config)
    names: list[str] = []
    ids: list[str] = []
    opened, chance = list[tuple[str, ...]](), random.Random(0)
    for product in islice(read_products(config.paths.products, config.paths), most_rows):
        found.rows += product.file_rows
        found.products += 1
        ids += [product.product_id] * (len(ids) < _NAMES_TRIED)
        reason, detail = _NO_IMAGE, "the row names no image"
        if not isinstance(product, Product):
            reason, detail = product.reason, product.detail
        elif product.images:
            names += product.images[: len(names) < _NAMES_TRIED]
            reason, detail = _count_images(product.images, images, found)
            if not reason and len(opened) < _OPENED:
                opened.append(product.images)
            elif not reason and (place := chance.randrange(found.usable + 1)) < _OPENED:
                opened[place] = product.images
        if reason:
            reasons[reason] += 1
            examples.setdefault(reason, f"in row {product.row}: {detail}")
        else:
            found.usable += 1
    found.reasons = dict(reasons.most_common())
    if reasons:
        reason = next(iter(found.reasons))
        found.example, found.advice = examples[reason], _advice(config, reason, names)
        ids_that_are_images = sum(map(partial(_is_there, images), ids))
        if reason in (_NO_IMAGE, "missing") and 2 * ids_that_are_images > len(ids):
            found.advice = f'set `paths.image_column = "{config.paths.id_column}"`: it names the images'
    found.unreadable = _unreadable(images, opened)
    found.advice = "export the images again, as JPEG or PNG" if found.unreadable else found.advice
    return found


def _is_there(images: ShopImages, name: str, *, as_named: bool = False) -> bool:
    try:
        found = images.find([name])
    except BrokenImage:
        return False
    return found[0].is_as_named or not as_named


def _unreadable(images: ShopImages, drawn: Sequence[tuple[str, ...]]) -> str:
    """What is wrong with images of these products; empty where any can be read, or there are none."""
    problem = ""
    for names in drawn:
        try:
            image = images.find(names)[0]
            image_format(image.read(), name=image.short_name)
            return ""
        except BrokenImage as error:
            problem = problem or error.message
    return problem


def advice(config: Config) -> str:
    """What would mend most of a catalogue's rows, told by the first of them; empty if not known."""
    try:
        return survey(config, most_rows=_ROWS_TOLD_BY).advice
    except FurnclipError:
        return ""


def _count_images(names: Sequence[str], images: ShopImages, found: Survey) -> tuple[str, str]:
    """Count the images of a product that are there; why there is none, in a word and in words."""
    problems = []
    for name in names:
        try:
            images.find([name])
            found.images += 1
        except BrokenImage as error:
            problems.append(error)
            found.to_fetch += error.reason == "not-fetched"
            found.missing += error.reason != "not-fetched"
    return ("", "") if len(problems) < len(names) else (problems[0].reason, problems[0].message)


def _advice(config: Config, reason: str, names: Sequence[str]) -> str:
    """What would mend the rows with this reason."""
    paths = config.paths
    if reason in _ADVICE:
        return _ADVICE[reason]
    best = likely_folder(config, names) if reason in ("missing", "outside") else None
    if best and best[0] != paths.images:
        return f'set `paths.images = "{best[0]}"`, which has {best[1]} of the {len(names)} images looked for'
    if reason not in ("no-id", "bad-id", "duplicate-id", _NO_IMAGE, "missing", "outside"):
        return "export the catalogue again, or correct these rows"
    try:
        wanted = recognize(paths.products)
    except FurnclipError:
        return ""
    setting = "id_column" if reason.endswith("-id") else "image_column"
    others = ("merge_rows", "merge_untitled_rows") if setting == "id_column" else ("image_table",)
    for name in (*others, setting):
        if (value := wanted.settings.get(name)) and value != getattr(paths, name):
            shown = str(value).lower() if isinstance(value, bool) else f'"{value}"'
            return f"set `paths.{name} = {shown}`, as `furnclip init {paths.products.name}` would"
    if "image_table" in wanted.settings and not paths.image_table:
        return wanted.reasons["image_table"]
    folders = [folder for folder in (paths.images, paths.products.parent) if isinstance(folder, Path)]
    files = (path for folder in folders for path in folder.glob("*") if path.suffix.lower() in _ARCHIVES)
    if archive := next((path for path in files if path.resolve() != paths.products.resolve()), None):
        return f"unpack `{archive}` into `{paths.images}`"
    if reason in ("missing", "outside"):
        return f"no folder near `{paths.products}` has them; put the images into `{paths.images}`"
    return f"look at `paths.{setting}`"


def likely_folder(config: Config, names: Sequence[str]) -> tuple[Path, int] | None:
    """The folder near the catalogue that has most of these images, at best under these names; how many."""
    best: Path | None = None
    best_count = 0, 0
    for folder in islice(_folders_near(config), _FOLDERS_TRIED):
        paths = config.paths.model_copy(update={"images": folder})
        images = ShopImages(config.model_copy(update={"paths": paths}))
        found = sum(map(partial(_is_there, images), names))
        count = found, sum(map(partial(_is_there, images, as_named=True), names)) if found else 0
        if count > best_count:
            best, best_count = folder, count
        if min(count) == len(names):
            break
    return (best, best_count[0]) if best else None


def _folders_near(config: Config) -> Iterator[Path]:
    """The image folder, those of the catalogue and of the project, and those in them, the nearest first."""
    paths = config.paths
    roots = (paths.images, paths.products.parent, paths.work.parent)
    level, seen = [folder for folder in roots if isinstance(folder, Path) and folder.is_dir()], {paths.work}
    for _ in range(_DEEPEST + 1):
        level = [folder for folder in dict.fromkeys(level) if folder not in seen]
        yield from level
        seen.update(level)
        level = [inner for folder in level for inner in _folders_in(folder)]


def _folders_in(folder: Path) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return []
