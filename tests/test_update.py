"""`furnclip update` in a shop that changes overnight."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from furnclip.journal import exclusive
from tests.conftest import Cli, run_here
from tests.drawn_shop import write_shop
from tests.test_embed import embed, embed_shards, rewrite, table_of


def in_parts(shop: Path) -> Path:
    """The shop with a shard a product: what changes at night is then embedded without torch."""
    toml = shop / "furnclip.toml"
    toml.write_text(toml.read_text().replace("[prepare]\n", "[prepare]\nshard_samples = 1\n"))
    return shop


def test_a_night_s_change_reaches_search(cli: Cli, tmp_path: Path, tiny_clip: Path) -> None:
    shop = in_parts(write_shop(tmp_path / "shop", products=40, model=tiny_clip))
    first = cli("update", "--json", cwd=shop).ok()
    assert first.json["results"].keys() == {"fetch", "prepare", "embed"}
    assert "clean run` was never started" in first.stderr
    rewrite(shop, {"title": "a velvet bed"}, product=4)
    lines = (shop / "products.csv").read_text().splitlines(keepends=True)
    (shop / "products.csv").write_text("".join(lines[:-1]))
    second = cli("update", "--json", cwd=shop).ok().json["results"]
    assert second["prepare"]["decoded"] == 0
    assert second["embed"]["encoded"] == {"base": 1}
    assert [str(row["product_id"]) for row in table_of(shop).products] == [f"P{n:05d}" for n in range(39)]
    assert cli("update", "--json", cwd=shop).ok().json["results"]["embed"]["up_to_date"]
    log = (shop / "work/update.log").read_text()
    assert log.count("furnclip prepare\n") == log.count("furnclip embed\n") == 3
    assert log.count("exit code 0") == 9


def test_a_stage_that_fails_ends_it_and_is_in_the_log(cli: Cli, shop: Path) -> None:
    for path in (shop / "images").iterdir():
        path.unlink()
    outcome = cli("update", cwd=shop)
    assert outcome.code == 1
    told = " ".join(outcome.stderr.split())
    assert "`furnclip prepare` ended with exit code 1: no row of" in told
    assert "update.log`" in told.partition("hint: ")[2].partition("; all messages: ")[2]
    assert "can be used; 12 of 12: missing" in (shop / "work/update.log").read_text()


def test_a_night_that_would_empty_search_leaves_it_as_it_was(
    cli: Cli, tmp_path: Path, tiny_clip: Path
) -> None:
    """A cut export, or one whose images are gone, is a mistake more often than a sale; `embed` takes it."""
    shop = write_shop(tmp_path / "shop", products=12, model=tiny_clip)
    for product in range(8):
        rewrite(shop, {"image": ""}, product=product)  # in no split, but found by their words
    embed(shop)
    cli("update", cwd=shop).ok()
    path = shop / "products.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines[9:]]))
    outcome = cli("update", cwd=shop)
    assert outcome.code == 1
    assert "of 12 products in search the catalogue has 4 left" in " ".join(outcome.stderr.split())
    assert len(table_of(shop).products) == 12
    embed_shards(shop)
    cli("update", cwd=shop).ok()
    assert len(table_of(shop).products) == 4


def test_two_do_not_run_at_once(cli: Cli, shop: Path) -> None:
    with exclusive(shop / "work/update.log"):
        outcome = cli("update", cwd=shop)
    assert outcome.code == 1
    assert "in use by another furnclip process" in outcome.stderr


def test_a_night_s_change_is_embedded_without_torch(tmp_path: Path, tiny_clip: Path) -> None:
    """In a shop of more than one part, with the model beside the table; torch takes seconds to import."""
    shop = in_parts(write_shop(tmp_path / "shop", products=40, model=tiny_clip))
    run_here("prepare", cwd=shop).ok()
    run_here("embed", cwd=shop).ok()
    for change in ({"title": "a velvet bed"}, {}):
        if change:
            rewrite(shop, change, product=4)
            run_here("prepare", cwd=shop).ok()
        script = "import sys; from furnclip.cli.commands import app; app(sys.argv[1:], standalone_mode=False)"
        script += "; assert not {'torch', 'transformers'} & {*sys.modules}"
        done = subprocess.run(
            [sys.executable, "-c", script, "embed", "--json"], cwd=shop, capture_output=True, check=True
        )
        assert json.loads(done.stdout)["encoded"] == ({"base": 1} if change else {})
    vectors = table_of(shop).matrix("vec_clip_base")
    shutil.rmtree(shop / "work/embeddings")
    run_here("embed", cwd=shop).ok()
    np.testing.assert_allclose(vectors, table_of(shop).matrix("vec_clip_base"), atol=1e-6)
