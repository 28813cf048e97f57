"""A change to a catalogue of many shards reaches search by upsert: as if the table had been made anew."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from furnclip import Searcher, load_config
from furnclip.embed import pipeline
from furnclip.vectors import upsert
from furnclip.vectors.index import holds_views, index_location, open_index, told_by
from tests.drawn_shop import captions, write_shop
from tests.test_embed import VECTORS, embed, embed_shards, prepare, table_of

FULL = os.environ.get("FURNCLIP_FULL") == "1"
PRODUCTS = 400
STEPS = ("_begin", "_merge", "_tidy", "_note")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    shop = write_shop(tmp_path_factory.mktemp("upsert") / "shop", products=PRODUCTS, model=tiny_clip)
    toml = shop / "furnclip.toml"
    text = toml.read_text().replace("[prepare]\n", "[prepare]\nshard_samples = 8\n")
    toml.write_text(text + "\n[search]\nexact_below = 300\nprobes = 1000\n")  # an index, all of it read
    embed(shop)
    return shop


def change(shop: Path, seed: int) -> set[str]:
    """Change two titles, remove two products and add one; ids of those removed."""
    chance = random.Random(seed)
    path = shop / "products.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chance.shuffle(rows)
    gone, (first, second, *_) = rows[:2], rows[2:]
    first["title"], second["title"] = f"a velvet bed {seed}", f"a zebra lamp {seed}"
    image = f"new-{seed}.jpg"
    shutil.copyfile(shop / "images" / second["image"], shop / "images" / image)
    rows = [
        *rows[2:],
        {**second, "product_id": f"N{seed:05d}", "image": image, "title": f"a quilted pouf {seed}"},
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return {row["product_id"] for row in gone}


def ids_of(shop: Path) -> list[str]:
    table, _ = open_index(index_location(load_config(shop / "furnclip.toml")))
    return sorted(table.to_arrow()["product_id"].to_pylist())


def has_views(shop: Path) -> bool:
    table, _ = open_index(index_location(load_config(shop / "furnclip.toml")))
    return holds_views(table.schema, "image_clip_base")


def answers(shop: Path) -> list[set[str]]:
    """The top ten of 50 queries by meaning, with those that score as the tenth does.

    Of a hybrid search near ties may turn: it weighs by a sample of rows, and a new table has another order.
    """
    searcher = Searcher(load_config(shop / "furnclip.toml"))
    texts = [*captions()[:48], "a zebra lamp", "a quilted pouf"]
    found = [hits[:40] for hits in searcher.search_many(texts, k=40, mode="vector")]
    return [{hit.product_id for hit in hits if hit.score >= hits[:10][-1].score - 1e-5} for hits in found]


def anew(shop: Path) -> Path:
    """The same shards, embedded from nothing."""
    other = shop.parent / f"{shop.name}-anew"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(shop, other)
    for made in ("embeddings", "index.lance"):
        shutil.rmtree(other / "work" / made)
    embed_shards(other)
    return other


def check_in_line(shop: Path) -> None:
    """The vector file and the table hold what the catalogue names, and search as new ones would."""
    with (shop / "products.csv").open(newline="", encoding="utf-8") as file:
        wanted = sorted(row["product_id"] for row in csv.DictReader(file))
    assert ids_of(shop) == wanted
    assert sorted(pq.read_table(shop / VECTORS)["product_id"].to_pylist()) == wanted
    other = anew(shop)
    mine, new = table_of(shop), table_of(other)
    assert mine.products == new.products
    np.testing.assert_allclose(mine.matrix("vec_clip_base"), new.matrix("vec_clip_base"), atol=1e-6)
    assert answers(shop) == answers(other)


def test_what_changed_is_merged_and_what_is_gone_is_not_found(built: Path, tmp_path: Path) -> None:
    shop = Path(shutil.copytree(built, tmp_path / "shop"))
    before = {path.name for path in (shop / VECTORS).iterdir()}
    reader = Searcher(load_config(shop / "furnclip.toml"))
    seen = [hit.product_id for hit in reader.search("a chair", k=5)]
    gone = change(shop, 1)
    said = embed(shop)
    assert said["encoded"]["base"] <= 3
    kept = before & {path.name for path in (shop / VECTORS).iterdir()}
    assert len(kept) > 0.8 * len(before)
    table, made = open_index(index_location(load_config(shop / "furnclip.toml")))
    assert made.products == PRODUCTS - 1
    assert b"furnclip_target" in told_by(table.schema)  # it was merged
    assert not gone & set(ids_of(shop))
    assert [hit.product_id for hit in reader.search("a chair", k=5)] == seen  # as when it was opened
    check_in_line(shop)
    assert embed(shop)["up_to_date"]


def test_each_change_of_a_small_shop_reaches_its_table(tmp_path: Path, tiny_clip: Path) -> None:
    """Its vectors are one file, which has the same name whatever it holds."""
    shop = write_shop(tmp_path / "shop", products=12, model=tiny_clip)
    embed(shop)
    assert (shop / VECTORS).is_file()
    rows = (shop / "products.csv").read_text().splitlines()
    added = rows[2].replace("P00001", "N00001")
    for changed in (
        [*rows[:2], rows[2].replace("ACME", "changed"), *rows[3:]],
        [*rows, added],
        [*rows[:4], *rows[5:], added],
        rows,
    ):
        (shop / "products.csv").write_text("\n".join(changed) + "\n")
        embed(shop)
        table, _ = open_index(index_location(load_config(shop / "furnclip.toml")))
        held = table.to_arrow().select(["product_id", "title"]).to_pylist()
        wanted = [(row["product_id"], row["title"]) for row in csv.DictReader(changed)]
        assert sorted((row["product_id"], row["title"]) for row in held) == sorted(wanted)


def test_after_many_changes_the_weight_is_chosen_anew(built: Path, tmp_path: Path) -> None:
    shop = Path(shutil.copytree(built, tmp_path / "shop"))
    lines = (shop / "products.csv").read_text().splitlines()
    for row in range(1, PRODUCTS // 10):  # one in ten
        lines[row] = lines[row].replace("ACME", "changed")
    (shop / "products.csv").write_text("\n".join(lines) + "\n")
    said = embed(shop)
    assert 0 < said["row_groups_encoded"] < said["row_groups"]
    manifest = json.loads((shop / VECTORS / "_manifest.json").read_text())
    assert manifest["changed"] == 0
    assert manifest["provenance"]["models"]["base"]["image_weight_reason"]


def test_variants_are_counted_anew(tmp_path: Path, tiny_clip: Path) -> None:
    shop = write_shop(tmp_path / "shop", products=40, model=tiny_clip)
    toml = shop / "furnclip.toml"
    text = toml.read_text().replace("[prepare]\n", "[prepare]\nshard_samples = 1\n")
    toml.write_text(text + '\n[paths]\ngroup_column = "family"\n')
    lines = (shop / "products.csv").read_text().splitlines()
    told = [f"{line},{'family' if not row else f'F{row // 4}'}" for row, line in enumerate(lines)]
    (shop / "products.csv").write_text("\n".join(told) + "\n")
    assert embed(shop)["row_groups"] > 16
    assert variants(shop, "F2") == {"P00007": 4, "P00008": 4, "P00009": 4, "P00010": 4}
    (shop / "products.csv").write_text("\n".join([*told[:9], *told[10:]]) + "\n")
    _, made = open_index(index_location(load_config(toml)))
    embed(shop)
    table, now = open_index(index_location(load_config(toml)))
    assert made.key != now.key
    assert b"furnclip_target" in told_by(table.schema)
    assert variants(shop, "F2") == {"P00007": 3, "P00009": 3, "P00010": 3}
    assert variants(shop, "F3") == {"P00011": 4, "P00012": 4, "P00013": 4, "P00014": 4}


def variants(shop: Path, group: str) -> dict[str, int]:
    table, _ = open_index(index_location(load_config(shop / "furnclip.toml")))
    found = table.search().where(f"`group` = '{group}'").to_arrow().to_pylist()
    return {row["product_id"]: json.loads(row["details"])["variants"] for row in found}


def killed_at(environment: dict[str, str], shop: Path, step: str, delay_s: float) -> None:
    """Embed in this process, and kill it so long after it has come to a step."""
    os.environ.update(environment)

    def killing(*_: Any) -> None:
        time.sleep(delay_s)
        os.kill(os.getpid(), signal.SIGKILL)

    def begins(work: Callable[..., Any]) -> Callable[..., Any]:
        def begun(*given: Any, **named: Any) -> Any:
            threading.Thread(target=killing, daemon=True).start()
            if not delay_s:
                time.sleep(1)
            return work(*given, **named)

        return begun

    owner = upsert if hasattr(upsert, step) else pipeline.VectorWriter
    setattr(owner, step, begins(getattr(owner, step)))
    embed_shards(shop)


@pytest.mark.parametrize(("views", "others"), [(False, 0), (False, 1), (True, 1)])
def test_products_without_an_image_are_merged_as_well(
    built: Path, tmp_path: Path, views: bool, others: int
) -> None:
    """They have no image vector. Two get another title, one is new and one loses its image.

    views: whether a product has several images. others: products with an image that get another title.
    """
    shop = Path(shutil.copytree(built, tmp_path / "shop"))
    path = shop / "products.csv"
    Image.effect_noise((64, 64), 90).convert("RGB").save(shop / "images" / "second.jpg", quality=95)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def write() -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        embed(shop)

    rows[1]["image"] = rows[2]["image"] = ""
    rows[0]["image"] += "|second.jpg" * views
    write()
    rows[1]["title"], rows[2]["title"], rows[3]["image"] = "a zebra lamp", "a velvet bed", ""
    rows.append({**rows[1], "product_id": "N00001", "title": "a quilted pouf"})
    for row in rows[4 : 4 + others]:
        row["title"] = "a red stool"
    write()
    table, _ = open_index(index_location(load_config(shop / "furnclip.toml")))
    # LanceDB cannot add to an index of vectors where none of the new rows has one
    assert (b"furnclip_target" in told_by(table.schema)) == bool(others)
    assert table.to_arrow()["image_clip_base"].null_count == 4
    assert ids_of(shop) == sorted(row["product_id"] for row in rows)
    assert answers(shop) == answers(anew(shop))
    if views:
        found = Searcher(load_config(shop / "furnclip.toml")).search(
            image=shop / "images" / "second.jpg", k=1
        )
        assert found[0].product_id == rows[0]["product_id"]


@pytest.mark.skipif(not FULL, reason="100 kills take minutes")
def test_killed_around_the_upsert(built: Path, tmp_path: Path) -> None:
    shop = Path(shutil.copytree(built, tmp_path / "shop"))
    chance = random.Random(3)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["furnclip.model", "furnclip.shards"])
    kills = killed = 0
    while killed < 100:
        change(shop, kills)
        prepare(shop)
        for _ in range(chance.randint(1, 3)):
            step = chance.choice([*STEPS, "write"])
            delay_s = chance.choice([0.0, chance.uniform(0, 0.3)])
            process = context.Process(target=killed_at, args=(dict(os.environ), shop, step, delay_s))
            process.start()
            process.join()
            kills, killed = kills + 1, killed + (process.exitcode == -signal.SIGKILL)
        embed_shards(shop)
        assert ids_of(shop) == sorted(str(row["product_id"]) for row in table_of(shop).products)
        print(f"{killed} kills of {kills} runs", flush=True)
        if chance.random() < 0.2:
            check_in_line(shop)
    check_in_line(shop)


def test_a_first_product_with_two_images_makes_the_table_anew_and_is_found_by_the_second(
    built: Path, tmp_path: Path
) -> None:
    """Of one image a product the table holds plain vectors, which have no room for two."""
    shop = Path(shutil.copytree(built, tmp_path / "shop"))
    path = shop / "products.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    Image.effect_noise((64, 64), 90).convert("RGB").save(shop / "images" / "second.jpg", quality=95)
    rows[0]["image"] += "|second.jpg"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert not has_views(shop)
    for number in range(2):
        prepare(shop)
        embed_shards(shop)
        assert has_views(shop)
        searcher = Searcher(load_config(shop / "furnclip.toml"))
        found = searcher.search(image=shop / "images" / "second.jpg", k=1)[0]
        assert found.product_id == rows[0]["product_id"], number
        change(shop, number)  # a night later, by upsert
