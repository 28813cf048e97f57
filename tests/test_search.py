"""Searching through the real door: order, filters, words, refusals, threads, and a table on S3."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from examples.make_tiny_clip import build_tiny_clip
from furnclip import Searcher, vectors
from furnclip.config import Config, load_config
from furnclip.embed import embed_catalogue
from furnclip.errors import MissingStageError, ModelMismatchError, UsageError
from furnclip.search.encoder import Together
from furnclip.vectors.index import index_location, write_index
from tests.conftest import invoke
from tests.drawn_shop import captions, write_shop
from tests.s3_server import CREDENTIALS, create_bucket, s3_server
from tests.test_embed import embed, prepare

PRODUCTS = 60
ATTRIBUTES = "clean_title,style,material,color,object_type"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A cleaned and embedded shop of 60 products."""
    shop = write_shop(tmp_path_factory.mktemp("search") / "shop", products=PRODUCTS, model=tiny_clip)
    clean(shop)
    embed(shop)
    return shop


def clean(shop: Path) -> None:
    """Attributes from the drawn titles, "ACME red oak chair, model 3 - FREE SHIPPING"."""
    lines = (shop / "products.csv").read_text().splitlines()
    cleaned = [f"{lines[0]},{ATTRIBUTES}"]
    for line in lines[1:]:
        color, material, kind = line.split("ACME ")[1].split(",")[0].split()
        cleaned.append(f"{line},{color} {material} {kind},modern,{material},{color},{kind}")
    target = shop / "work/clean/cleaned.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(cleaned) + "\n")


@pytest.fixture(scope="module")
def config(embedded: Path) -> Config:
    return load_config(embedded / "furnclip.toml")


@pytest.fixture(scope="module")
def searcher(config: Config) -> Searcher:
    return Searcher(config)


def run(shop: Path, *arguments: str, stdin: str | None = None) -> Result:
    return invoke("search", "--config", shop / "furnclip.toml", *arguments, input=stdin)


def test_json_is_one_object_with_ranked_hits(embedded: Path) -> None:
    done = run(embedded, "red chair", "-k", "5", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert len(said["hits"]) == 5
    assert {"product_id", "title", "score", "color", "image"} <= said["hits"][0].keys()
    scores = [hit["score"] for hit in said["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_vector_search_is_exact_on_a_small_table(searcher: Searcher, config: Config) -> None:
    table = vectors.VectorTable(config.paths.vectors)
    query = searcher.clip.encode_texts(["a blue velvet bed"])
    scores, rows = vectors.top_k(query, table.matrix("vec_clip_base"), 10)
    hits = searcher.search("a blue velvet bed", k=10, mode="vector", all_variants=True)
    assert [hit.product_id for hit in hits] == [table.products[row]["product_id"] for row in rows[0]]
    np.testing.assert_allclose([hit.score for hit in hits], scores[0], atol=1e-5)


def test_a_text_is_led_away_from_what_is_to_be_avoided(searcher: Searcher) -> None:
    asked, avoided = searcher.clip.encode_texts(["blue bed", "velvet"])
    led_away = vectors.unit((asked - 0.5 * avoided)[None])[0]
    expected = searcher.nearest(led_away, k=10, exclude=["velvet"])
    hits = searcher.search("blue bed", k=10, mode="vector", exclude=["velvet"])
    assert [(hit.product_id, hit.score) for hit in hits] == [(hit.product_id, hit.score) for hit in expected]


def test_keywords_find_words_and_their_stems(searcher: Searcher) -> None:
    for words in ("velvet lamp", "VELVET lamps"):
        hits = searcher.search(words, mode="keyword", k=3)
        assert {(hit.material, hit.object_type) for hit in hits} == {("velvet", "lamp")}


def test_hybrid_puts_first_what_has_every_word(searcher: Searcher) -> None:
    one = searcher.search("bed", k=1)[0]
    hits = searcher.search(f"{one.color} {one.material} beds", k=5)
    assert (hits[0].color, hits[0].material, hits[0].object_type) == (one.color, one.material, "bed")
    assert hits[0].why["words"] == {
        one.color: ["title", "clean_title", "color"],
        one.material: ["title", "clean_title", "material"],
        "beds": ["title", "clean_title", "object_type"],
    }
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_hybrid_keeps_to_the_filter_on_both_sides(searcher: Searcher) -> None:
    hits = searcher.search("red bed", mode="hybrid", k=60, where="color = 'blue'")
    assert hits
    assert {hit.color for hit in hits} == {"blue"}
    assert searcher.search("red bed", mode="hybrid", where="color = 'plaid'") == []


def test_a_picture_finds_itself_at_another_quality(
    embedded: Path, searcher: Searcher, tmp_path: Path
) -> None:
    """First of 60 in most cases even by a model of random weights, of which many lie nearly together."""
    changed, firsts = tmp_path / "changed.jpg", 0
    for number in range(PRODUCTS):
        with Image.open(embedded / f"images/{number:05d}.jpg") as image:
            image.save(changed, quality=90)
        hits = searcher.search(image=changed, k=3)
        assert hits[0].why["cosine"] > 0.99
        firsts += hits[0].product_id == f"P{number:05d}"
    assert firsts > 0.75 * PRODUCTS
    done = run(embedded, "--image", str(embedded / "images/00003.jpg"), "-k", "1", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["hits"][0]["product_id"] == "P00003"


def test_text_and_picture_are_weighted(searcher: Searcher, embedded: Path) -> None:
    picture = embedded / "images/00017.jpg"

    def scores(text: str | None, **options: Any) -> dict[str, float]:
        return {hit.product_id: hit.score for hit in searcher.search(text, k=60, mode="vector", **options)}

    text_only, image_only = scores("green bed"), scores(None, image=picture)
    assert scores("green bed", image=picture, image_weight=0.0) == pytest.approx(text_only, abs=1e-5)
    assert scores("green bed", image=picture, image_weight=1.0) == pytest.approx(image_only, abs=1e-5)
    # An open picture is decoded in full, a large file at a fraction of its size.
    with Image.open(picture) as opened:
        assert scores(None, image=opened) == pytest.approx(image_only, abs=2e-2)
    both = scores("green bed", image=picture)
    assert both != pytest.approx(text_only, abs=1e-2)
    assert both != pytest.approx(image_only, abs=1e-2)


@pytest.mark.parametrize("mode", ["vector", "keyword", "hybrid"])
def test_filters_hold_in_every_mode(searcher: Searcher, mode: Any) -> None:
    hits = searcher.search("a red chair", mode=mode, k=60, where="color = 'red'", exclude=["velvet", "OAK"])
    assert hits
    assert {(hit.color, hit.material) for hit in hits} == {("red", "metal")}


def test_an_excluded_word_takes_its_longer_forms_along(searcher: Searcher) -> None:
    assert not any(hit.object_type == "chair" for hit in searcher.search("chair", k=60, exclude=["chai"]))
    assert any(hit.object_type == "chair" for hit in searcher.search("chair", k=60, exclude=["hair"]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(word=st.text(max_size=12), mode=st.sampled_from(["vector", "keyword", "hybrid"]))
def test_no_word_can_break_out_of_its_place(searcher: Searcher, word: str, mode: Any) -> None:
    assert len(searcher.search("oak chair", k=3, exclude=[word], mode=mode)) <= 3
    if word.strip():
        assert len(searcher.search(word, k=3, mode=mode)) <= 3


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["x", "--where", "colour = 'red'"], 2, "there is no column `colour`", "did you mean `color`?"),
        (["x", "--where", "color = "], 2, "the filter `color = ` cannot be understood", "single quotes"),
        (["x", "--where", "color = 'r'; drop table index"], 2, "cannot be understood", "single quotes"),
        ([], 2, "there is nothing to search for", "give a text"),
        (["x", "--mode", "magic"], 2, "`search.mode` cannot be", "search.mode"),
        (["x", "-k", "0"], 2, "`search.k` cannot be", "search.k"),
        (["--image", "furnclip.toml"], 1, "`furnclip.toml`", "use another image, or leave this one out"),
        (["x", "--run", "fast"], 1, "of the base model only, not by run `fast`", "embed --run fast"),
        (["x", "--run", "fast", "--model", "y"], 2, "ask for two models", "give one"),
    ],
)
def test_mistakes_are_two_clear_lines(
    embedded: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str, hint: str
) -> None:
    monkeypatch.chdir(embedded)
    done = run(embedded, *arguments)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert hint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2


def test_searching_before_embedding_says_which_command_to_run(shop: Path) -> None:
    done = run(shop, "red chair")
    assert done.exit_code == 2
    assert "hint: run `furnclip embed` first" in done.stderr
    with pytest.raises(MissingStageError):
        Searcher(load_config(shop / "furnclip.toml"))


def test_another_model_is_refused(embedded: Path, tmp_path: Path) -> None:
    other = build_tiny_clip(tmp_path / "other", captions(), seed=5, image_px=32, width=32, layers=2)
    done = run(embedded, "red chair", "--model", str(other))
    assert done.exit_code == 1
    assert "not by the model asked for" in done.stderr
    flags = {"model": {"name": str(other)}}
    with pytest.raises(ModelMismatchError):
        Searcher(load_config(embedded / "furnclip.toml", flags))


def test_a_product_without_a_picture_is_found_by_word_and_text(embedded: Path, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shutil.copytree(embedded, shop)
    (shop / "images/00003.jpg").unlink()
    embed(shop)
    searcher = Searcher(load_config(shop / "furnclip.toml"))
    answer = searcher.search("lamp", mode="vector", k=100, all_variants=True)
    found = [hit.product_id for hit in answer]
    assert len(found) == PRODUCTS
    assert "P00003" in found
    assert "P00003" in {
        hit.product_id for hit in searcher.search("lamp", mode="keyword", k=100, all_variants=True)
    }


def test_what_arrives_together_is_encoded_together() -> None:
    batches: list[list[int]] = []

    def encode(numbers: list[int]) -> np.ndarray:
        batches.append(numbers)
        time.sleep(0.05)
        if 13 in numbers:
            raise ValueError(13)
        return np.array(numbers, dtype=np.float32)[:, None]

    together = Together(encode)
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda number: together([number, number + 100]), range(12)))
    assert [vectors[:, 0].tolist() for vectors in found] == [[n, n + 100] for n in range(12)]
    assert len(batches) <= 4
    with pytest.raises(ValueError, match="13"):
        together([13])
    assert together([1]).tolist() == [[1]]


def test_threads_and_batches_get_what_one_by_one_gets(searcher: Searcher) -> None:
    texts = [f"{color} {kind}" for color in ("red", "blue", "green") for kind in ("bed", "chair", "a lamp")]
    alone = [[hit.product_id for hit in searcher.search(text, k=5)] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: searcher.search(text, k=5), texts * 3))
    assert [[hit.product_id for hit in hits] for hits in together] == alone * 3
    batch = searcher.search_many(texts, k=5)
    assert [[hit.product_id for hit in hits] for hits in batch] == alone
    assert searcher.search_many([]) == []
    with pytest.raises(UsageError):
        searcher.search("  ")


def test_preview_is_a_contact_sheet_of_the_hits(embedded: Path) -> None:
    done = run(embedded, "red chair", "-k", "7", "--preview", "--json")
    with Image.open(json.loads(done.stdout)["preview"]) as sheet:
        assert sheet.size == (5 * 200, 2 * 216)


def test_interactive_answers_line_after_line_until_an_empty_one(embedded: Path) -> None:
    # A real process: the test runner's stdin does not read ahead as a pipe does.
    done = subprocess.run(
        [sys.executable, "-m", "furnclip", "search", "--interactive", "--json", "-k", "1"],
        cwd=embedded,
        input="red bed\nblue lamp\n\nnever asked\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["query"] for line in done.stdout.splitlines()] == ["red bed", "blue lamp"]


# --- an approximate index


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Config:
    """600 products with an IVF index."""
    shop = write_shop(tmp_path_factory.mktemp("indexed") / "shop", products=600, model=tiny_clip)
    clean(shop)
    flags = {"search": {"exact_below": 300, "probes": 8}}
    config = load_config(shop / "furnclip.toml", flags)
    prepare(shop)
    summary = embed_catalogue(config)
    assert summary.index is not None
    assert not summary.index.exact
    return config


@pytest.mark.parametrize("packed", [False, True])
def test_an_approximate_index_misses_little(
    indexed: Config, monkeypatch: pytest.MonkeyPatch, *, packed: bool
) -> None:
    if packed:
        monkeypatch.setattr("furnclip.vectors.index.PACKED_FROM", 300)
        write_index(index_location(indexed), indexed.paths.vectors, indexed.search)
    table = vectors.VectorTable(indexed.paths.vectors)
    searcher = Searcher(indexed)
    texts = captions()
    _, rows = vectors.top_k(searcher.clip.encode_texts(texts), table.matrix("vec_clip_base"), 10)
    found = 0
    for hits, exact in zip(
        searcher.search_many(texts, k=10, mode="vector", all_variants=True), rows, strict=True
    ):
        found += len({hit.product_id for hit in hits} & {table.products[row]["product_id"] for row in exact})
    assert found / (10 * len(texts)) >= 0.95


def test_a_rare_filter_still_fills_the_page(indexed: Config) -> None:
    wanted = "product_id IN ('P00001', 'P00250', 'P00499', 'P00077', 'P00590')"
    hits = Searcher(indexed).search("green velvet bed", k=5, where=wanted)
    assert {hit.product_id for hit in hits} == {"P00001", "P00250", "P00499", "P00077", "P00590"}


# --- on S3


def test_the_table_on_s3_works_the_same(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searcher: Searcher
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    shop = tmp_path / "shop"
    shutil.copytree(embedded, shop)
    shutil.rmtree(shop / "work/index.lance")
    with s3_server() as server:
        create_bucket(server, "shop")
        flags = {
            "search": {"index": "s3://shop/tables/index.lance"},
            "storage": {"endpoint_url": server, "region": "us-east-1"},
        }
        config = load_config(shop / "furnclip.toml", flags)
        with pytest.raises(MissingStageError):
            Searcher(config)
        summary = embed_catalogue(config)
        assert summary.was_there  # the vectors; only the table had to be made
        assert not (shop / "work/index.lance").exists()
        remote = Searcher(config)
        for mode in ("vector", "keyword", "hybrid"):
            options: dict[str, Any] = {"mode": mode, "k": 5, "where": "color = 'red'"}
            there, here = remote.search("red bed", **options), searcher.search("red bed", **options)
            assert [hit.product_id for hit in there] == [hit.product_id for hit in here]
            scores = [hit.score for hit in here]
            assert [hit.score for hit in there] == pytest.approx(scores, abs=1e-5)  # float sums differ
        assert embed_catalogue(config).was_there
