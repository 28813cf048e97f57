"""Mutated pictures and catalogues: no traceback, no hang, every row in the shards or counted.

A small sample by default; `FURNCLIP_FULL=1` runs all 5,000 pictures and the catalogues around them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import time
from pathlib import Path

from furnclip.catalogue import Product, read_products
from furnclip.config import DataPaths
from furnclip.errors import FurnclipError
from tests.conftest import invoke
from tests.prepare_shop import draw
from tests.test_images import SEEDS, mutated

PICTURES = 5000 if os.environ.get("FURNCLIP_FULL") == "1" else 200
A_ROUND = 50
ROUND_LIMIT_S = 120


def test_mutated_pictures_and_catalogues(tmp_path: Path) -> None:
    chance = random.Random(20240607)
    counts: dict[str, int] = {}
    for number in range(PICTURES // A_ROUND):
        folder = tmp_path / str(number)
        catalogue = _write_round(folder, chance)
        (folder / "products.csv").write_bytes(mutated(catalogue, chance) if number % 2 else catalogue)
        start = time.monotonic()
        for reason, rows in _prepared(folder).items():
            counts[reason] = counts.get(reason, 0) + rows
        assert time.monotonic() - start < ROUND_LIMIT_S
    print(json.dumps(counts))
    assert counts["in the shards"] > PICTURES // 10
    assert counts["truncated"] > 0


def _write_round(folder: Path, chance: random.Random) -> bytes:
    """Mutated pictures, and the bytes of a catalogue that names them in some encoding and dialect."""
    (folder / "images").mkdir(parents=True)
    (folder / "furnclip.toml").write_text("[prepare]\nimage_px = 32\nworkers = 1\n")
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=chance.choice(",;\t"))
    writer.writerow(["product_id", "title", "image"])
    for number in range(A_ROUND):
        name = f"{number}.jpg"
        (folder / "images" / name).write_bytes(mutated(chance.choice(SEEDS), chance))
        writer.writerow([number, f"Stühlchen\n{number}", name])
    draw(folder / "images/good.png", chance.randrange(2**32))
    writer.writerow(["good", "Gut", "good.png"])
    return buffer.getvalue().encode(chance.choice(["utf-8", "utf-8-sig", "cp1252", "utf-16"]))


def _prepared(folder: Path) -> dict[str, int]:
    """Rows by what became of them; exactly those that the reader sees."""
    result = invoke("prepare", "--config", folder / "furnclip.toml", "--json", catch_exceptions=False)
    paths = DataPaths(products=folder / "products.csv", images=folder / "images")
    try:
        rows = list(read_products(paths.products, paths))
    except FurnclipError:
        rows = []
    if result.exit_code:
        error, hint = result.stderr.splitlines()
        assert (error.startswith("error: "), hint.startswith("hint: ")) == (True, True), result.stderr
        return {"refused as a whole": len(rows)}
    summary = json.loads(result.stdout)
    assert summary["rows"] == len(rows) == summary["products"] + sum(summary["rejected"].values())
    with (folder / "work/shards/rejected.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == sum(summary["rejected"].values())
    assert summary["products"] <= sum(isinstance(row, Product) for row in rows)
    return {"in the shards": summary["products"], **summary["rejected"]}
