"""What real exports have in them: variations without an image, drafts, and shortcodes of page builders."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from PIL import Image, ImageDraw

from furnclip.catalogue import ColumnTypes, Product, Rejection, read_products
from furnclip.catalogue.formats import formats
from furnclip.config import load_config
from tests.batch_server import BatchServer
from tests.clean_shop import server as server
from tests.conftest import Outcome, run_here
from tests.feed_files import table
from tests.shop_exports import EXPORTS, NO_GROUPS, ODDITIES

Row = Mapping[str, str]


class Shop:
    """An export in a folder with a photo of a gray chair and one of a red one; `init` ran on it."""

    def __init__(self, folder: Path, export: list[Row] | str) -> None:
        self.folder = folder
        (folder / "images").mkdir()
        for name, color in {"gray": (130, 130, 130), "red": (190, 40, 40)}.items():
            image = Image.new("RGB", (120, 120), (255, 255, 255))
            ImageDraw.Draw(image).rectangle((30, 30, 90, 100), fill=color)
            image.save(folder / "images" / f"{name}.png")
        rows = [] if isinstance(export, str) else export
        columns = dict.fromkeys(name for row in rows for name in row)
        content = (
            export
            if isinstance(export, str)
            else table({**dict.fromkeys(columns, ""), **row} for row in rows)
        )
        (folder / "export.csv").write_text(content, encoding="utf-8")
        self.told = self.run("init", "export.csv", "--json").ok()

    def run(self, *words: str, env: Mapping[str, str] | None = None) -> Outcome:
        return run_here(*words, cwd=self.folder, env=env)

    def hits(self, *words: str) -> list[dict[str, Any]]:
        """What a search finds, made ready on the first call."""
        model = {"FURNCLIP_MODEL__NAME": "furnclip-tiny"}
        for command in ("prepare", "embed"):
            self.run(command, env=model).ok()
        hits: list[dict[str, Any]] = self.run("search", *words, "--json", env=model).ok().json["hits"]
        return hits

    def table(self, name: str, column: str) -> dict[str, str]:
        """Of each product in a file of `clean`, what the column says."""
        id_column = self.told.json["recognized"]["settings"]["id_column"]
        with (self.folder / "work" / "clean" / name).open(encoding="utf-8", newline="") as file:
            return {row[id_column]: row[column] for row in csv.DictReader(file)}


def woo(number: int, name: str, **more: str) -> Row:
    kind = "variation" if "Parent" in more else "variable"
    row = {"ID": f"{number}", "Type": kind, "SKU": f"s{number}", "Name": name, "Published": "1"}
    return {**row, "Regular price": "9", "Images": "", "Parent": "", **more}


def of(color: str, material: str = "") -> Row:
    first = {"Attribute 1 name": "Color", "Attribute 1 value(s)": color}
    return {**first, "Attribute 2 name": "Material", "Attribute 2 value(s)": material}


def shopware(number: int, name: str, **more: str) -> Row:
    return {"product_number": f"{number}", "name": name, "cover_media_url": "", "parent_id": "", **more}


def amazon(number: int, name: str, **more: str) -> Row:
    row = {"item_sku": f"{number}", "item_name": name, "main_image_url": "", "parent_sku": ""}
    return {**row, "standard_price": "9", "color_name": "", "size_name": "", "material_type": "", **more}


VARIATIONS: dict[str, list[Row]] = {
    "woocommerce": [
        woo(1, "Wooden chair", Images="gray.png", **of("Red, Blue, Green", "Wood, Leather")),
        woo(2, "Wooden chair - Red", Parent="id:1", **of("Red")),
        woo(3, "Wooden chair", Parent="id:1", **of("Blue")),
        woo(4, "Wooden chair - Blue", Parent="id:1", Images="red.png"),
        woo(5, "Wooden chair - XL", Parent="id:1"),
        woo(6, "Wooden chair", Parent="id:1", **of("", "Leather")),
    ],
    "amazon": [
        amazon(1, "Wooden chair", main_image_url="gray.png"),
        amazon(2, "Wooden chair - Red", parent_sku="1"),
        amazon(3, "Wooden chair", parent_sku="1", color_name="Blue"),
        amazon(4, "Wooden chair - Blue", parent_sku="1", main_image_url="red.png"),
        amazon(5, "Wooden chair - XL", parent_sku="1"),
        amazon(6, "Wooden chair", parent_sku="1", material_type="Leather"),
    ],
    "shopware": [
        shopware(1, "Wooden chair", cover_media_url="gray.png"),
        shopware(2, "Wooden chair - Red", parent_id="1"),
        shopware(3, "", parent_id="1", options="color: Blue"),
        shopware(4, "Wooden chair - Blue", parent_id="1", cover_media_url="red.png"),
        shopware(5, "Wooden chair - XL", parent_id="1"),
        shopware(6, "", parent_id="1", options="material: Leather"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", VARIATIONS)
def test_what_a_variation_says_counts_more_than_its_parents_image(name: str, tmp_path: Path) -> None:
    shop = Shop(tmp_path, VARIATIONS[name])
    shop.run("clean", "run", "--backend", "local").ok()
    colors = shop.table("cleaned.csv", "color")
    assert list(colors.values()) == ["gray", "red", "blue", "red", "gray", "gray"], "4 has its own image"
    assert shop.table("cleaned.csv", "material")["6"] == "leather"


def test_a_model_is_told_that_the_image_is_the_parents(tmp_path: Path, server: BatchServer) -> None:
    shop = Shop(tmp_path, VARIATIONS["woocommerce"])
    shop.run("clean", "run", env=server.env).ok()
    asked = {}
    for batch in server.ran:
        for request in batch.requests:
            facts = json.loads(request["body"]["messages"][-1]["content"][0]["text"])
            asked[request["custom_id"].partition("-")[0]] = facts
    titles = {number: facts["title"].replace("Wooden chair", "") for number, facts in asked.items()}
    assert titles == {
        "1": "",
        "2": " - Red",
        "3": "Blue, ",
        "4": " - Blue",
        "5": " - XL",
        "6": "Leather, ",
    }
    assert sorted(number for number, facts in asked.items() if "picture" in facts) == ["2", "3", "5", "6"]


def shopify(handle: str, **more: str) -> Row:
    row = {"Handle": handle, "Title": f"Oak {handle}", "Image Src": "gray.png", "Variant Price": "9"}
    return {**row, "Published": "true", "Status": "active", **more}


def named(id_column: str, column: str, no: str, yes: str, **shared: str) -> list[Row]:
    """Two products, of which one is not in the shop."""
    return [{id_column: "draft", column: no, **shared}, {id_column: "shown", column: yes, **shared}]


WIX = {"fieldType": "Product", "productImageUrl": "gray.png", "name": "Oak chair"}
SQUARE = {"Variant ID": "1", "Hosted Image URLs": "gray.png", "Title": "Oak chair"}
WARE = {"cover_media_url": "gray.png", "name": "Oak chair"}
UNPUBLISHED: dict[str, list[Row]] = {
    "shopify": [
        shopify("draft", Status="draft"),
        {"Handle": "draft", "Image Src": "red.png"},
        shopify("shown"),
        {"Handle": "shown", "Image Src": "red.png"},
    ],
    "shopify archived": [shopify("draft", Status="archived", Published="true"), shopify("shown")],
    "shopify by channel": [shopify("draft", Published="FALSE"), shopify("shown", Published="TRUE")],
    "woocommerce": [
        woo(1, "Oak chair", Images="gray.png", SKU="draft", Published="-1"),
        woo(2, "Oak chair - Red", SKU="draft too", Parent="draft"),
        woo(3, "Oak chair", Images="gray.png", SKU="private", Published="0"),
        woo(4, "Oak chair", Images="gray.png", SKU="shown"),
    ],
    "wix": named("handleId", "visible", "false", "true", **WIX),
    "squarespace": named("Product ID", "Visible", "No", "Yes", **SQUARE),
    "shopware": named("product_number", "active", "0", "1", **WARE),
}


@pytest.mark.parametrize("name", UNPUBLISHED)
def test_what_is_not_published_is_no_product(name: str, tmp_path: Path) -> None:
    shop = Shop(tmp_path, UNPUBLISHED[name])
    hidden = 3 if name == "woocommerce" else 1
    recognized = shop.told.json["recognized"]
    assert recognized["products"] == 1
    assert f"{hidden} are not published; those are left out" in recognized["reasons"]["published_columns"]
    counts = shop.run("prepare", "--check", "--json").ok().json
    assert (counts["usable"], counts["reasons"]) == (1, {"unpublished": hidden})
    cleaned = shop.run("clean", "run", "--backend", "local", "--json").ok().json
    assert (cleaned["cleaned"], cleaned["reasons"]) == (1, {"unpublished": hidden})
    assert list(shop.table("cleaned.csv", "color")) == ["4" if name == "woocommerce" else "shown"]
    assert all(" says `" in detail for detail in shop.table("rejected.csv", "rejected_detail").values())
    if name != "shopify":
        return
    settings = (tmp_path / "furnclip.toml").read_text(encoding="utf-8")
    columns = json.dumps(recognized["settings"]["published_columns"])
    settings = settings.replace(f"published_columns = {columns}", "published_columns = []")
    (tmp_path / "furnclip.toml").write_text(settings, encoding="utf-8")
    cleaned = shop.run("clean", "run", "--backend", "local", "--json").ok().json
    assert cleaned["cleaned"] == hidden + 1, "on demand"


@pytest.mark.parametrize("name", EXPORTS)
def test_what_the_shop_shows_is_a_product_and_nothing_else(name: str, tmp_path: Path) -> None:
    shown, content = EXPORTS[name]
    shop, ids, kind = Shop(tmp_path, content), shown.split(), name.split(", ")[0]
    is_known = kind in {each["name"] for each in formats()["format"]}
    recognized = shop.told.json["recognized"]
    assert recognized["format"] == (kind if is_known else "plain table")
    assert recognized["products"] == len(ids)
    cleaned = shop.run("clean", "run", "--backend", "local", "--json").ok().json
    assert sorted(shop.table("cleaned.csv", "clean_title")) == sorted(ids)
    assert cleaned["reasons"].keys() <= {"unpublished"}, "no row is lost for another reason"


def sofa(*prices: str, parent: str, sku: str = "s1") -> list[Row]:
    """A product of variations, and before it one whose id is its SKU."""
    cells = {"Images": "gray.png", "Visibility in catalog": "visible"}
    variations = [
        woo(10 + n, f"Velvet sofa - {n}", Parent=parent, **{**cells, "Regular price": price})
        for n, price in enumerate(prices)
    ]
    alone = woo(7, "Oak table", **{**cells, "Regular price": "5", "Images": "red.png"})
    return [alone, *variations, woo(9, "Velvet sofa", SKU=sku, **{**cells, "Regular price": ""})]


@pytest.mark.parametrize("is_cleaned", [False, True])
@pytest.mark.parametrize(("parent", "sku"), [("s1", "s1"), ("id:9", "s1"), ("7", "7"), ("id:9", "")])
def test_a_parent_stands_for_its_variations(parent: str, sku: str, is_cleaned: bool, tmp_path: Path) -> None:
    """Its price is the lowest of theirs, and it is one hit with them, by whatever they call it."""
    hidden = woo(20, "Velvet sofa - last", Parent=parent, Published="0", **{"Regular price": "10"})
    shop = Shop(tmp_path, [*sofa("499", "", "89.5", "0", parent=parent, sku=sku), hidden])
    if is_cleaned:
        shop.run("clean", "run", "--backend", "local").ok()

    def prices(*words: str) -> dict[str, float | None]:
        hits = shop.hits("velvet sofa", "--all-variants", *words)
        return {hit["product_id"]: hit["columns"].get("price") for hit in hits}

    assert prices() == {"7": 5, "9": 89.5, "10": 499, "11": None, "12": 89.5, "13": 0}
    assert prices("--where", "price < 100 AND price > 50").keys() == {"9", "12"}
    [first, *others] = shop.hits("velvet sofa")
    assert (first["group"], first["variants"]) == ("9", 5)
    assert [hit["product_id"] for hit in others] == ["7"]


@pytest.mark.parametrize("name", ODDITIES)
def test_what_else_real_files_have_in_them_makes_no_product(name: str, tmp_path: Path) -> None:
    content, expected = ODDITIES[name]
    shop = Shop(tmp_path, content)
    paths = load_config(tmp_path / "furnclip.toml").paths
    found = list(read_products(paths.products, paths))
    products = [row for row in found if isinstance(row, Product)]
    types = ColumnTypes()
    for product in products:
        types.add(product.fields)
    price = next((column for column in types.columns() if column.name == "price"), None)
    assert [
        (each.product_id, each.title, " ".join(each.images), price and price.value(each.fields[price.source]))
        for each in products
    ] == expected
    assert {row.reason for row in found if isinstance(row, Rejection)} <= {"repeated-header"}
    assert shop.told.json["recognized"]["products"] == len(expected)


@pytest.mark.parametrize("name", NO_GROUPS)
def test_what_is_no_group_does_not_make_one_hit_of_several(name: str, tmp_path: Path) -> None:
    titles = ("Oak chair", "Pine chair", "Glass table")
    shop = Shop(tmp_path, [
        {"sku": f"p{n}", "title": title, "image": f"{('gray', 'red')[n % 2]}.png", column: cell}
        for n, (title, (column, cell)) in enumerate(zip(titles, NO_GROUPS[name], strict=True))
    ])  # fmt: skip
    assert not shop.told.json["recognized"]["settings"].keys() & {"group_column", "parent_column"}
    assert len(shop.hits("chair")) == len(titles)


@pytest.mark.parametrize("column", ["parent_sku", "Parent ID"])
def test_a_parent_in_a_plain_table_is_one_hit_with_its_variations(column: str, tmp_path: Path) -> None:
    rows: list[Row] = [
        {"sku": "p1", "title": "Oak chair", "image": "gray.png", "price": "9", column: "0"},
        {"sku": "p2", "title": "Oak chair - red", "image": "red.png", "price": "8", column: "p1"},
        {"sku": "p3", "title": "Glass table", "image": "red.png", "price": "7", column: "0"},
        {"sku": "p4", "title": "Pine bed", "image": "gray.png", "price": "6", column: "0"},
    ]
    hits = Shop(tmp_path, rows).hits("oak chair")
    assert {hit["product_id"]: hit["variants"] for hit in hits} in (
        {"p1": 2, "p3": 1, "p4": 1},
        {"p2": 2, "p3": 1, "p4": 1},
    )


SHORTCODES = {
    "[vc_row][vc_column width=\"1/2\"]Oak chair[/vc_column][/vc_row]": "Oak chair",
    "[vc_row][vc_column_text]Oak chair, cut": "Oak chair, cut",
    '[caption id="attachment_1" align="alignleft"]<img src="a.jpg" /> Oak[/caption] chair': "Oak chair",
    "[et_pb_text title='a ] b' _builder_version=&quot;4&quot;]<p>Oak chair</p>[/et_pb_text]": "Oak chair",
    "[tabs][tab]Oak[/tab][/tabs] chair [gallery ids=&#8221;1,2&#8221; /]": "Oak chair",
    "Oak chair [2-pack] [EU]": "Oak chair [2-pack] [EU]",
    "Oak chair [new]  [set of 2]": "Oak chair [new]  [set of 2]",
    "Oak chair [w = 40 cm] [ab_12] [": "Oak chair [w = 40 cm] [ab_12] [",
}  # fmt: skip


def test_shortcodes_of_page_builders_are_no_words(tmp_path: Path) -> None:
    shop = Shop(tmp_path, [
        {"id": f"{n}", "title": text, "image": "gray.png", "description": text}
        for n, text in enumerate(SHORTCODES)
    ])  # fmt: skip
    shop.hits("chair")
    table = pyarrow.parquet.read_table(tmp_path / "work" / "embeddings" / "master_vectors.parquet")
    found = {
        row["product_id"]: row for row in table.select(["product_id", "title", "description"]).to_pylist()
    }
    for number, plain in enumerate(SHORTCODES.values()):
        row = found[f"{number}"]
        assert (row["title"], row["description"]) == (plain, plain)
