"""What searching finds of what was asked for, against the way furnclip 0.1 searched, in the same run.

    python -m tests.bench.relevance [--catalogue DIR] [--part N] [--columns] [--quick] [--json]

`--catalogue`: a folder that `furnclip embed` has been through, with a `truth.csv` beside its settings:
`product_id`, `title` and what the product really is (`type`, `color`), which no command has read; or a tar
or folder with a `products.csv` of `product_id,title,image,type,color` (`--part`: which 10,000 products of
it, of which furnclip is given id, title and image; with `--columns` also its other columns, as a shop's
export has them, and so the words of the truth; set BENCH_WORK to keep the shop). Without it: a drawn shop in
a style that furnclip-tiny has not seen.

`own_image`   a product's image at another size and JPEG quality finds it first
`id`          its id finds it first
`name`        a word that five titles or more begin with finds one of those first
`type`        share of the first five that are of the type asked for, of the five that there are; `plural`;
              `swapped`: with two letters of its longest word exchanged
`both`        color and type: share of the first four
`ndcg`        color and type: nDCG@10, of all modes; `over_keyword`, `over_vector`: what hybrid adds to one of
              them, of each query; `singular_over_...` the same for types as they are, plural and swapped;
              `like_this_in_...`: for a product's image with another color; `every_...`: for all of these

`before_...` is the release: rank fusion of fused vectors and of BM25 over titles and attributes, stemmed
English. `..._low` and `..._high`: 95 % bootstrap intervals over queries.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

import lancedb
import numpy as np
from lancedb.index import FTS
from lancedb.query import MatchQuery
from PIL import Image

from examples.drawn_shop import ShopOrder, write_shop
from furnclip import Searcher
from furnclip.config import Config, load_config
from furnclip.images import open_image
from furnclip.vectors import VectorTable
from furnclip.vectors.index import index_location, write_index
from tests.bench import measure

QUERIES = 300
PART = 10_000
SETTINGS = """[paths]
images = "{images}"
[model]
name = "furnclip-tiny"
device = "cpu"
precision = "fp32"
[clean]
backend = "local"
[prepare]
image_px = 96
"""
Find = Callable[..., list[str]]  # text, image -> product ids, best first
Row = dict[str, str]


@dataclass(frozen=True)
class Shop:
    """An embedded shop and what its products really are."""

    config: Config
    truth: dict[str, Row]

    @cached_property
    def searcher(self) -> Searcher:
        return Searcher(self.config)

    def now(self, text: str | None = None, image: Any = None, **options: Any) -> list[str]:
        find: Find = self._by_text if image is None else partial(self._found, image=image)
        return find(text, **options)

    @cached_property
    def _by_text(self) -> Find:
        """Each text is asked once, by whatever figure."""
        return cache(self._found)

    def _found(self, text: str | None = None, **options: Any) -> list[str]:
        return [hit.product_id for hit in self.searcher.search(text, k=10, all_variants=True, **options)]

    def matching(self, wanted: Row) -> set[str]:
        return {name for name, row in self.truth.items() if wanted.items() <= row.items()}


class Before:
    """The search of furnclip 0.1 over the same vectors."""

    def __init__(self, shop: Shop, folder: Path) -> None:
        self._clip = shop.searcher.clip
        table = VectorTable(shop.config.paths.vectors)
        self._ids = [row["product_id"] for row in table.products]
        self._vectors, self._there = table.matrix("vec_clip_base"), table.present("vec_clip_base")
        names = ("title", "clean_title", "style", "material", "color", "object_type")
        words = [
            " ".join(
                dict.fromkeys(row[name] for name in names if row[name] not in (None, "", "unknown", "other"))
            )
            for row in table.products
        ]
        rows = [{"id": name, "keywords": text} for name, text in zip(self._ids, words, strict=True)]
        self._table = lancedb.connect(folder).create_table("before", rows)
        self._table.create_index("keywords", config=FTS())

    def __call__(self, text: str | None = None, image: Any = None) -> list[str]:
        vector = self._clip.encode_texts([text])[0] if text else self._clip.encode_images([image])[0]
        scores = np.where(self._there, self._vectors @ vector, -np.inf)
        lists = [[self._ids[row] for row in np.argsort(-scores, kind="stable")[:100]]]
        if text:
            found = self._table.search(MatchQuery(text, "keywords"), query_type="fts").limit(100).to_list()
            lists.append([row["id"] for row in found])
        sums: Counter[str] = Counter()
        for ranked in lists:
            for rank, name in enumerate(ranked, start=1):
                sums[name] += 1 / (60 + rank)
        return sorted(sums, key=lambda name: -sums[name])[:10]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.relevance")
    parser.add_argument("--catalogue", type=Path)
    parser.add_argument("--part", type=int, default=1)
    parser.add_argument("--columns", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(os.environ.get("BENCH_WORK", name))
        shop = opened(arguments, work)
        figures = {**measured(shop, shop.now, ""), **measured(shop, Before(shop, Path(name)), "before_")}
        for mode in ("keyword", "vector"):
            figures |= against(shop, mode)
    measure.report("relevance", {}, figures, as_json=arguments.json)


def measured(shop: Shop, find: Find, prefix: str) -> dict[str, float]:
    """Every figure of one way of searching."""
    asked = {
        "own_image": [float(name in find(image=image)[:1]) for name, image in pictures(shop)],
        "id": [float(find(name)[:1] == [name]) for name in evenly(sorted(shop.truth))],
        "name": [float(find(word)[0] in right) for word, right in names(shop)],
        "type": [share(find(text), right, 5) for text, right in types(shop, singular)],
        "plural": [share(find(text), right, 5) for text, right in types(shop, plural)],
        "swapped": [share(find(text), right, 5) for text, right in types(shop, swapped)],
        "both": [share(find(text), right, 4) for text, right in both(shop)],
        "ndcg": [ndcg(find(text), right) for text, right in both(shop)],
    }
    figures: dict[str, float] = {}
    for name, scores in asked.items():
        figures |= interval(prefix + name, scores)
    return figures


def against(shop: Shop, mode: str) -> dict[str, float]:
    """nDCG@10 of one mode, and what hybrid has more, query by query, of each kind."""
    asked = {"": both(shop)} | {
        f"{form.__name__}_": types(shop, form) for form in (singular, plural, swapped)
    }
    asked["like_this_in_"] = like_this_in(shop)
    asked["every_"] = [query for queries in asked.values() for query in queries]
    figures: dict[str, float] = {}
    for kind, queries in asked.items():
        scores = [ndcg(shop.now(text, *image, mode=mode), right) for text, right, *image in queries]
        ours = [ndcg(shop.now(text, *image), right) for text, right, *image in queries]
        figures |= interval(f"{kind}{mode}_ndcg", scores)
        more = [our - score for our, score in zip(ours, scores, strict=True)]
        figures |= interval(f"{kind}over_{mode}", more)
    return figures


def interval(name: str, scores: Sequence[float]) -> dict[str, float]:
    values = np.array(scores or [0.0])
    means = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    figures = {name: values.mean(), f"{name}_low": low, f"{name}_high": high}
    return {key: round(float(value), 4) for key, value in figures.items()} | {f"{name}_queries": len(scores)}


# --- queries


def pictures(shop: Shop) -> Iterator[tuple[str, Image.Image]]:
    """Images at four fifths of their size and JPEG quality 70; of products that share one, the first."""
    products = [row for row in VectorTable(shop.config.paths.vectors).products if not row["missing_reason"]]
    folder = shop.config.paths.images
    for row in evenly(products):
        image = open_image(folder / str(row["image"]))
        image = image.resize((max(8, image.width * 4 // 5), max(8, image.height * 4 // 5)))
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=70)
        yield str(row["product_id"]), Image.open(packed)


def names(shop: Shop) -> Iterator[tuple[str, set[str]]]:
    """First words of titles that are no color and no type, and the products that begin with them."""
    begins: dict[str, set[str]] = {}
    taken = {
        word.lower() for row in shop.truth.values() for key in ("type", "color") for word in row[key].split()
    }
    for name, row in shop.truth.items():
        first = next(iter(row["title"].split()), "").lower()
        if first.isalpha() and len(first) > 2 and not {first, first + "s"} & taken:
            begins.setdefault(first, set()).add(name)
    yield from evenly([item for item in sorted(begins.items()) if len(item[1]) >= 5])


def types(shop: Shop, form: Callable[[str], str]) -> list[tuple[str, set[str]]]:
    counts = Counter(row["type"] for row in shop.truth.values())
    return [
        (form(name.lower()), shop.matching({"type": name}))
        for name, n in sorted(counts.items())
        if n >= 5 and name
    ]


def both(shop: Shop) -> list[tuple[str, set[str]]]:
    counts = Counter(
        (row["color"], row["type"]) for row in shop.truth.values() if row["color"] and row["type"]
    )
    found = [(color, kind) for (color, kind), n in sorted(counts.items()) if n >= 4]
    return [(f"{c} {t}".lower(), shop.matching({"color": c, "type": t})) for c, t in evenly(found)]


def like_this_in(shop: Shop) -> list[tuple[str, set[str], Image.Image]]:
    """A product's image and another color: products of its type and that color are asked for."""
    counts = Counter((row["type"], row["color"]) for row in shop.truth.values())
    found = []
    for name, image in pictures(shop):
        kind, own = shop.truth[name]["type"], shop.truth[name]["color"]
        others = sorted(
            color for (each, color), n in counts.items() if each == kind and color not in ("", own) and n >= 4
        )
        if kind and others:
            color = Random(name).choice(others)
            found.append((color.lower(), shop.matching({"type": kind, "color": color}), image))
    return found


def singular(text: str) -> str:
    for end, other in (
        ("scarves", "scarf"),
        ("ties", "tie"),
        ("ies", "y"),
        ("sses", "ss"),
        ("shes", "sh"),
        ("ches", "ch"),
        ("ss", "ss"),
        ("s", ""),
    ):
        if text.endswith(end):
            return text.removesuffix(end) + other
    return text


def plural(text: str) -> str:
    one = singular(text)
    if one.endswith(("s", "sh", "ch", "x")):
        return one + "es"
    return one[:-1] + "ies" if one.endswith("y") and one[-2:-1] not in "aeiou" else one + "s"


def swapped(text: str) -> str:
    """Two inner letters of the longest word exchanged."""
    word = max(singular(text).split(), key=len)
    places = [at for at in range(1, len(word) - 2) if word[at] != word[at + 1]]
    if len(word) < 5 or not places:
        return singular(text)
    at = Random(word).choice(places)
    return singular(text).replace(word, word[:at] + word[at + 1] + word[at] + word[at + 2 :])


def share(found: Sequence[str], right: set[str], count: int) -> float:
    return sum(name in right for name in found[:count]) / min(count, len(right))


def ndcg(found: Sequence[str], right: set[str]) -> float:
    discounts = 1 / np.log2(np.arange(2, 12))
    reached = sum(discount for name, discount in zip(found, discounts, strict=False) if name in right)
    return float(reached / discounts[: len(right)].sum())


def evenly(items: Sequence[Any]) -> list[Any]:
    step = max(1, -(-len(items) // QUERIES))
    return list(items[::step])


# --- shops


def opened(arguments: argparse.Namespace, work: Path) -> Shop:
    given: Path | None = arguments.catalogue
    if given and (given / "furnclip.toml").is_file():
        work = given
    elif not (work / "truth.csv").is_file():
        make(given, work, 150 if arguments.quick else 800, arguments.part, own=arguments.columns)
    index = {"search": {"index": str(work / "relevance.lance")}}  # the shop's own stays as it is
    config = load_config(work / "furnclip.toml", index)
    write_index(index_location(config), config.paths.vectors, config.search)
    with (work / "truth.csv").open(newline="", encoding="utf-8") as file:
        truth = {row["product_id"]: row for row in csv.DictReader(file)}
    embedded = {row["product_id"] for row in VectorTable(config.paths.vectors).products}
    return Shop(config, {name: row for name, row in truth.items() if name in embedded})


def make(given: Path | None, work: Path, drawn: int, part: int, *, own: bool = False) -> None:
    """A shop that furnclip has been through, with the truth of its products beside it."""
    if given is None:
        write_shop(work, ShopOrder(drawn, seed=77, drawing_styles=("ink",)))
        rows = [
            {
                "product_id": row["product_id"],
                "title": row["title"],
                "type": row["true_object_type"],
                "color": row["true_color"],
            }
            for row in table_of(work / "truth.csv", work / "products.csv")
        ]
        images = work / "images"
    else:
        folder = given
        if given.is_file():
            folder = work / "unpacked"
            with tarfile.open(given) as file:
                file.extractall(folder, filter="data")
        rows = table_of(folder / "products.csv")
        Random(5).shuffle(rows)
        rows, images = rows[part * PART : (part + 1) * PART], folder
        write(work / "products.csv", rows, tuple(rows[0]) if own else ("product_id", "title", "image"))
    write(work / "truth.csv", rows, ("product_id", "title", "type", "color"))
    (work / "furnclip.toml").write_text(SETTINGS.format(images=images))
    for command in (("clean", "run"), ("prepare",), ("embed",)):
        argv = [sys.executable, "-m", "furnclip", *command, "--json"]
        subprocess.run(argv, cwd=work, check=True, stdout=subprocess.DEVNULL)


def table_of(*paths: Path) -> list[Row]:
    """The rows of a CSV, with the columns of further ones for the same product."""
    tables = []
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            tables.append({row["product_id"]: row for row in csv.DictReader(file)})
    return [
        {key: value for table in tables for key, value in table.get(name, {}).items()} for name in tables[0]
    ]


def write(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
