"""Catalogues of every format, damaged at random: each row is cleaned or rejected, or all is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from random import Random

import pytest

from tests.drawn_shop import rows
from tests.fuzzing import CLEAN, PRODUCTS, damage, finish_shop, run, versions
from tests.mutations import mutate_bytes, mutate_json

FEEDS = {
    "feed-csv": "products.csv",
    "feed-tsv": "products.tsv",
    "feed-jsonl": "products.jsonl",
    "feed-json": "products.json",
    "feed-gzip": "products.csv.gz",
    "feed-parquet": "products.parquet",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    return finish_shop(tmp_path_factory.mktemp("fuzz") / "shop", tiny_clip)


@pytest.mark.parametrize("name", FEEDS)
def test_a_damaged_catalogue_loses_no_row(name: str, finished: Path, tmp_path: Path) -> None:
    file = FEEDS[name]
    mutations = (mutate_bytes, mutate_json) if "json" in name else (mutate_bytes,)
    for seed in versions():
        what = f"{name}, seed {seed}"
        shop = Path(shutil.copytree(finished, tmp_path / "shop"))
        shutil.rmtree(shop / "work")
        changed = damage(shop / file, mutations, Random(f"{name} {seed}"))
        done = run(shop, CLEAN, what, FURNCLIP_PATHS__PRODUCTS=str(shop / file))
        if (shop / "work/clean/cleaned.csv").is_file():
            check_rows(shop, json.loads(done.stdout), changed, what)
        shutil.rmtree(shop)


def check_rows(shop: Path, summary: dict[str, int], changed: bytes, what: str) -> None:
    """Rows in = rows out + rejected, and every product whose line is whole is in one of the two files."""
    texts = []
    for name in ("cleaned.csv", "rejected.csv"):
        with (shop / "work/clean" / name).open(encoding="utf-8", newline="") as file:
            texts.append(file.read())
    tables = [list(csv.reader(io.StringIO(text, newline=""))) for text in texts]
    counted = [max(0, len(table) - 1) for table in tables]
    assert counted == [summary["cleaned"], summary["rejected"]], what
    for row in rows(PRODUCTS):
        ends = (f"{row['product_id']},", f",{row['image']},{row['price']}")
        whole = all(end.encode() in changed for end in ends)
        assert not whole or any(row["product_id"] in text for text in texts), (
            f"{what}: {row['product_id']} is in neither file"
        )
