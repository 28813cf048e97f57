"""Make the bundled catalogue: `python -m tests.bench.tools.pack_catalogue`.

Out: `furnclip/demo/catalogue.zip` of `products.csv` and `images/`: 700 products of seed 0 in the drawing
style `ink` and with the shop's own color names, neither of which furnclip-tiny has seen; images of 96 px.
Entries have a fixed time, so the same renderer and Pillow give the same bytes.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from examples.drawn_shop import ShopOrder, write_shop

TARGET = Path(__file__).parents[3] / "furnclip" / "demo" / "catalogue.zip"
ORDER = ShopOrder(products=700, seed=0, drawing_styles=("ink",), image_px=96, own_words=True)


def pack(order: ShopOrder, target: Path) -> None:
    """Draw the shop and write it as one zip: the table deflated, the JPEGs as they are."""
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(target, "w") as archive:
        shop = Path(name)
        write_shop(shop, order)
        for path in (shop / "products.csv", *sorted((shop / "images").rglob("*.jpg"))):
            entry = zipfile.ZipInfo(path.relative_to(shop).as_posix())
            entry.compress_type = zipfile.ZIP_DEFLATED if path.suffix == ".csv" else zipfile.ZIP_STORED
            archive.writestr(entry, path.read_bytes())


if __name__ == "__main__":
    pack(ORDER, TARGET)
