"""The offline rules: titles, colours, and how often they are right on products labelled by eye."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from furnclip.catalogue import Product
from furnclip.catalogue.text import plain_text
from furnclip.clean.offline import find_brands, local_answer, plain_title
from furnclip.clean.offline.reading import TitleReading, color_shares
from furnclip.clean.prompt import AllowedWords, CleanAnswer
from furnclip.config import CleaningConfig
from tests.clean_labels import accuracy
from tests.conftest import Cli

VOCABULARY = AllowedWords.from_config(CleaningConfig())
CATALOGUE = Path("/usr/share/sweethome3d/furniture")
# Right answers as counted when the rules were last changed, less a little; by half of the labels.
FLOORS = {
    "seen": {"object_type": 0.9, "material": 0.8, "color": 0.6},
    "unseen": {"object_type": 0.75, "material": 0.7, "color": 0.65},
}


def clean_title(title: str) -> str:
    """Of a title as the catalogue has it."""
    return local_answer(plain_text(title), None, VOCABULARY).clean_title


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("ACME red oak chair, model 12 - FREE SHIPPING", "red oak chair"),
        ("IKEA&reg; Set of 2 Nightstands by Ashley Furniture, Walnut $199.99", "nightstands walnut"),
        ("2-pack Velvet Accent Chairs SKU AB-12345 (Navy)", "velvet accent chairs (navy)"),
        ("SALE!!! 50% OFF Mid-Century Coffee Table", "mid-century coffee table"),
        ("<b>Sofa</b> &amp; Ottoman &ndash; Fast Delivery", "sofa & ottoman"),
        ("Desk #A113 \u20ac1.299,00 in stock", "desk"),
        ("3-Seater Sofa 220 cm", "3-seater sofa 220 cm"),
        ("Sofa Art.-Nr. 123", "sofa"),
        ("Lamp #A-123 SKU: XY9", "lamp"),
        ("bookcase bx-450a walnut, item no 4711", "bookcase walnut"),
        ("Model KX200 Stool x4, 2-day delivery", "stool"),
        ("Shaker Style 3-Drawer Chest", "shaker style 3-drawer chest"),
        ("Desk W120 x 60 cm", "desk w120 x 60 cm"),
        ("2-in-1 Sofa Bed 180 x 200, 1950s", "2-in-1 sofa bed 180 x 200 1950s"),
        ("Tisch Zürich 120,5 x 59,40 cm, Eiche", "tisch zürich 120,5 x 59,40 cm eiche"),
        ("Sessel „Nörrby“, «Oslo» \u201dx\u201d 24\u201d wide", "sessel nörrby oslo x 24\u201d wide"),
        ("   ", "product"),
    ],
)
def test_titles(raw: str, clean: str) -> None:
    assert clean_title(raw) == clean


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("coffee table with stool", "coffee table"),
        ("chair cushion", "cushion"),
        ("velvet accent chairs", "armchair"),
        ("lamp for desks", "lamp"),
        ("shelves", "shelf"),
        ("glass door cabinet", "cabinet"),
        ("quux", "unknown"),
        ("Wardrobe, light gray, 120x60 cm", "wardrobe"),
        ("cushion light beige", "cushion"),
        ("light, brass", "lamp"),
        ("sliding glass wardrobe", "wardrobe"),
        ("Glass, clear glass, 35 cl", "kitchenware"),
        ("wardrobe white glass", "wardrobe"),
        ("bath sheet", "blanket"),
        ("TV bench, white", "tv stand"),
        ("picture frame", "picture"),
        ("bunk bed frame", "bed"),
        ("frame, black", "picture"),
        ("pendant lamp, ball shape", "ceiling light"),
        ("chair pad", "cushion"),
        ("sofa cover", "other"),
        ("cover 3-seat sofa", "other"),
        ("table mirror", "mirror"),
        ("kids table and 2 chairs", "table"),
        ("bookshelf, 5 tier ladder shelf, storage rack for living room", "bookcase"),
        ("Kleiderschrank weiß", "wardrobe"),
        ("Esszimmerstühle 4er Set", "chair"),
        ("Wohnzimmerteppich", "rug"),
        ("table basse en chêne", "coffee table"),
        ("lampe de chevet avec abat-jour", "lamp"),
        ("Leder Natur Couch", "sofa"),
        ("matte black shelf", "shelf"),
        ("EKTORP 3er-Sofa, Hallarp beige", "sofa"),
        ("MALM Bettgestell hoch, weiß", "bed"),
        ("Waschbeckenunterschrank 60 cm grau", "cabinet"),
    ],
)
def test_object_types(title: str, kind: str) -> None:
    assert TitleReading(title, VOCABULARY).object_type == kind


@pytest.mark.parametrize(
    ("title", "color", "material"),
    [
        ("Table lamp, nickel plated", "silver", "metal"),
        ("mirror in brass color", "gold", "glass"),
        ("TV bench, black-brown", "black", "wood"),
        ("chair, white stained oak", "white", "wood"),
        ("Pine Ridge bunk bed in dark gray", "gray", "wood"),
        ("Red Hill brown leather sofa", "brown", "leather"),
        ("velvet chair with gold legs", "unknown", "velvet"),
        ("mirror, gold frame", "gold", "glass"),
        ("glass door cabinet", "unknown", "wood"),
        ("marble effect side table", "unknown", "wood"),
        ("slate fabric footstool", "gray", "fabric"),
        ("tufted velvet sofa", "unknown", "velvet"),
        ("leg protectors for hardwood floors", "unknown", "unknown"),
        ("sofa for living room gray", "gray", "fabric"),
        ("charcoal grill", "unknown", "metal"),
        ("Sessel, Samt dunkelgrün", "green", "velvet"),
        ("Holztisch natur", "beige", "wood"),
        ("fauteuil en cuir marron", "brown", "leather"),
        ("Tisch 120,5 cm breit aus Eiche", "brown", "wood"),
    ],
)
def test_colors_and_materials_of_the_thing_itself(title: str, color: str, material: str) -> None:
    answer = local_answer(title, None, VOCABULARY)
    assert (answer.color, answer.material) == (color, material)


def test_names_in_capitals_go_wherever_a_title_begins_with_them() -> None:
    names = ["LOMMA Bookcase", "LOMMA / OXDAL TV bench", "LED mirror", "LOMMA CHAIR", "LOMMA", "Chair LOMMA"]
    assert [clean_title(name) for name in names] == [
        "bookcase", "tv bench", "led mirror", "lomma chair", "lomma", "chair lomma",
    ]  # fmt: skip


def test_no_color_is_taken_from_a_room() -> None:
    room = drawn((40, 70, 180))
    ImageDraw.Draw(room).rectangle((0, 60, 120, 120), fill=(150, 110, 70))
    assert local_answer("chair", room, VOCABULARY).color == "unknown"
    assert local_answer("chair", drawn((40, 70, 180)), VOCABULARY).color == "blue"
    cropped = Image.new("RGB", (120, 120), (255, 255, 255))
    ImageDraw.Draw(cropped).rectangle((0, 40, 120, 90), fill=(40, 70, 180))
    assert local_answer("sofa", cropped, VOCABULARY).color == "blue"


@given(st.text(max_size=80))
@settings(max_examples=150, deadline=None)
def test_any_title_has_a_valid_answer(title: str) -> None:
    answer = local_answer(title, None, VOCABULARY)
    assert CleanAnswer.model_validate(answer.model_dump(), context=VOCABULARY) == answer


def drawn(color: tuple[int, int, int], background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    image = Image.new("RGB", (120, 120), background)
    ImageDraw.Draw(image).rectangle((30, 30, 90, 100), fill=color)
    return image


def main_color(image: Image.Image) -> str:
    pixels = np.asarray(image.resize((64, 64)), dtype=np.int16)
    return next(iter(color_shares(pixels)))


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ((190, 40, 40), "red"),
        ((40, 70, 180), "blue"),
        ((40, 140, 60), "green"),
        ((25, 25, 25), "black"),
        ((130, 130, 130), "gray"),
        ((110, 70, 40), "brown"),
        ((225, 205, 170), "beige"),
        ((240, 150, 30), "orange"),
        ((240, 220, 40), "yellow"),
    ],
)
def test_colors(color: tuple[int, int, int], name: str) -> None:
    assert main_color(drawn(color)) == name
    assert main_color(drawn(color, (120, 160, 200))) == name


def test_white_on_white() -> None:
    assert main_color(Image.new("RGB", (64, 64), (255, 255, 255))) == "white"


def test_shadow_is_not_the_product() -> None:
    image = drawn((110, 70, 40))
    ImageDraw.Draw(image).rectangle((5, 80, 90, 118), fill=(170, 170, 170))
    ImageDraw.Draw(image).rectangle((40, 30, 80, 100), fill=(110, 70, 40))
    assert main_color(image) == "brown"
    assert main_color(drawn((150, 150, 150))) == "gray", "a gray thing is no shadow"


def test_picture_overrules_the_title_only_when_sure() -> None:
    assert local_answer("red chair", drawn((40, 70, 180)), VOCABULARY).color == "blue"
    both = drawn((40, 70, 180))
    ImageDraw.Draw(both).rectangle((30, 30, 90, 50), fill=(190, 40, 40))
    assert local_answer("red chair", both, VOCABULARY).color == "red"
    assert local_answer("gold lamp", drawn((110, 70, 40)), VOCABULARY).color == "gold", "a matter of light"
    room = drawn((40, 70, 180))
    ImageDraw.Draw(room).rectangle((0, 60, 120, 120), fill=(150, 110, 70))
    assert local_answer("red chair", room, VOCABULARY).color == "red", "no cut-out: who knows what is blue"


def products(*rows: dict[str, str]) -> list[Product]:
    return [Product(number, f"P{number}", row["title"], (), "", row) for number, row in enumerate(rows)]


TITLES = (
    "Zorn Home - Oak Chair", "Zorn Home Velvet Sofa", "ZORN HOME LAMP", "Zorn Home, Desk 120 cm",
    "Zorn Home Oak Shelf",
    "KRUMM Stool", "Round KRUMM Table", "KRUMM Bed", "KRUMM Vase",  # not always first
    "WoodPecker Bench", "WoodPecker Oak Shelf", "WoodPecker Crib",
    "LED Floor Lamp", "LED Mirror", "LED Ceiling Light",  # capitals that are no name
    "Kids - Bed", "Kids - Desk", "Kids - Chair",
    "Mirabel Rug", "Mirabel - Wool Rug", "Mirabel Area Rug",  # one kind of thing: a model, perhaps
)  # fmt: skip


def test_makers_are_found_in_the_catalogue_itself() -> None:
    shop = products(*({"title": title} for title in TITLES))
    makers = find_brands(shop, VOCABULARY)
    assert makers == {("zorn", "home"), ("woodpecker",)}
    assert [clean_title(plain_title(product, makers)) for product in shop[:4]] == [
        "oak chair", "velvet sofa", "lamp", "desk 120 cm",
    ]  # fmt: skip


def test_columns_say_what_is_a_maker_or_a_number() -> None:
    [product] = products(
        {
            "title": "Item Q-7: Oak Chair by Tove, QX/9",
            "Brand Name": "Tove",
            "SKU": "Q-7",
            "MPN": "QX/9",
        }
    )
    assert clean_title(plain_title(product, frozenset())) == "oak chair"
    [product] = products({"title": "Stuhl Oslo II", "Serie": "Oslo II"})
    assert clean_title(plain_title(product, frozenset())) == "stuhl"
    [product] = products({"title": "Oak Chair 4", "vendor": "oak", "model": "4"})
    assert clean_title(plain_title(product, frozenset())) == "oak chair 4", "words and counts stay"


def test_vocabulary_of_the_shop_is_kept() -> None:
    config = CleaningConfig(colors=("dark", "red"), object_types=("chair",), materials=("metal",))
    own = AllowedWords.from_config(config)
    answer = local_answer("blue oak sofa", drawn((40, 70, 180)), own)
    assert (answer.color, answer.material, answer.object_type) == ("unknown", "unknown", "unknown")


@pytest.mark.skipif(not CATALOGUE.is_dir(), reason="the package sweethome3d-furniture is not installed")
def test_accuracy_on_labelled_furniture(tmp_path: Path, cli: Cli) -> None:
    example = Path(__file__).parent.parent / "examples" / "sweethome3d.py"
    subprocess.run([sys.executable, example, tmp_path / "shop"], check=True, capture_output=True)
    cli("clean", "run", "--backend", "local", cwd=tmp_path / "shop").ok()
    measured = accuracy(tmp_path / "shop" / "work" / "clean" / "cleaned.csv")
    for half, floors in FLOORS.items():
        for field, floor in floors.items():
            right, labelled = measured[half][field]
            assert right / labelled >= floor, (half, field, right, labelled)


@pytest.mark.parametrize("line_end", ["\r", "\n", "\r\n"])
def test_line_ends_inside_a_cell_survive(cli: Cli, shop: Path, line_end: str) -> None:
    title = f"oak chair{line_end}second line"
    with (shop / "products.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(["odd", title, "00000.jpg", "1"])
    cli("clean", "run", cwd=shop).ok()
    with (shop / "work" / "clean" / "cleaned.csv").open(newline="", encoding="utf-8") as file:
        assert {row["product_id"]: row["title"] for row in csv.DictReader(file)}["odd"] == title
