"""How often the offline rules of `clean` are right, per field: the baseline that a paid model has to beat.

    python -m tests.bench.accuracy [--quick] [--json] [--catalogue DIR]

`drawn`: 2,000 drawn products (`--quick`: 300) of a seed that the rules were not tuned on, against the truth
they were drawn from. `seen` and `unseen`: 60 real models of Sweet Home 3D labelled by eye, in the halves of
`tests/clean_labels.py`, where the Debian package `sweethome3d-furniture` is installed.

`work` and `judge`: `titles.csv`, 300 titles written for this in the formats of public feeds, with the truth
that a reader gets from the title alone, before the rules knew any of them; half of each format may be used to
improve the rules, the other only to report. `|` separates values that are right as well; an empty cell is not
judged. `name_left`: clean titles that still open with the name in capitals that the title opens with.
`catalogue`: titles of `products.csv` in a folder of your own with the columns title, type and color; its
types are the vocabulary. `type`: share of right types where the rules name one; `color_said`: of colors where
the title has the word. Intervals (95 %) are Wilson's.

Known bias: the truth of a drawn product knows what its title does not say. 3 of 10 titles name no style and
some lie about the color; a rule that reads titles cannot know. `style_said` is the share among titles that
name one, `brand_left` and `number_left` are shares of clean titles that still hold what should be gone.
"""

from __future__ import annotations

import csv
import math
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from examples.drawn_shop import ShopOrder, write_shop
from examples.drawn_shop.titles import BRANDS  # only to count what is left: the rules have no list of brands
from furnclip.catalogue import UNKNOWN, Product
from furnclip.clean.offline import find_brands, local_answer, plain_title
from furnclip.clean.prompt import AllowedWords, CleanAnswer
from furnclip.config import CleaningConfig
from tests import clean_labels
from tests.bench.measure import parse, report
from tests.clean_labels import read

SEED = 77
FIELDS = ("object_type", "style", "material", "color")
SWEET_HOME = Path("/usr/share/sweethome3d/furniture")
TITLES = Path(__file__).with_name("titles.csv")
EXAMPLE = Path(__file__).parents[2] / "examples" / "sweethome3d.py"


def draw(shop: Path, products: int) -> None:
    write_shop(shop, ShopOrder(products, seed=SEED, image_px=96))


def drawn(shop: Path) -> dict[str, float]:
    """Shares of correct values on a drawn shop."""
    clean(shop)
    answers = read(shop / "work" / "clean" / "cleaned.csv")
    pairs = list(zip(answers, read(shop / "truth.csv"), strict=True))
    right = {name: [answer[name] == truth[f"true_{name}"] for answer, truth in pairs] for name in FIELDS}
    said = [
        is_right
        for is_right, (answer, _) in zip(right["style"], pairs, strict=True)
        if answer["style"] != "unknown"
    ]
    titles = [answer["clean_title"] for answer in answers]
    return {
        **{name: mean(values) for name, values in right.items()},
        "style_said": mean(said),
        "brand_left": mean([any(brand.lower() in title for brand in BRANDS) for title in titles]),
        "number_left": mean([answer["sku"].lower() in answer["clean_title"] for answer in answers]),
    }


def real(shop: Path) -> dict[str, float]:
    """Shares of correct values on Sweet Home 3D."""
    clean(shop)
    halves = clean_labels.accuracy(shop / "work" / "clean" / "cleaned.csv")
    return {
        f"{half}.{field}": right / labelled
        for half, fields in halves.items()
        for field, (right, labelled) in fields.items()
    }


def answers_to(titles: list[str], vocabulary: AllowedWords) -> list[CleanAnswer]:
    """What the rules say to titles without images."""
    rows = [{"title": title} for title in titles]
    products = [Product(number, f"P{number}", row["title"], (), "", row) for number, row in enumerate(rows)]
    brands = find_brands(products, vocabulary)
    return [local_answer(plain_title(product, brands), None, vocabulary) for product in products]


def written() -> dict[str, object]:
    """Shares of correct values on the titles of `titles.csv`, with their intervals."""
    rows = read(TITLES)
    right: defaultdict[str, list[bool]] = defaultdict(list)
    answers = answers_to([row["title"] for row in rows], AllowedWords.from_config(CleaningConfig()))
    for row, answer in zip(rows, answers, strict=True):
        for field in ("object_type", "material", "color"):
            if row[field]:
                right[f"{row['half']}.{field}"].append(getattr(answer, field) in row[field].split("|"))
        first = row["title"].split()[0]
        if first.isupper() and len(first) > 3:
            right[f"{row['half']}.name_left"].append(answer.clean_title.startswith(first.lower()))
    return with_intervals(right)


def catalogue(folder: Path, products: int) -> dict[str, object]:
    """Shares of correct types and colors on titles of a catalogue of one's own."""
    with (folder / "products.csv").open(encoding="utf-8", newline="") as file:
        rows = random.Random(SEED).sample(list(csv.DictReader(file)), products)
    types = tuple(sorted({row["type"].lower() for row in rows if row["type"]}))
    vocabulary = AllowedWords.from_config(CleaningConfig(object_types=types))
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for row, answer in zip(rows, answers_to([row["title"] for row in rows], vocabulary), strict=True):
        if answer.object_type != UNKNOWN:
            right["catalogue.type"].append(answer.object_type == row["type"].lower())
        [meant] = answers_to([row["color"]], vocabulary)
        if meant.color != UNKNOWN and row["color"].lower() in row["title"].lower():
            right["catalogue.color_said"].append(answer.color == meant.color)
    return with_intervals(right)


def with_intervals(right: Mapping[str, list[bool]]) -> dict[str, object]:
    """The share of true values of each, and Wilson's interval with their number."""
    figures: dict[str, object] = {}
    for name, values in sorted(right.items()):
        n, share, z = len(values), mean(values), 1.96
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        figures[name] = share
        figures[f"{name}, 95 %"] = f"{middle - half:.3f} to {middle + half:.3f}, n = {n}"
    return figures


def clean(shop: Path) -> None:
    command = [sys.executable, "-m", "furnclip", "clean", "run", "--backend", "local"]
    subprocess.run(command, cwd=shop, check=True, capture_output=True)


def mean(values: list[bool]) -> float:
    return sum(values) / len(values)


def main() -> None:
    arguments = parse("accuracy", catalogue="titles with types and colors")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "drawn", 300 if arguments.quick else 2_000)
        shares = drawn(folder / "drawn")
        figures: dict[str, object] = {f"drawn.{field}": share for field, share in shares.items()}
        figures |= written()
        if arguments.catalogue:
            figures |= catalogue(arguments.catalogue, 500 if arguments.quick else 4_000)
        if SWEET_HOME.is_dir():
            subprocess.run([sys.executable, EXAMPLE, folder / "real"], check=True, capture_output=True)
            figures |= real(folder / "real")
    report("accuracy", {}, figures, as_json=arguments.json)


if __name__ == "__main__":
    main()
