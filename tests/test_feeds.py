"""Catalogues as shops export them: recognized, and usable without a hand on the settings."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from furnclip.catalogue import Product, read_products, recognize
from furnclip.catalogue.columns import ColumnTypes
from furnclip.config import load_config
from furnclip.errors import InputError
from tests import feed_files
from tests.conftest import Outcome, run_here
from tests.drawn_shop import draw, rows
from tests.feed_files import FEEDS, PRODUCTS, FeedFile, Names, price, table, title
from tests.image_server import ImageServer, image_server

# Exports of these name their images by web address.
ON_THE_WEB = (
    "bigcommerce",
    "nested json",
    "shopify",
    "woocommerce",
    "woocommerce german",
    "google",
    "magento",
    "amazon",
    "json",
)


@pytest.fixture(autouse=True, scope="module")
def _drawn() -> Iterator[None]:
    for row in rows(3 * PRODUCTS):
        file = io.BytesIO()
        draw(row).save(file, "PNG")
        feed_files.IMAGES.append(file.getvalue())
    yield
    feed_files.IMAGES.clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images in `photos/large`, in which commands run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "large").mkdir(parents=True)
    for number, content in enumerate(feed_files.IMAGES):
        (tmp_path / "photos" / "large" / f"{number}.png").write_bytes(content)
    return tmp_path


def run(*words: str) -> Outcome:
    return run_here(*words, cwd=Path())


def set_up(feed: FeedFile, folder: Path, names: Names = "{}.png".format) -> Outcome:
    """The feed in the folder, and `init` run on it; then only the backend and the model are set by hand."""
    feed.write(folder, names)
    told = run("init", feed.name, "--json").ok()
    settings = (folder / "furnclip.toml").read_text().replace('backend = "openai"', 'backend = "local"')
    settings = settings.replace('name = "openai/clip-vit-base-patch32"', 'name = "furnclip-tiny"')
    (folder / "furnclip.toml").write_text(settings)
    return told


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageServer]:
    """A web server with the images; those that are there are called `.jpg`, whatever they are."""
    folder = tmp_path_factory.mktemp("web")
    for number, content in enumerate(feed_files.IMAGES):
        (folder / f"{number}.jpg").write_bytes(content)
    with image_server(folder=folder) as server:
        yield server


@pytest.mark.parametrize("name", FEEDS)
def test_a_feed_becomes_search_as_init_wrote_it(
    name: str, folder: Path, web: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, is_on_the_web = FEEDS[name], name.startswith(ON_THE_WEB)
    told = set_up(feed, folder, f"{web.address}/shop/{{}}.jpg".format if is_on_the_web else "{}.png".format)
    recognized = told.json["recognized"]
    assert (recognized["format"], recognized["rows"]) == (feed.format, feed.rows)
    assert recognized["products"] == PRODUCTS
    assert f"is read as {feed.format}" in told.stderr
    assert all(f"paths.{name} = " in told.stderr for name in recognized["reasons"])
    # Every product, with its title in plain text, its images, and a price that is a number.
    paths = load_config().paths
    products = [row for row in read_products(paths.products, paths) if isinstance(row, Product)]
    assert [product.title for product in products] == [title(n) for n in range(PRODUCTS)]
    assert sum(product.file_rows for product in products) == feed.rows
    types = ColumnTypes()
    for product in products:
        types.add(product.fields)
    [column] = [column for column in types.columns() if column.name == "price"]
    expected = [price(n) + 1000 * (feed.name == "artikel.csv" and n > 8) for n in range(PRODUCTS)]
    assert [column.value(product.fields[column.source]) for product in products] == expected
    # No row is lost on the way.
    if is_on_the_web:
        monkeypatch.setenv("FURNCLIP_FETCH__ALLOW_PRIVATE", "localhost")
        fetched = run("fetch", "--json").ok().json
        assert (fetched["fetched"], fetched["failed"]) == (fetched["addresses"], {})
        assert fetched["addresses"] >= PRODUCTS
    counts = run("prepare", "--check", "--json").ok().json
    assert (counts["usable"], counts["raw_catalogue"]["rows"]) == (PRODUCTS, feed.rows)
    cleaned = run("clean", "run", "--json").ok().json
    assert (cleaned["rows"], cleaned["cleaned"], cleaned["rejected"]) == (PRODUCTS, PRODUCTS, 0)
    prepared = run("prepare", "--json").ok().json
    assert (prepared["products"], prepared["rejected"]) == (PRODUCTS, {})
    assert run("embed", "--json").ok().json["products"] == PRODUCTS
    found = run("search", "green chair", "-k", "50", "--where", "price < 100", "--json").ok().json["hits"]
    assert 0 < len(found) <= sum(cost < 100 for cost in expected) < PRODUCTS  # groups are one hit each
    groups = {product.product_id: product.group for product in products}
    sizes = Counter(groups.values())
    assert {hit["product_id"]: hit["variants"] for hit in found} == {
        hit["product_id"]: sizes[groups[hit["product_id"]]] if groups[hit["product_id"]] else 1
        for hit in found
    }


LOCALE = "[marketplace_id=A1][language_tag=en_US]#1"
PLAIN, WOO, SHOPIFY = "plain table", "WooCommerce product export", "Shopify product export"
# format; the columns with id, title, image, price, stock; further ones with images
OTHERS = {
    "woocommerce french": (WOO, "ID,Nom,Images,Tarif régulier,En stock ?", "Type,UGS"),
    "woocommerce spanish": (WOO, "ID,Nombre,Imágenes,Precio normal,¿En inventario?", "Tipo,SKU"),
    "woocommerce italian": (WOO, "ID,Nome,Immagine,Prezzo di listino,In stock?", "Tipo,SKU"),
    "woocommerce dutch": (WOO, "ID,Naam,Afbeeldingen,Reguliere prijs,Op voorraad?", "Type,SKU"),
    "woocommerce polish": (WOO, "ID,Nazwa,Obrazki,Cena,Na stanie?", "Rodzaj,SKU"),
    "shopify of today": (SHOPIFY, "URL handle,Title,Product image URL,Price,Inventory quantity", ""),
    "prestashop": (
        PLAIN,
        "Product ID,Name *,Image URLs (x;y;z...),Price tax excluded,Quantity",
        "Image alt texts",
    ),
    "prestashop list": (PLAIN, "Product ID,Name,Image,Price (tax excl.),Quantity", "Price (tax incl.)"),
    "bigcommerce": (
        PLAIN,
        "Product ID,Product Name,Product Image File - 1,Price,Current Stock Level",
        "Product Image File - 2,Product Image File - 12",
    ),
    "wix": ("Wix product export", "handleId,name,productImageUrl,price,inventory", "fieldType,sku"),
    "squarespace": (
        "Squarespace product export",
        "Product ID [Non Editable],Title,Hosted Image URLs,Price,Stock",
        "Variant ID [Non Editable],SKU,Sale Price",
    ),
    "ecwid": (
        "Ecwid product export",
        "product_internal_id,product_name,product_media_main_image_url,product_price,product_quantity",
        "type,product_media_main_image_alt,product_media_gallery_image_url_1",
    ),
    "lightspeed": (
        "Lightspeed eCom product export",
        "Internal_ID,US_Title_Short,Images,Price,Stock_Level",
        "Internal_Variant_ID,NL_Title_Short,Price_Cost,Stock_Min,Article_Code",
    ),
    "akeneo": (PLAIN, "sku,name-en_US,image,price-EUR,in_stock", "name-de_DE,family,price_cost-EUR"),
    "awin": (
        PLAIN,
        "merchant_product_id,product_name,merchant_image_url,search_price,in_stock",
        "merchant_name,alternate_image,delivery_cost,category_name",
    ),
    "an erp": (
        PLAIN,
        "Art.-Nr.,Bezeichnung 1,Bilddatei 1,VK brutto €,Lagerbestand",
        "Bezeichnung 2,EK netto,Bilddatei 2,Warengruppe",
    ),
    "idealo": (
        PLAIN,
        "Artikelnummer im Shop,Produktname,Bild-URL(s),Preis (Brutto),Lagerbestand",
        "Hersteller / Markenname,Versandkosten",
    ),
    "etsy": (PLAIN, "SKU,TITLE,IMAGE1,PRICE,QUANTITY", "IMAGE2,IMAGE10"),
    "amazon of today": (
        "Amazon flat file",
        f"contribution_sku#1.value,item_name{LOCALE}.value,main_product_image_locator{LOCALE}.media_location,"
        "purchasable_offer[audience=ALL]#1.our_price#1.value_with_tax,fulfillment_availability#1.quantity",
        f"other_product_image_locator_1{LOCALE}.media_location",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_headers_of_other_shops_and_languages_are_understood(name: str, folder: Path) -> None:
    format, header, more = OTHERS[name]
    columns, others = header.split(","), more.split(",") if more else []
    cells = [
        [f"x{n}", title(n), f"{n}.png", f"{price(n)}", n % 2, *(f"{n}-{other}.png" for other in others)]
        for n in range(PRODUCTS)
    ]
    rows = [dict(zip([*columns, *others], row, strict=True)) for row in cells]
    (folder / "export.csv").write_text(table(reversed_columns(row) for row in rows), encoding="utf-8")
    found = recognize(folder / "export.csv")
    roles = [found.settings[f"{role}_column"] for role in ("id", "title", "image")]
    assert (found.format, roles) == (format, columns[:3])
    assert {
        column.name: column.source for column in found.columns if column.name in ("price", "in_stock")
    } == {
        "price": columns[3],
        "in_stock": columns[4],
    }
    images = [other for other in others if re.search("(?i)image(?!.*alt)|bild", other)]
    assert sorted(found.settings.get("more_image_columns", [])) == sorted(images)


def reversed_columns(row: Mapping[str, object]) -> dict[str, object]:
    return dict(reversed(row.items()))


def test_rows_and_columns_of_a_product_come_together(folder: Path) -> None:
    for name, count in {
        "shopify": 3,
        "google tsv": 3,
        "google rss": 3,
        "magento": 3,
        "woocommerce": 2,
    }.items():
        set_up(FEEDS[name], folder)
        paths = load_config().paths
        for number, product in enumerate(read_products(paths.products, paths)):
            assert isinstance(product, Product)
            expected = [f"{number + k * PRODUCTS}.png" for k in range(count)]
            assert list(product.images) == expected, name
        (folder / "furnclip.toml").unlink()
        (folder / ".env.example").unlink()


@pytest.mark.parametrize("name", ["woocommerce", "amazon"])
def test_variations_are_in_their_parents_group_and_have_what_it_says(name: str, folder: Path) -> None:
    set_up(FEEDS[name], folder)
    paths = load_config().paths
    products = [row for row in read_products(paths.products, paths) if isinstance(row, Product)]
    size = 4 if name == "woocommerce" else 3
    groups = [product.group for product in products]
    assert groups == [products[n - n % size].product_id for n in range(PRODUCTS)]
    told_by = "Description" if name == "woocommerce" else "product_description"
    assert all("fine" in product.fields[told_by] for product in products)


def test_a_preferred_language_is_a_setting(folder: Path) -> None:
    set_up(FEEDS["berkeley"], folder)
    paths = load_config(None, {"paths": {"language": "de"}}).paths
    first = next(iter(read_products(paths.products, paths)))
    assert isinstance(first, Product)
    assert first.title == f"Deutsch {title(0)}"


def test_a_file_that_fits_two_formats_says_so(folder: Path) -> None:
    table = "handle,title,id,image_src,image_link,variant_price\na,Chair,1,0.png,0.png,5\n"
    (folder / "both.csv").write_text(table)
    told = run("init", "both.csv").ok()
    assert "read as Shopify product export" in told.stderr
    assert "fits Google Merchant Center feed as well" in told.stderr


def test_what_is_no_catalogue_is_told(folder: Path) -> None:
    (folder / "bomb.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><rss><item><id>&a;</id></item></rss>')
    (folder / "outside.xml").write_text(
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><rss><item><id>&a;</id></item></rss>'
    )
    (folder / "page.html").write_text("<html><body>Not found</body></html>")
    (folder / "torn.xml").write_bytes(FEEDS["google rss"].content(str)[:-300])
    for name in ("bomb.xml", "outside.xml", "page.html", "torn.xml"):
        with pytest.raises(InputError):
            recognize(folder / name)
    assert run("init", "nowhere.csv").code == 1
    assert not (folder / "furnclip.toml").exists()


def test_image_ids_are_found_by_the_table_of_the_shop(folder: Path) -> None:
    """In the layout of the public data set: `listings/metadata`, `images/metadata`, `images/small/00/...`."""
    (folder / "listings" / "metadata").mkdir(parents=True)
    catalogue = FEEDS["berkeley"].write(folder / "listings" / "metadata", "id{}".format)
    told = run("init", str(catalogue)).ok()
    assert "put `images.csv.gz`, which names the file of each image id, beside it" in told.stderr
    for number, content in enumerate(feed_files.IMAGES):
        path = folder / "images" / "small" / f"{number % 3:02x}" / f"{number + 7:08x}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    lines = [f"id{n},9,9,{n % 3:02x}/{n + 7:08x}.png" for n in range(len(feed_files.IMAGES))]
    (folder / "images" / "metadata").mkdir()
    content = gzip.compress("\n".join(["image_id,height,width,path", *lines]).encode())
    (folder / "images" / "metadata" / "images.csv.gz").write_bytes(content)
    settings = run("init", str(catalogue), "--force", "--json").ok().json["recognized"]["settings"]
    assert settings["image_table"] == "images/metadata/images.csv.gz"
    assert settings["images"] == "images/small"
    counts = run("prepare", "--check", "--json").ok().json["raw_catalogue"]
    assert (counts["usable"], counts["images"]) == (PRODUCTS, 2 * PRODUCTS)
    (folder / "images" / "metadata" / "images.csv.gz").unlink()
    told = run("prepare", "--check")
    assert (told.code, "images.csv.gz` is no table of images" in told.stderr) == (1, True)


@pytest.mark.parametrize("wrong", ["photos", "elsewhere"])
def test_a_wrong_image_folder_is_told_with_the_likely_right_one(wrong: str, folder: Path) -> None:
    set_up(FEEDS["shopify"], folder)
    settings = (folder / "furnclip.toml").read_text()
    assert 'images = "photos/large"' in settings
    (folder / "furnclip.toml").write_text(settings.replace("photos/large", wrong))
    right = f'set `paths.images = "{folder / "photos" / "large"}"`'
    for command in (
        *([["doctor"]] if wrong == "elsewhere" else []),  # that has much else to do
        ["prepare", "--check"],
        ["clean", "estimate"],
        ["clean", "run"],
        ["prepare", "--check"],
    ):
        told = run(*command)
        assert told.code == 1, command
        text = told.stdout if command == ["doctor"] else told.stderr
        [line] = [line for line in text.splitlines() if right in line and line.startswith(("hint", "fail"))]
        assert "12 of the 12" in line


def test_the_folder_that_is_set_is_no_advice(folder: Path) -> None:
    set_up(FEEDS["plain"], folder)
    for number in range(4):
        (folder / "photos" / "large" / f"{number}.png").unlink()
    told = run("prepare", "--check").ok()
    assert "4 without one that can be used" in told.stdout + told.stderr
    assert "set `paths.images" not in told.stdout + told.stderr


# where the images lie, what the cells say of them, the folder that `init` settles on
WRITTEN_WITH = {
    "the folder's name": ("images", "images/{}.jpg", "."),
    "two folders": ("media/large", "media/large/{}.jpg", "."),
    "the last of two": ("media/large", "large/{}.jpg", "media"),
    "the file alone": ("media/large", "{}.jpg", "media/large"),
}


@pytest.mark.parametrize("name", WRITTEN_WITH)
def test_init_takes_the_folder_below_which_the_names_are_right(name: str, tmp_path: Path) -> None:
    place, cells, wanted = WRITTEN_WITH[name]
    (tmp_path / place).mkdir(parents=True)
    for number in range(PRODUCTS):
        (tmp_path / place / f"{number}.jpg").write_bytes(feed_files.IMAGES[number % len(feed_files.IMAGES)])
    rows = [{"product_id": f"p{n}", "title": title(n), "image": cells.format(n)} for n in range(PRODUCTS)]
    (tmp_path / "products.csv").write_text(table(rows))
    made = run("init", str(tmp_path), "--json").ok().json
    assert made["recognized"]["settings"]["images"] == wanted
    checked = run("prepare", "--check", "--config", str(tmp_path / "furnclip.toml")).ok()
    assert "not quite those" not in checked.stderr


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(3000)
# what lies in the image folder, by its name from a number; what the cells say; a word of the one line
UNUSABLE = {
    "zipped": ({"photos.zip": b"PK\x03\x04"}, "{}.jpg", "unpack `"),
    "empty": ({f"{n}.jpg": b"" for n in range(PRODUCTS)}, "{}.jpg", "as JPEG or PNG"),
    "a page": ({f"{n}.jpg": b"<html>" for n in range(PRODUCTS)}, "{}.jpg", "as JPEG or PNG"),
    "heic": ({f"{n}.heic": HEIC for n in range(PRODUCTS)}, "{}.jpg", "as JPEG or PNG"),
    "by id": (
        {f"p{n}.webp": b"RIFF" for n in range(PRODUCTS)},
        "photo {}",
        'paths.image_column = "product_id"`',
    ),
    "nowhere": ({}, "{}.jpg", "no folder near"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_images_that_cannot_be_used_are_told_before_anything_is_done(name: str, tmp_path: Path) -> None:
    files, cells, words = UNUSABLE[name]
    (tmp_path / "images").mkdir()
    for file, content in files.items():
        (tmp_path / "images" / file).write_bytes(content)
    rows = [{"product_id": f"p{n}", "title": title(n), "image": cells.format(n)} for n in range(PRODUCTS)]
    (tmp_path / "products.csv").write_text(table(rows))
    (tmp_path / "furnclip.toml").write_text('[clean]\nbackend = "local"\n')
    for command in (["prepare", "--check"], ["clean", "estimate"], ["clean", "run"]):
        told = run(*command, "--config", str(tmp_path / "furnclip.toml"))
        assert (told.code, words in told.stdout + told.stderr) == (1, True), command
        assert told.stderr.count("hint: ") == 1


def test_a_column_that_is_not_there_is_told_with_the_likely_one(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("product_id,title,photo\np1,Sofa,1.jpg\n")
    (tmp_path / "furnclip.toml").touch()
    told = run("clean", "estimate", "--config", str(tmp_path / "furnclip.toml"))
    assert (told.code, 'hint: set `paths.image_column = "photo"`' in told.stderr) == (2, True)


def test_a_catalogue_without_images_is_cleaned_by_its_titles(folder: Path) -> None:
    """WANDS' product.csv has none, nor an empty cell where one product of a shop has none."""
    for number, header in enumerate(("product_id\tproduct_name\tproduct_class", "product_id\tname\timage")):
        lines = [header, *(f"{n}\t{title(n)}\t" for n in range(PRODUCTS))]
        name = f"words{number}.tsv"
        (folder / name).write_text("\n".join(lines))
        told = run("init", name, "--force", "--json").ok()
        assert "no column names images" in told.stderr
        assert told.json["recognized"]["settings"]["image_column"] == ""
        cleaned = run("clean", "run", "--backend", "local", "--json").ok().json
        assert (cleaned["cleaned"], cleaned["rejected"]) == (PRODUCTS, 0)


def test_one_image_that_cannot_be_read_does_not_stop_a_catalogue_of_words(folder: Path) -> None:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "broken.jpg").write_bytes(b"<html>not found</html>")
    rows = [f"p{n},{title(n)},{'broken.jpg' if n == 0 else ''}" for n in range(PRODUCTS)]
    (folder / "few.csv").write_text("\n".join(["product_id,title,image", *rows]))
    run("init", "few.csv", "--force").ok()
    run("clean", "estimate", "--backend", "local").ok()
    cleaned = run("clean", "run", "--backend", "local", "--json").ok().json
    assert cleaned["cleaned"] + cleaned["rejected"] == PRODUCTS
    assert cleaned["cleaned"] >= PRODUCTS - 1


def test_addresses_are_counted_and_fetch_is_told(folder: Path) -> None:
    FEEDS["google tsv"].write(folder, lambda number: f"https://shop.example/{number}.png")
    told = run("init", "feed.txt").ok()
    assert "36 web addresses, which `furnclip fetch` brings here" in told.stderr
    told = run("clean", "estimate", "--json", "--backend", "local")
    assert (told.code, "hint: run `furnclip fetch`" in told.stderr) == (1, True)
    counts = told.json["catalogue"]
    assert (counts["products"], counts["usable"], counts["to_fetch"]) == (PRODUCTS, 0, 3 * PRODUCTS)
    assert counts["advice"] == "run `furnclip fetch`"


def test_every_row_of_the_file_is_accounted_for(folder: Path) -> None:
    """Products of several rows, a damaged row and one without an id: all in one of the two files."""
    feed = FEEDS["shopify"]
    lines = list(csv.reader(io.StringIO(feed.content(lambda n: f"{n}.png").decode("utf-8-sig"), newline="")))
    lines[3:3] = [["too", "few"], ["", *["x"] * (len(lines[0]) - 1)]]
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    (folder / feed.name).write_text(text.getvalue(), encoding="utf-8", newline="")
    run("init", feed.name).ok()
    done = run("clean", "run", "--backend", "local", "--json").ok().json
    counts = run("prepare", "--check", "--json").ok().json
    assert done["reasons"]["wrong-number-of-cells"] == done["reasons"]["no-id"] == 1
    assert counts["raw_catalogue"]["rows"] == len(lines) - 1
    assert json.loads(json.dumps(done))["cleaned"] + done["rejected"] == done["rows"]
