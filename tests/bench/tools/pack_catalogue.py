"""Make the bundled catalogue: `python -m tests.bench.tools.pack_catalogue`.

Out: `furnclip/demo/catalogue.zip` of `products.csv` and `images/`: 1,400 products of seed 0 in the drawing
style `ink` and with the shop's own color names, neither of which furnclip-tiny has seen; drawn at 224 px and
reduced to the 96 px that furnclip-tiny takes. Entries have a fixed time, so the same renderer and Pillow
give the same bytes.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from examples.drawn_shop import ShopOrder, write_shop
from furnclip.images import encode_jpeg, load_square

TARGET = Path(__file__).parents[3] / "furnclip" / "demo" / "catalogue.zip"
ORDER = ShopOrder(products=1400, seed=0, drawing_styles=("ink",), own_words=True)
_IMAGE_PX = 96
_JPEG_QUALITY = 92


def pack(order: ShopOrder, target: Path) -> None:
    """Draw the shop and write it as one zip: the table deflated, the JPEGs stored."""
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(target, "w") as archive:
        shop = Path(name)
        write_shop(shop, order)
        table = (shop / "products.csv").read_bytes()
        archive.writestr(zipfile.ZipInfo("products.csv"), table, compress_type=zipfile.ZIP_DEFLATED)
        for path in sorted((shop / "images").rglob("*.jpg")):
            entry = zipfile.ZipInfo(path.relative_to(shop).as_posix())
            archive.writestr(entry, encode_jpeg(load_square(path, _IMAGE_PX), _JPEG_QUALITY))


if __name__ == "__main__":
    pack(ORDER, TARGET)
