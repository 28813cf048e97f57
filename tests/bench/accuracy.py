"""How often the offline rules of `clean` are right, per field: the baseline that a paid model has to beat.

    python -m tests.bench.accuracy [--quick] [--json]

`drawn`: 2,000 drawn products (`--quick`: 300) of a seed that the rules were not tuned on, against the truth
they were drawn from. `seen` and `unseen`: 60 real models of Sweet Home 3D labelled by eye, in the halves of
`tests/clean_labels.py`, where the Debian package `sweethome3d-furniture` is installed.

Known bias: the truth of a drawn product knows what its title does not say. 3 of 10 titles name no style and
some lie about the color; a rule that reads titles cannot know. `style_said` is the share among titles that
name one, `brand_left` and `number_left` are shares of clean titles that still hold what should be gone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from examples.drawn_shop import ShopOrder, write_shop
from examples.drawn_shop.titles import BRANDS  # only to count what is left: the rules have no list of brands
from tests import clean_labels
from tests.bench.measure import parse, report
from tests.clean_labels import read

SEED = 77
FIELDS = ("object_type", "style", "material", "color")
SWEET_HOME = Path("/usr/share/sweethome3d/furniture")
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


def clean(shop: Path) -> None:
    command = [sys.executable, "-m", "furnclip", "clean", "run", "--backend", "local"]
    subprocess.run(command, cwd=shop, check=True, capture_output=True)


def mean(values: list[bool]) -> float:
    return sum(values) / len(values)


def main() -> None:
    arguments = parse("accuracy")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "drawn", 300 if arguments.quick else 2_000)
        shares = drawn(folder / "drawn")
        figures: dict[str, object] = {f"drawn.{field}": share for field, share in shares.items()}
        if SWEET_HOME.is_dir():
            subprocess.run([sys.executable, EXAMPLE, folder / "real"], check=True, capture_output=True)
            figures |= real(folder / "real")
    report("accuracy", {}, figures, as_json=arguments.json)


if __name__ == "__main__":
    main()
