"""Which way of searching finds what was asked for, and which way of avoiding a word avoids it.

    python -m tests.bench.relevance [--quick] [--json]

A drawn shop in a style that furnclip-tiny has not seen: messy titles, cleaned by the offline rules,
embedded with furnclip-tiny. What a product really is stands in `truth.csv`, which no command reads, so
an attribute that cleaning missed is missed by keywords too. Requests are "brown leather sofa" and the
like, every one that at least three products answer (`MOST_REQUESTS` at most), and the same with other
words for it ("couch").

`vector_ndcg`, `keyword_ndcg`, `hybrid_ndcg`   nDCG@10, a relevant product has every attribute asked for;
`..._reworded_ndcg`                            the same for requests in other words.

Avoiding: a kind of product and a material or color that some but not most of its kind have; ten hits
by meaning with a filter on words (`filter`), with a share of the avoided word's vector subtracted
(`subtract_0.5` ...), or with both. `..._avoids`: share of hits without it; `..._kept`: share of hits
that are of the kind asked for and without it; `nothing`: the word is not mentioned.

With BENCH_SHOP naming a folder that `furnclip embed` has been through, that shop is searched
instead, and its cleaned attributes are taken for the truth: then keywords cannot fail.
Known bias: a model of four million parameters and drawings; synonyms it was not trained on are noise to it.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np

from examples.drawn_shop import ShopOrder, write_shop
from furnclip import Searcher
from furnclip.config import load_config
from furnclip.search.searcher import Hit, Mode
from furnclip.vectors import unit
from tests.bench import measure

_Item = TypeVar("_Item")
K = 10
MOST_REQUESTS = 150
LEAST_ANSWERS = 3
SHARES = (0.25, 0.5, 1.0)
ASKED = (("color", "object_type"), ("material", "object_type"), ("color", "material", "object_type"))
AVOIDED = ("material", "color")
OTHER_WORDS = {
    "sofa": "couch",
    "dresser": "chest of drawers",
    "wardrobe": "armoire",
    "nightstand": "bedside table",
    "rug": "carpet",
    "sideboard": "buffet",
    "bookcase": "shelves",
    "ottoman": "pouf",
    "brown": "chocolate",
    "beige": "cream",
    "gray": "charcoal",
    "fabric": "upholstered",
    "wood": "wooden",
}
SETTINGS = """[paths]
group_column = "model"
[model]
name = "furnclip-tiny"
device = "cpu"
[clean]
backend = "local"
[prepare]
image_px = 96
"""


@dataclass(frozen=True)
class Shop:
    """An embedded shop and what its products really are: id -> attribute -> value."""

    searcher: Searcher
    truth: dict[str, dict[str, str]]

    def answers(self, wanted: dict[str, str]) -> set[str]:
        """Ids of the products that have every value."""
        return {name for name, truth in self.truth.items() if wanted.items() <= truth.items()}


def main() -> None:
    arguments = measure.parse("relevance")
    given = os.environ.get("BENCH_SHOP")
    with tempfile.TemporaryDirectory() as name:
        if given:
            shop = Shop(Searcher(load_config(Path(given) / "furnclip.toml")), cleaned(Path(given)))
        else:
            shop = drawn(Path(name), products=150 if arguments.quick else 800)
        figures: dict[str, object] = {**modes(shop), **avoiding(shop)}
    measure.report("relevance", {}, figures, as_json=arguments.json)


def drawn(folder: Path, *, products: int) -> Shop:
    write_shop(folder, ShopOrder(products, seed=77, drawing_styles=("ink",)))
    (folder / "furnclip.toml").write_text(SETTINGS)
    for command in (("clean", "run"), ("prepare",), ("embed",)):
        argv = [sys.executable, "-m", "furnclip", *command, "--json"]
        subprocess.run(argv, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    truth = read(folder / "truth.csv", prefix="true_")
    return Shop(Searcher(load_config(folder / "furnclip.toml")), truth)


def cleaned(folder: Path) -> dict[str, dict[str, str]]:
    return read(folder / "work" / "clean" / "cleaned.csv", prefix="")


def read(path: Path, *, prefix: str) -> dict[str, dict[str, str]]:
    """Product id -> attributes that are known."""
    with path.open(newline="", encoding="utf-8") as file:
        names = ("material", "color", "object_type")
        return {
            row["product_id"]: {
                name: row[prefix + name]
                for name in names
                if row[prefix + name] not in ("", "unknown", "other")
            }
            for row in csv.DictReader(file)
        }


# --- modes


def modes(shop: Shop) -> dict[str, float]:
    """Mean nDCG@10 of each mode, for plain and for reworded requests."""
    figures: dict[str, float] = {}
    plain = requests(shop)
    reworded = [request for request in plain if set(request.values()) & OTHER_WORDS.keys()]
    for suffix, asked, said in (("", plain, words), ("_reworded", reworded, other_words)):
        for mode in get_args(Mode):
            values = [
                ndcg(shop.searcher.search(said(request), mode=mode, k=K), shop.answers(request))
                for request in asked
            ]
            figures[f"{mode}{suffix}_ndcg"] = mean(values)
        figures[f"requests{suffix}"] = len(asked)
    return figures


def requests(shop: Shop) -> list[dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for truth in shop.truth.values():
        for names in ASKED:
            request = {name: truth[name] for name in names if name in truth}
            if len(request) == len(names) and len(shop.answers(request)) >= LEAST_ANSWERS:
                found[words(request)] = request
    return evenly([found[key] for key in sorted(found)])


def words(request: dict[str, str]) -> str:
    return " ".join(request.values())


def other_words(request: dict[str, str]) -> str:
    return " ".join(OTHER_WORDS.get(value, value) for value in request.values())


def ndcg(hits: Sequence[Hit], right: set[str]) -> float:
    discounts = 1 / np.log2(np.arange(2, K + 2))
    reached = sum(discount for hit, discount in zip(hits, discounts, strict=False) if hit.product_id in right)
    return float(reached / discounts[: len(right)].sum())


# --- avoiding


def avoiding(shop: Shop) -> dict[str, float]:
    """How well each way keeps the avoided attribute out and the kind asked for in."""
    cases = evenly(list(avoidable(shop)))
    figures: dict[str, float] = {"avoiding_cases": len(cases)}
    for name, search in ways(shop.searcher).items():
        avoids, kept = [], []
        for kind, attribute, value in cases:
            found = [shop.truth[hit.product_id] for hit in search(kind, value)]
            without = [truth for truth in found if truth.get(attribute) != value]
            avoids.append(len(without) / max(1, len(found)))
            kept.append(sum(truth.get("object_type") == kind for truth in without) / K)
        figures[f"{name}_avoids"], figures[f"{name}_kept"] = mean(avoids), mean(kept)
    return figures


def avoidable(shop: Shop) -> Iterable[tuple[str, str, str]]:
    """A kind, an attribute and its value that 15 to 60 % of the kind have, K of the kind being without."""
    kinds = sorted({truth["object_type"] for truth in shop.truth.values() if "object_type" in truth})
    for kind in kinds:
        of_kind = shop.answers({"object_type": kind})
        for attribute in AVOIDED:
            for value in sorted({shop.truth[name].get(attribute, "") for name in of_kind} - {""}):
                count = len(shop.answers({"object_type": kind, attribute: value}))
                if 0.15 <= count / len(of_kind) <= 0.6 and len(of_kind) - count >= K:
                    yield kind, attribute, value


def ways(searcher: Searcher) -> dict[str, Callable[[str, str], list[Hit]]]:
    def subtracted(share: float, *, filtered: bool = False) -> Callable[[str, str], list[Hit]]:
        def search(kind: str, value: str) -> list[Hit]:
            asked, avoided = searcher.clip.encode_texts([kind, value])
            vector = unit((asked - share * avoided)[None])[0]
            return searcher.nearest(vector, k=K, exclude=[value] if filtered else [])

        return search

    return {
        "nothing": lambda kind, value: searcher.search(kind, mode="vector", k=K),
        "filter": subtracted(0, filtered=True),
        **{f"subtract_{share}": subtracted(share) for share in SHARES},
        **{f"both_{share}": subtracted(share, filtered=True) for share in SHARES},
    }


def evenly(items: list[_Item]) -> list[_Item]:
    """At most `MOST_REQUESTS`, spread over all."""
    step = max(1, -(-len(items) // MOST_REQUESTS))
    return list(islice(items, 0, None, step))


def mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4) if values else 0.0


if __name__ == "__main__":
    main()
