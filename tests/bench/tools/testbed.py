"""A catalogue of photos cut into a base to start from and shops to fine-tune on; for `quality`.

In: a folder or tar file with `products.csv` (product_id, title, image, category, type, color) and the images.
Out, in a cache folder and made once: `shop-SIZE-HASH/`, prepared, and `base-HASH/`, a CLIP trained on the
products of some categories; the shops hold those of the others. The hashes are of what they follow from.

A shop trains on about SIZE products (0: all there are), validates on 200 or more and tests on 2,000 or more.
Its captions are the titles; color and type are the attributes. The base learns from titles too, by the
plain loop, so that it owes nothing to furnclip.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from examples.make_tiny_clip import build_tiny_clip
from furnclip.journal import replacing_folder
from furnclip.shards import read_manifest
from tests.bench.tools.rivals import plain_loop
from tests.training import loop_of

VALIDATION, TEST = 220, 2_200  # products; a few are rejected as unreadable or the same
_VALIDATION_SHARE, _TEST_SHARE = 0.04, 0.11  # of a whole catalogue
_COLUMNS = ("product_id", "title", "image")
_CLEANED = (*_COLUMNS, "clean_title", "style", "material", "color", "object_type", "clean_source")
_SETTINGS = """[paths]
images = "{images}"
[prepare]
image_px = {image_px}
train_fraction = {train:.4f}
validation_fraction = {validation:.4f}
"""


@dataclass(frozen=True)
class Recipe:
    """How the base is made."""

    categories: tuple[str, ...] = ("Apparel",)
    image_px: int = 80
    width: int = 256
    layers: int = 4
    patch_px: int = 16
    vocabulary: int = 4096
    epochs: int = 10
    rate: float = 1e-3
    seed: int = 0


BASES = {  # 7 million parameters and hours on a CPU; 0.9 million and minutes; to see that all works
    "large": Recipe(),
    "small": Recipe(image_px=64, width=96, layers=3, vocabulary=2048, epochs=6),
    "quick": Recipe(image_px=64, width=64, layers=2, vocabulary=2048, epochs=1),
}


@dataclass(frozen=True)
class Testbed:
    """The catalogue, unpacked, and where its parts are kept."""

    folder: Path
    cache: Path
    recipe: Recipe

    @classmethod
    def opened(cls, catalogue: Path, cache: Path, recipe: Recipe) -> Testbed:
        """Unpacks a tar file once."""
        if catalogue.is_file():
            unpacked = cache / hashed(catalogue.name, catalogue.stat().st_size)
            if not unpacked.is_dir():
                with replacing_folder(unpacked) as aside, tarfile.open(catalogue) as tar:
                    tar.extractall(aside, filter="data")
            catalogue = unpacked
        return cls(catalogue.resolve(), cache.resolve(), recipe)

    def rows(self, *, of_base: bool) -> list[dict[str, str]]:
        """Products of the base's categories, or of the others, in an order that is always the same."""
        with (self.folder / "products.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["title"].strip()]
        rows = [row for row in rows if (row["category"] in self.recipe.categories) == of_base]
        random.Random(0).shuffle(rows)
        return rows

    def shop(self, size: int) -> Path:
        """A prepared shop of the categories that the base has not seen."""
        rows = self.rows(of_base=False)
        if size:
            rows = rows[: size + VALIDATION + TEST]
        validation = max(VALIDATION / len(rows), 0 if size else _VALIDATION_SHARE)
        test = max(TEST / len(rows), 0 if size else _TEST_SHARE)
        return self._prepared(
            f"shop-{size or 'all'}", rows, train=1 - validation - test, validation=validation
        )

    def base(self) -> Path:
        """The trained base."""
        shop = self._prepared("of-base", self.rows(of_base=True), train=0.97, validation=0.02)
        data = read_manifest(shop / "work" / "shards").data_hash
        folder, recipe = self.cache / f"base-{hashed(asdict(self.recipe), data)}", self.recipe
        if folder.is_dir():
            return folder
        layout = {"image_px": recipe.image_px, "width": recipe.width, "layers": recipe.layers}
        start = build_tiny_clip(
            self.cache / "untrained",
            ["a photo of " + row["title"].lower() for row in self.rows(of_base=True)],
            seed=recipe.seed,
            patch_px=recipe.patch_px,
            text_positions=48,
            vocabulary_size=recipe.vocabulary,
            **layout,
        )
        flags = {"scenario": "full", "epochs": recipe.epochs, "seed": recipe.seed}
        ready, _ = loop_of(shop, "base", model={"name": str(start), "precision": "fp32"}, **flags)
        plain_loop(ready, recipe.rate)
        with replacing_folder(folder) as aside:
            ready.encoder.clip.save(aside)
        return folder

    def _prepared(
        self, name: str, rows: Sequence[dict[str, str]], *, train: float, validation: float
    ) -> Path:
        """A folder in which `furnclip prepare` is done; the catalogue's own columns stand for `clean`."""
        settings = _SETTINGS.format(
            images=self.folder / "images", image_px=self.recipe.image_px, train=train, validation=validation
        )
        shop = self.cache / f"{name}-{hashed(settings, [row['product_id'] for row in rows])}"
        if shop.is_dir():
            return shop
        with replacing_folder(shop) as aside:
            (aside / "work" / "clean").mkdir(parents=True)
            (aside / "furnclip.toml").write_text(settings, "utf-8")
            write_rows(aside / "products.csv", _COLUMNS, rows)
            write_rows(aside / "work" / "clean" / "cleaned.csv", _CLEANED, rows)
            subprocess.run(
                [sys.executable, "-m", "furnclip", "prepare", "--json"],
                cwd=aside,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        return shop


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    """The catalogue's products as furnclip reads them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            attributes = {"style": "unknown", "material": "unknown", "clean_title": row["title"]}
            attributes |= {"color": row["color"].lower(), "object_type": row["type"].lower()}
            writer.writerow({**row, **attributes, "image": Path(row["image"]).name, "clean_source": "own"})


def hashed(*parts: object) -> str:
    """A name for what follows from `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
