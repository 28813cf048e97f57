"""A real furniture catalogue without a download: the models of Sweet Home 3D.

    sudo apt install sweethome3d-furniture
    python examples/sweethome3d.py my-shop

In: the five `.sh3f` files of the Debian package `sweethome3d-furniture`, each a zip with a
`PluginFurnitureCatalog.properties` and a PNG of every model.
Out: `my-shop/products.csv`, `my-shop/images/*.png` (alpha flattened on white) and a
`my-shop/furnclip.toml` that fits a few hundred small images and a small CLIP.

The images are 128-pixel renderings, mostly from the same angle: good for trying the pipeline;
results do not transfer to photographs. Licenses: CC0 and CC BY 3.0, see `LICENSE.TXT` in each zip.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

PACKAGE_FOLDER = Path("/usr/share/sweethome3d/furniture")
PROPERTIES = "PluginFurnitureCatalog.properties"
COLUMNS = (
    *("product_id", "title", "image", "category", "tags", "catalogue", "creator"),
    *("width_cm", "depth_cm", "height_cm"),
)
SETTINGS = """\
# Settings for the Sweet Home 3D catalogue; every other key has its default, see `furnclip init`.

[paths]
# Titles here are generic ("Chair", 25 times), so equal titles do not mean one product.
# Near-duplicate images are still kept in one split.
group_column = "product_id"

[model]
# A small CLIP with random weights, from `python examples/make_tiny_clip.py`.
name = "tiny-clip"

[clean]
backend = "local"

[prepare]
# The images are no larger.
image_px = 128

[train]
# Training from random weights: all weights, small batches, many steps.
scenario = "full"
epochs = 80
effective_batch_size = 64
lr = 1e-3
layer_decay = 1.0
weight_decay = 0.1
attribute_dropout = 0.6
patience = 0
wise_ft = false
"""


def main() -> None:
    """Read the folder from the command line and write the catalogue there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write products.csv, images/ and furnclip.toml")
    parser.add_argument("--package", type=Path, default=PACKAGE_FOLDER, help="folder of the .sh3f files")
    arguments = parser.parse_args()
    if not any(arguments.package.glob("*.sh3f")):
        sys.exit(
            f"error: there are no .sh3f files in `{arguments.package}`\n"
            "hint: run `sudo apt install sweethome3d-furniture`, or name their folder with `--package`"
        )
    count = convert(arguments.package, arguments.folder)
    print(f"wrote {count} products to {arguments.folder}")


def convert(package: Path, folder: Path) -> int:
    """Write products.csv, images/ and furnclip.toml into `folder`; the number of products.

    An existing furnclip.toml is left as it is.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / "products.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row, image in _products(package):
            image.save(images / row["image"])
            writer.writerow(row)
            count += 1
    settings = folder / "furnclip.toml"
    if not settings.exists():
        settings.write_text(SETTINGS, encoding="utf-8")
    return count


def _products(package: Path) -> Iterator[tuple[dict[str, str], Image.Image]]:
    """Each model as a CSV row and its image, in the order of the catalogues."""
    for path in sorted(package.glob("*.sh3f")):
        with zipfile.ZipFile(path) as archive:
            for entry in _entries(archive.read(PROPERTIES).decode("iso-8859-1")):
                row = _row(entry, catalogue=path.stem)
                yield row, _on_white(archive.read(entry["icon"].lstrip("/")))


def _entries(properties: str) -> Iterator[dict[str, str]]:
    """The `key#N=value` lines of a Java properties file, put together by N."""
    entries: dict[int, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)[^\S\n]*=[^\S\n]*(.*?)\s*$", properties, re.MULTILINE):
        entries.setdefault(int(number), {})[key] = _unescape(value)
    yield from entries.values()


def _unescape(value: str) -> str:
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), value)


def _row(entry: dict[str, str], *, catalogue: str) -> dict[str, str]:
    product_id = re.sub(r"[^a-z0-9]+", "-", entry["id"].lower()).strip("-")
    return {
        "product_id": product_id,
        "title": entry["name"],
        "image": f"{product_id}.png",
        "category": entry["category"],
        "tags": entry.get("tags", ""),
        "catalogue": catalogue,
        "creator": entry.get("creator", ""),
        **{f"{side}_cm": entry.get(side, "") for side in ("width", "depth", "height")},
    }


def _on_white(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


if __name__ == "__main__":
    main()
