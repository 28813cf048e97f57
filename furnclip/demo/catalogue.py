"""The catalogue that comes with the package: 700 drawn products with messy titles, images of 96 px.

Drawn once by `examples/drawn_shop` and packed into `catalogue.zip`: `products.csv` and `images/`. The
drawing style and some color names are ones that furnclip-tiny has not seen.
"""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

from furnclip.journal import write_text

_BUNDLE = Path(__file__).parent / "catalogue.zip"


def unpack(folder: Path, *, products: int, seed: int) -> None:
    """Write `products.csv` and the images of the first `products` rows into `folder`.

    A `seed` other than 0 is appended to every product id: a product's split follows from a hash of its
    id, so each seed has splits of its own.
    """
    with zipfile.ZipFile(_BUNDLE) as bundle:
        table = csv.DictReader(io.StringIO(bundle.read("products.csv").decode("utf-8"), newline=""))
        rows = [row for row, _ in zip(table, range(products), strict=False)]
        for row in rows:
            name = f"images/{row['image']}"
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bundle.read(name))
    write_text(folder / "products.csv", _csv_text(rows, suffix=f"-{seed}" if seed else ""))


def _csv_text(rows: list[dict[str, str]], *, suffix: str) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "product_id": row["product_id"] + suffix} for row in rows)
    return text.getvalue()
