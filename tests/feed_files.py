"""One small shop in every format that shops export: twelve products, and what their images are called."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

KINDS = ("oak sideboard", "velvet armchair", "glass table", "brass lamp", "pine bed", "leather sofa")
PRODUCTS = 12
Names = Callable[[int], str]  # number of an image -> its name or address in a cell


def title(number: int) -> str:
    return f"{('Red', 'Green')[number % 2]} {KINDS[number % 6]} No. {number}"


def price(number: int) -> float:
    return 20.5 + 15 * number


def body(number: int) -> str:
    """With quotes, a line break and an entity in it."""
    return f'<p class="x">Solid &amp; <b>fine</b>,\n{KINDS[number % 6]}; "made" by hand</p>'


def table(rows: Iterable[Mapping[str, object]], delimiter: str = ",", end: str = "\n") -> str:
    rows = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def shopify(names: Names) -> bytes:
    rows = []
    for n in range(PRODUCTS):
        blank = dict.fromkeys(
            [
                "Handle",
                "Title",
                "Body (HTML)",
                "Vendor",
                "Tags",
                "Published",
                "Option1 Name",
                "Option1 Value",
                "Variant SKU",
                "Variant Inventory Qty",
                "Variant Price",
                "Image Src",
                "Image Position",
            ],
            "",
        )
        blank["Handle"] = f"product-{n}"
        first = {
            "Title": title(n),
            "Body (HTML)": body(n),
            "Vendor": "Oslo",
            "Tags": "new, oak",
            "Published": "true",
        }
        variant = {
            "Option1 Name": "Size",
            "Option1 Value": "S",
            "Variant SKU": f"S-{n}",
            "Variant Inventory Qty": n,
            "Variant Price": f"{price(n):.2f}",
        }
        rows.append({**blank, **first, **variant, "Image Src": names(n), "Image Position": 1})
        second = {
            **variant,
            "Option1 Value": "L",
            "Variant SKU": f"L-{n}",
            "Variant Price": f"{price(n) + 50:.2f}",
        }
        rows.append({**blank, **second, "Image Src": names(n + PRODUCTS), "Image Position": 2})
        rows.append({**blank, "Image Src": names(n + 2 * PRODUCTS), "Image Position": 3})
    return table(rows, end="\r\n").encode("utf-8-sig")


def woocommerce(names: Names) -> bytes:
    rows = []
    for n in range(PRODUCTS):
        parent = n - n % 4
        is_parent = n == parent
        rows.append(
            {
                "ID": 100 + n,
                "Type": "variable" if is_parent else "variation",
                "SKU": f"woo-{n}",
                "Name": title(n),
                "Published": 1,
                "Is featured?": 0,
                "Description": body(n) if is_parent else "",
                "In stock?": n % 2,
                "Stock": "",
                "Sale price": "",
                "Regular price": price(n),
                "Categories": "Home > Chairs, Sale",
                "Images": f"{names(n)}, {names(n + PRODUCTS)}",
                "Parent": "" if is_parent else (f"id:{100 + parent}", f"woo-{parent}")[n % 2],
            }
        )
    return table(rows).encode()


GERMAN = {
    "Type": "Typ",
    "SKU": "Artikelnummer",
    "Published": "Veröffentlicht",
    "Is featured?": "Ist hervorgehoben?",
    "Description": "Beschreibung",
    "In stock?": "Vorrätig?",
    "Stock": "Lager",
    "Sale price": "Angebotspreis",
    "Regular price": "Regulärer Preis",
    "Categories": "Kategorien",
    "Images": "Bilder",
    "Parent": "Übergeordnetes Produkt",
}


def woocommerce_german(names: Names) -> bytes:
    rows = csv.DictReader(io.StringIO(woocommerce(names).decode(), newline=""))
    german = [{GERMAN.get(key, key): value for key, value in row.items()} for row in rows]
    for row in german:
        row["Regulärer Preis"] = row["Regulärer Preis"].replace(".", ",")
    return table([dict(reversed(row.items())) for row in german], delimiter=";").encode("cp1252")


def google_fields(n: int, names: Names) -> dict[str, str]:
    return {
        "id": f"G{n}",
        "title": title(n),
        "description": body(n),
        "link": f"https://shop.example/p/{n}",
        "image_link": names(n),
        "availability": ("in stock", "out of stock", "preorder")[n % 3],
        "price": f"{price(n):.2f} USD",
        "brand": "Oslo",
        "condition": "new",
        "item_group_id": f"group-{n // 2}",
    }


def google_tsv(names: Names) -> bytes:
    """With the column of further images twice."""
    rows = [
        {**google_fields(n, names), "additional_image_link": names(n + PRODUCTS)} for n in range(PRODUCTS)
    ]
    header, *lines = table(rows, delimiter="\t").splitlines(keepends=True)
    twice = [header.rstrip("\n") + "\tadditional_image_link\n"]
    text = "".join(lines)
    for row, cells in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter="\t")):
        out = io.StringIO(newline="")
        csv.writer(out, delimiter="\t", lineterminator="\n").writerow([*cells, names(row + 2 * PRODUCTS)])
        twice.append(out.getvalue())
    return "".join(twice).encode()


def google_rss(names: Names) -> bytes:
    items = []
    for n in range(PRODUCTS):
        fields = "".join(
            f"<g:{key}>{escape(value)}</g:{key}>" for key, value in google_fields(n, names).items()
        )
        more = "".join(
            f"<g:additional_image_link>{escape(names(n + k * PRODUCTS))}</g:additional_image_link>"
            for k in (1, 2)
        )
        shipping = "<g:shipping><g:country>US</g:country><g:price>7.99 USD</g:price></g:shipping>"
        items.append(f"<item>{fields}{more}{shipping}</item>")
    head = '<?xml version="1.0"?>\n<rss xmlns:g="http://base.google.com/ns/1.0" version="2.0"><channel>'
    return f"{head}<link>https://shop.example</link>{''.join(items)}</channel></rss>".encode()


def google_atom(names: Names) -> bytes:
    entries = []
    for n in range(PRODUCTS):
        fields = {key: escape(value) for key, value in google_fields(n, names).items()}
        own = "".join(
            f"<g:{key}>{value}</g:{key}>"
            for key, value in fields.items()
            if key not in ("title", "description", "link")
        )
        entries.append(
            f'<entry><title>{fields["title"]}</title><link href="{fields["link"]}"/>'
            f"<summary><![CDATA[{body(n)}]]></summary>{own}</entry>"
        )
    head = '<?xml version="1.0" encoding="utf-8"?><feed xmlns="http://www.w3.org/2005/Atom" xmlns:g="http://base.google.com/ns/1.0">'
    return f"{head}<title>Shop</title>{''.join(entries)}</feed>".encode()


def magento(names: Names) -> bytes:
    rows = []
    for n in range(PRODUCTS):
        row = {
            "sku": f"M-{n}",
            "store_view_code": "",
            "attribute_set_code": "Default",
            "product_type": "simple",
            "name": title(n),
            "description": body(n),
            "price": f"{price(n):.4f}",
            "base_image": names(n),
            "additional_images": f"{names(n + PRODUCTS)},{names(n + 2 * PRODUCTS)}",
            "qty": f"{n}.0000",
            "is_in_stock": n % 2,
            "created_at": "2024-01-31 10:00:00",
        }
        rows += [
            row,
            {**dict.fromkeys(row, ""), "sku": f"M-{n}", "store_view_code": "de", "name": "Auf Deutsch"},
        ]
    return table(rows).encode()


def amazon(names: Names) -> bytes:
    rows = [
        {
            "feed_product_type": "chair",
            "item_sku": f"A-{n}",
            "brand_name": "Oslo",
            "item_name": title(n),
            "standard_price": price(n),
            "quantity": n,
            "main_image_url": names(n),
            "other_image_url1": names(n + PRODUCTS),
            "other_image_url2": "",
            "parent_child": "Child" if n % 3 else "Parent",
            "parent_sku": f"A-{n - n % 3}" if n % 3 else "",
            "product_description": body(n) if not n % 3 else "",
        }
        for n in range(PRODUCTS)
    ]
    text = table(rows, delimiter="\t")
    labels = "\t".join(f"Label of {name}" for name in rows[0])
    first = (
        "TemplateType=fptcustom\tVersion=2021.0308\tThe top 3 rows are for Amazon.com use only."
        + "\t" * (len(rows[0]) - 3)
    )
    return f"{first}\n{labels}\n{text}".encode()


def berkeley(names: Names) -> bytes:
    def both(text: str) -> list[dict[str, str]]:
        return [
            {"language_tag": "de_DE", "value": f"Deutsch {text}"},
            {"language_tag": "en_US", "value": text},
        ]

    lines = [
        {
            "item_id": f"B0{n}",
            "item_name": both(title(n)),
            "brand": both("Oslo"),
            "bullet_point": both("Solid"),
            "product_type": [{"value": "CHAIR"}],
            "main_image_id": names(n),
            "other_image_id": [names(n + PRODUCTS)],
            "item_weight": [{"unit": "pounds", "value": 3.5}],
            "price": price(n),
        }
        for n in range(PRODUCTS)
    ]
    return gzip.compress("\n".join(map(json.dumps, lines)).encode())


def bigcommerce(names: Names) -> bytes:
    """Images and variants in rows of their own, with ids of their own."""
    columns = "Item,ID,Name,SKU,Options,Current Stock,Price,Description,Internal Image URL (Export)"
    rows = []
    for n in range(PRODUCTS):
        product = {
            "Item": "Product",
            "ID": 70 + n,
            "Name": title(n),
            "Price": price(n),
            "Description": body(n),
        }
        variant = {"Item": "Variant", "ID": 500 + n, "SKU": f"L-{n}", "Current Stock": n}
        images = [
            {"Item": "Image", "ID": 900 + n + k, "Internal Image URL (Export)": names(n + k * PRODUCTS)}
            for k in range(2)
        ]
        rows += [{**dict.fromkeys(columns.split(","), ""), **row} for row in (product, variant, *images)]
    return table(rows, end="\r\n").encode()


def nested_json(names: Names) -> bytes:
    rows = [
        {
            "offerId": f"n{n}",
            "productTitle": title(n),
            "variants": [{"price": f"{price(n) + more}", "size": "SL"[more > 0]} for more in (0, 9)],
            "image": {"src": names(n)},
            "images": [{"src": names(n), "alt": "in front"}, {"src": names(n + PRODUCTS)}],
        }
        for n in range(PRODUCTS)
    ]
    answer = {"meta": {"pages": [1], "of": 1}, "data": {"products": rows}, "links": {"next": None}}
    return json.dumps(answer, indent=1).encode()


def wands(names: Names) -> bytes:
    rows = [
        {
            "product_id": n,
            "product_name": title(n),
            "product_class": "Beds",
            "category hierarchy": "Furniture / Beds",
            "product_description": body(n),
            "product_features": "color : red|material:wood",
            "rating_count": "15.0",
            "average_rating": "4.5",
            "review_count": "",
            "price": price(n),
            "image": names(n),
        }
        for n in range(PRODUCTS)
    ]
    return table(rows, delimiter="\t").encode()


def plain(names: Names) -> bytes:
    rows = [
        {
            "Preis": f"€ 1.{price(n):06.2f}".replace(".", ",").replace(",", ".", 1)
            if n > 8
            else f"{price(n):.2f} €".replace(".", ","),
            "Bezeichnung": title(n),
            "BILD": names(n),
            "Artikelnummer": f"0{n}",
        }
        for n in range(PRODUCTS)
    ]
    return table(rows, delimiter=";").encode("utf-8-sig")


def french_json(names: Names) -> bytes:
    rows = [
        {
            "Prix": price(n),
            "Désignation": title(n),
            "Photos": [names(n), names(n + PRODUCTS)],
            "Référence": f"r{n}",
            "En stock": n % 2 == 0,
        }
        for n in range(PRODUCTS)
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False).encode()


def image_folder(names: Names) -> bytes:
    lines = [{"file_name": names(n), "text": title(n), "price": price(n)} for n in range(PRODUCTS)]
    return "\n".join(map(json.dumps, lines)).encode()


def parquet(names: Names) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = [{"bytes": IMAGES[n], "path": None} for n in range(PRODUCTS)]
    rows = {
        "image": image,
        "caption": [title(n) for n in range(PRODUCTS)],
        "price": [price(n) for n in range(PRODUCTS)],
    }
    file = io.BytesIO()
    pq.write_table(pa.table(rows), file)
    return file.getvalue()


IMAGES: list[bytes] = []  # their content, drawn once


@dataclass(frozen=True)
class FeedFile:
    """A file, what it has to be recognized as, and how many products and rows it has."""

    name: str
    content: Callable[[Names], bytes]
    format: str
    rows: int = PRODUCTS

    def write(self, folder: Path, names: Names) -> Path:
        path = folder / self.name
        path.write_bytes(self.content(names))
        return path


FEEDS = {
    "shopify": FeedFile("products_export.csv", shopify, "Shopify product export", 3 * PRODUCTS),
    "woocommerce": FeedFile("wc-product-export.csv", woocommerce, "WooCommerce product export"),
    "woocommerce german": FeedFile("wc-produkte.csv", woocommerce_german, "WooCommerce product export"),
    "google tsv": FeedFile("feed.txt", google_tsv, "Google Merchant Center feed"),
    "google rss": FeedFile("feed.xml", google_rss, "Google Merchant Center feed"),
    "google atom": FeedFile("atom.xml", google_atom, "Google Merchant Center feed"),
    "magento": FeedFile("catalog_product.csv", magento, "Magento product export", 2 * PRODUCTS),
    "amazon": FeedFile("flat.file.txt", amazon, "Amazon flat file"),
    "berkeley": FeedFile("listings_0.json.gz", berkeley, "Amazon-Berkeley listings"),
    "wands": FeedFile("product.csv", wands, "Wayfair WANDS products"),
    "plain": FeedFile("artikel.csv", plain, "plain table"),
    "json": FeedFile("produits.json", french_json, "plain table"),
    "image folder": FeedFile("metadata.jsonl", image_folder, "Hugging Face image folder"),
    "bigcommerce": FeedFile("products-export.csv", bigcommerce, "BigCommerce product export", 4 * PRODUCTS),
    "nested json": FeedFile("products.json", nested_json, "plain table"),
    "parquet": FeedFile("train.parquet", parquet, "plain table"),
}
