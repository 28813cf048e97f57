"""One "no image" picture for many products, and other reasons why nothing or less comes out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.prepare_shop import Shop, read_assignments

COLORS = ("red", "walnut", "grey", "brass", "linen", "teal", "oak", "ivory")
THINGS = ("sofa", "floor lamp", "bed frame", "vase", "rug", "bookcase", "mirror")


def unrelated_title(number: int) -> str:
    return f"{COLORS[number % len(COLORS)]} {THINGS[number % len(THINGS)]} {number}"


def no_image(path: Path, side_px: int = 300, **options: int) -> None:
    image = Image.new("RGB", (side_px, side_px), (232, 232, 232))
    third = side_px // 3
    ImageDraw.Draw(image).rectangle(
        (third, third, 2 * third, 2 * third), outline=(140, 140, 140), width=side_px // 50
    )
    image.save(path, **options)


def one_file(folder: Path, number: int) -> str:
    no_image(folder / "none.png")
    return "none.png"


def recompressed(folder: Path, number: int) -> str:
    no_image(folder / f"none-{number}.jpg", quality=40 + 4 * number)
    return f"none-{number}.jpg"


def two_sizes(folder: Path, number: int) -> str:
    no_image(folder / f"none-{number % 2}.png", side_px=(300, 900)[number % 2])
    return f"none-{number % 2}.png"


def copies(folder: Path, number: int) -> str:
    no_image(folder / f"copy-{number}.png")
    return f"copy-{number}.png"


@pytest.fixture
def store(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path, settings={"image_px": 32, "workers": 1})
    shop.add(range(20))
    for number, row in enumerate(shop.rows):
        row["title"] = f"{unrelated_title(number)} photographed {number}"
    return shop


def add_placeholders(
    store: Shop, count: int, kind: Callable[[Path, int], str], title: Callable[[int], str]
) -> list[str]:
    for number in range(count):
        image = kind(store.folder / "images", number)
        store.rows.append({"product_id": f"n{number}", "title": title(number), "image": image})
    return [f"n{number}" for number in range(count)]


@pytest.mark.parametrize("kind", [one_file, recompressed, two_sizes, copies])
def test_a_placeholder_is_called_one_and_ties_nothing(store: Shop, kind: Callable[[Path, int], str]) -> None:
    ids = add_placeholders(store, 14, kind, unrelated_title)
    store.write()
    result = store.run()
    assert result.exit_code == 0
    assert store.rejected() == dict.fromkeys(ids, "placeholder-image")
    assert "in no split: 14 placeholder-image" in result.stdout
    assert "0 groups of several products" in result.stdout
    assert "14 products have a placeholder image" in result.stderr
    assert "group_column" not in result.stderr
    with (store.shards / "rejected.csv").open(newline="") as file:
        details = {row["detail"] for row in csv.DictReader(file)}
    assert all("is the image of 14 products that have nothing else in common" in detail for detail in details)


SHARED_BY_RIGHT = {
    "few": (4, unrelated_title),
    "variants": (12, lambda number: f"Oslo corner sofa {('red', 'blue', 'grey')[number % 3]} {number}"),
    "no spaces": (8, lambda number: f"北欧布艺沙发三人位{'红蓝灰白'[number % 4]}色"),
    "one word": (9, lambda number: f"Sofa {number}"),
}


@pytest.mark.parametrize("case", SHARED_BY_RIGHT)
def test_an_image_that_is_shared_by_right_is_a_group(store: Shop, case: str) -> None:
    count, title = SHARED_BY_RIGHT[case]
    ids = add_placeholders(store, count, one_file, title)
    store.prepared()
    assert store.rejected() == {}
    assert len({read_assignments(store.shards)[product_id] for product_id in ids}) == 1


def in_one_frame(path: Path, number: int) -> None:
    """Wall sockets, as a maker draws them: all in one frame, each with something else in it."""
    image = Image.new("RGB", (300, 300), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 20, 280, 280), fill=(222, 222, 222), outline=(120, 120, 120), width=3)
    draw.rectangle((80, 80, 220, 220), fill=(170, 170, 170))
    across, down = 105 + 30 * (number % 4), 105 + 40 * (number // 4)
    draw.ellipse((across - 20, down - 20, across + 20, down + 20), fill=(70, 70, 70))
    image.save(path)


def test_products_of_one_design_are_no_placeholder(store: Shop) -> None:
    def socket(folder: Path, number: int) -> str:
        in_one_frame(folder / f"socket-{number}.png", number)
        return f"socket-{number}.png"

    add_placeholders(store, 12, socket, unrelated_title)
    store.prepared()
    assert store.rejected() == {}


def test_variants_by_the_group_column_count_once(store: Shop) -> None:
    ids = add_placeholders(store, 12, one_file, unrelated_title)
    for number, row in enumerate(store.rows):
        row["model"] = "one" if row["product_id"] in ids else f"m{number}"
    store.write()
    (store.folder / "furnclip.toml").write_text('[paths]\ngroup_column = "model"\n[prepare]\nimage_px = 32\n')
    assert store.run().exit_code == 0
    assert store.rejected() == {}


def test_a_placeholder_that_comes_later_moves_nobody(store: Shop) -> None:
    add_placeholders(store, 4, one_file, unrelated_title)
    store.prepared()
    before = read_assignments(store.shards)
    del store.rows[20:]
    ids = add_placeholders(store, 9, one_file, unrelated_title)
    store.prepared()
    assert store.rejected() == dict.fromkeys(ids, "placeholder-image")
    left = {name: found for name, found in before.items() if name not in ids}
    assert read_assignments(store.shards) == left


def test_a_giant_group_is_told_with_what_it_shares(store: Shop) -> None:
    add_placeholders(store, 30, one_file, lambda number: f"Oslo sofa {number}")
    for row in store.rows[20:]:
        row["model"] = row["product_id"]
    store.write()
    (store.folder / "furnclip.toml").write_text('[paths]\ngroup_column = "model"\n[prepare]\nimage_px = 32\n')
    shown = store.run().stderr
    assert "30 of 50 products are kept together" in shown
    assert "share one image" in shown


# --- nothing useful: exit 1, the reasons in a file, and a hint that is right


def all_placeholders(store: Shop) -> None:
    store.rows.clear()
    add_placeholders(store, 8, one_file, unrelated_title)


def tiny_images(store: Shop) -> None:
    Image.new("RGB", (1, 1)).save(store.folder / "images/tiny.gif")
    for row in store.rows:
        row["image"] = "tiny.gif"


def no_images(store: Shop) -> None:
    for row in store.rows:
        row["image"] = "nowhere.png"


def no_ids(store: Shop) -> None:
    for row in store.rows:
        row["product_id"] = ""


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (all_placeholders, "placeholder-image"),
        (tiny_images, "too-small"),
        (no_images, "missing"),
        (no_ids, "no-id"),
    ],
)
def test_nothing_usable_is_exit_1_and_names_the_file_with_the_reasons(
    store: Shop, make: Callable[[Shop], None], reason: str
) -> None:
    make(store)
    store.write()
    result = store.run()
    assert (result.exit_code, result.stdout) == (1, "")
    error, hint = result.stderr.splitlines()
    assert f"{len(store.rows)} of {len(store.rows)}: {reason}" in error
    assert str(store.shards / "rejected.csv") in hint
    with (store.shards / "rejected.csv").open(newline="") as file:
        assert [row["reason"] for row in csv.DictReader(file)] == [reason] * len(store.rows)
    assert not (store.shards / "manifest.json").exists()


# --- rows that were never cleaned


def cleaned(store: Shop, products: int) -> None:
    """`cleaned.csv` with the first products, as `clean` leaves it."""
    folder = store.folder / "work/clean"
    folder.mkdir(parents=True)
    with (folder / "cleaned.csv").open("w", newline="") as file:
        columns = [*store.rows[0], "clean_title", "style", "material", "queries", "clean_source"]
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({**row, "clean_title": row["title"]} for row in store.rows[:products])


@pytest.mark.parametrize("arguments", [[], ["--check"]])
@pytest.mark.parametrize("missing", [0, 1, 7])
def test_rows_that_are_not_cleaned_are_counted(store: Shop, arguments: list[str], missing: int) -> None:
    store.write()
    cleaned(store, len(store.rows) - missing)
    told = json.loads(store.run("--json", *arguments).stdout)
    assert (told["rows"], told["not_cleaned"]) == (20 - missing, missing)
    shown = store.run(*arguments)
    assert shown.exit_code == 0
    assert (f"{missing} rows of the catalogue are not cleaned" in shown.stderr) == bool(missing)
