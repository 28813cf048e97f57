"""Embedding through the real door: what is written, what is encoded again, and what a kill costs."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from examples.make_tiny_clip import build_tiny_clip
from furnclip import EmbeddingGenerator, vectors
from furnclip.config import load_config
from furnclip.embed.plan import LEAST_COSINE, choose_image_weight, settle_precision
from furnclip.errors import InputError
from furnclip.images import BrokenImage, open_image
from furnclip.journal import aside_name
from furnclip.model.clip import Clip
from furnclip.model.loading import load_clip
from furnclip.model.precision import can_pack, pack
from furnclip.runs import PrecisionChoice as Choice
from tests.conftest import Cli, invoke
from tests.drawn_shop import captions, write_shop
from tests.forked import Forked, run_ranks

VECTORS = "work/embeddings/master_vectors.parquet"
FULL = os.environ.get("FURNCLIP_FULL") == "1"


def prepare(shop: Path) -> Path:
    """Bring the shards in line with the catalogue, run in this process to save the imports."""
    done = invoke("prepare", "--config", shop / "furnclip.toml")
    assert done.exit_code == 0, done.output
    return shop


def embed(shop: Path, *flags: str) -> dict[str, Any]:
    """The JSON that `furnclip embed` prints for the catalogue as it is now."""
    return embed_shards(prepare(shop), *flags)


def embed_shards(shop: Path, *flags: str) -> dict[str, Any]:
    done = invoke("embed", "--json", "--config", shop / "furnclip.toml", *flags)
    assert done.exit_code == 0, done.output
    said: dict[str, Any] = json.loads(done.stdout)
    return said


class ById(vectors.VectorTable):
    """A vector file in the order of the product ids, which is that of the drawn catalogue."""

    @property
    def products(self) -> list[dict[str, str | None]]:
        return sorted(super().products, key=lambda row: str(row["product_id"]))

    def _vectors(self, name: str) -> tuple[Any, Any]:
        matrix, present = super()._vectors(name)
        ids = [str(row["product_id"]) for row in super().products]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        return matrix[order], present[order]


def table_of(shop: Path) -> ById:
    return ById(shop / "work" / "embeddings" / "master_vectors.parquet")


def rewrite(shop: Path, change: Mapping[str, str], *, product: int = 0) -> None:
    """Change cells of one product in `products.csv`."""
    path = shop / "products.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[product].update(change)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def parts_of(shop: Path) -> dict[str, bytes]:
    """What the files of a vector file that is a folder hold, by their names."""
    return {path.name: path.read_bytes() for path in (shop / VECTORS).iterdir()}


def add_run(shop: Path, name: str, *, seed: int) -> None:
    """A finished run whose model has other weights."""
    run = shop / "work" / "runs" / name
    build_tiny_clip(run / "model", captions(), seed=seed, image_px=32, width=32, layers=2)
    (run / "run.json").write_text(json.dumps({"status": "finished", "finished_at": name}))


def test_every_product_gets_unit_vectors_that_the_model_made(shop: Path, tiny_clip: Path) -> None:
    said = embed(shop)
    assert said["products"] == 12
    assert said["encoded"] == {"base": 12}
    table = table_of(shop)
    assert table.columns == (
        *vectors.PRODUCT_COLUMNS,
        "price",
        *("image_clip_base", "text_clip_base", "vec_clip_base", "views_clip_base"),
        "missing_reason",
    )
    clip = load_clip(str(tiny_clip), load_config(shop / "furnclip.toml").model)
    assert table.provenance.models["base"].fingerprint == clip.fingerprint
    title = str(table.products[3]["title"]).lower()
    expected = clip.encode_texts([f"a photo of {title}"])
    np.testing.assert_allclose(table.matrix("text_clip_base")[3:4], expected, atol=1e-6)
    fused = vectors.fuse(table.matrix("image_clip_base"), table.matrix("text_clip_base"), 0.5)
    np.testing.assert_allclose(table.matrix("vec_clip_base"), fused, atol=1e-6)
    for name in ("image_clip_base", "text_clip_base", "vec_clip_base"):
        np.testing.assert_allclose(np.linalg.norm(table.matrix(name), axis=1), 1, atol=1e-5)


def test_what_a_kill_left_half_written_is_removed(shop: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = aside_name(shop / "work/embeddings/master_vectors.parquet")
    half_written = mine.with_name(mine.name.replace(f"-{os.getpid()}.", f"-{ended.pid}."))
    half_written.parent.mkdir(parents=True)
    half_written.write_bytes(b"PAR1")
    embed(shop)
    assert not half_written.exists()


def test_the_second_run_does_nothing_and_says_so(shop: Path) -> None:
    embed(shop)
    before = (shop / "work/embeddings/master_vectors.parquet").stat().st_mtime_ns
    done = invoke("embed", "--config", shop / "furnclip.toml")
    assert done.exit_code == 0
    assert "nothing to do: every product is embedded by these models already" in done.stderr
    assert (shop / "work/embeddings/master_vectors.parquet").stat().st_mtime_ns == before
    assert not (shop / "work/embeddings/parts").exists()


def test_a_picture_that_fails_is_a_null_vector_with_its_reason(shop: Path) -> None:
    (shop / "images/00001.jpg").unlink()
    (shop / "images/00002.jpg").write_bytes((shop / "images/00003.jpg").read_bytes()[:300])
    (shop / "images/00004.jpg").write_text("not a picture")
    said = embed(shop)
    assert said["missing"] == {"missing": 1, "truncated": 1, "not-a-picture": 1}
    table = table_of(shop)
    assert table.present("image_clip_base").tolist() == [row not in (1, 2, 4) for row in range(12)]
    assert table.present("text_clip_base").all()
    assert table.present("vec_clip_base").all()  # by its text and the mean image, so none comes first
    image, text = table.matrix("image_clip_base"), table.matrix("text_clip_base")
    stand_in = vectors.unit(image.sum(axis=0, keepdims=True))
    np.testing.assert_allclose(
        table.matrix("vec_clip_base")[1:2], vectors.fuse(stand_in, text[1:2], 0.5), atol=1e-6
    )
    assert str(table.products[1]["missing_reason"]).startswith("missing: there is no image `00001.jpg`")
    assert table.products[0]["missing_reason"] is None


def test_a_second_picture_steps_in_for_a_broken_first_one(shop: Path) -> None:
    (shop / "images/00000.jpg").write_text("broken")
    rewrite(shop, {"image": "00000.jpg|00005.jpg"})
    assert embed(shop)["missing"] == {}
    table = table_of(shop)
    image = table.matrix("image_clip_base")
    np.testing.assert_allclose(image[0], image[5], atol=1e-5)


def test_only_what_changed_is_encoded_again(shop: Path) -> None:
    embed(shop)
    old = table_of(shop).matrix("vec_clip_base")
    rewrite(shop, {"title": "a velvet bed"}, product=4)
    (shop / "images/00007.jpg").write_bytes((shop / "images/00002.jpg").read_bytes())
    assert embed(shop)["encoded"] == {"base": 2}
    new = table_of(shop).matrix("vec_clip_base")
    changed = [row for row in range(12) if not np.array_equal(old[row], new[row])]
    assert changed == [4, 7]


def test_a_new_column_value_is_stored_with_its_type_and_without_encoding(shop: Path) -> None:
    embed(shop)
    rewrite(shop, {"price": "$1,234.50"})
    assert embed(shop)["encoded"] == {"base": 0}
    table = pyarrow.parquet.read_table(table_of(shop).path, columns=["product_id", "price"])
    assert dict(zip(*table.to_pydict().values(), strict=True))["P00000"] == 1234.5
    assert table.schema.field("price").metadata[b"source"] == b"price"


def test_a_new_run_is_encoded_beside_the_base_vectors_that_stay(shop: Path) -> None:
    embed(shop)
    base = table_of(shop).matrix("vec_clip_base")
    add_run(shop, "first", seed=1)
    assert embed(shop)["encoded"] == {"base": 0, "finetuned": 12}
    table = table_of(shop)
    np.testing.assert_array_equal(table.matrix("vec_clip_base"), base)
    assert table.provenance.models["finetuned"].name == "first"
    assert not np.allclose(table.matrix("vec_clip_finetuned"), base)
    add_run(shop, "second", seed=2)
    assert embed(shop, "--run", "first")["up_to_date"]
    assert embed(shop)["models"]["finetuned"]["name"] == "second"


def test_half_precision_halves_the_vectors_and_keeps_their_direction(shop: Path) -> None:
    embed(shop)
    exact = table_of(shop).matrix("vec_clip_base")
    assert embed(shop, "--dtype", "fp16")["encoded"] == {"base": 0}
    assert table_of(shop).provenance.dtype == "fp16"
    np.testing.assert_allclose(table_of(shop).matrix("vec_clip_base"), exact, atol=1e-3)


def test_without_shards_the_command_that_makes_them_is_told(shop: Path) -> None:
    done = invoke("embed", "--config", shop / "furnclip.toml")
    assert done.exit_code == 2
    assert "furnclip prepare" in done.stderr


def test_a_model_of_larger_squares_than_the_shards_is_refused(shop: Path) -> None:
    toml = shop / "furnclip.toml"
    toml.write_text(toml.read_text().replace("[prepare]\n", "[prepare]\nimage_px = 24\n"))
    prepare(shop)
    for command in ("embed", "train", "eval"):
        done = invoke(command, "--config", toml)
        assert done.exit_code == 2, command
        assert "reads images of 32 px, and the shards hold squares of 24 px" in done.stderr
        assert "`prepare.image_px = 32`" in done.stderr


def test_no_image_is_opened_after_prepare(shop: Path) -> None:
    prepare(shop)
    shutil.rmtree(shop / "images")
    assert embed_shards(shop)["encoded"] == {"base": 12}


def test_the_vector_of_several_images_is_the_unit_mean_of_theirs(shop: Path, tiny_clip: Path) -> None:
    rewrite(shop, {"image": "00003.jpg|00007.jpg"}, product=3)
    rewrite(shop, {"image": ""}, product=5)
    embed(shop)
    table = pyarrow.parquet.read_table(table_of(shop).path).sort_by("product_id")
    views = table["views_clip_base"].to_pylist()
    assert [number for number, each in enumerate(views) if each] == [3]
    image = table_of(shop).matrix("image_clip_base")
    np.testing.assert_allclose(views[3][1], image[7], atol=1e-6)
    np.testing.assert_allclose(image[3], vectors.unit(np.mean([views[3]], axis=1))[0], atol=1e-6)
    assert embed(shop)["up_to_date"]
    rewrite(shop, {"title": "a velvet bed"}, product=0)
    assert embed(shop)["encoded"] == {"base": 1}
    again = pyarrow.parquet.read_table(table_of(shop).path).sort_by("product_id")
    assert again["views_clip_base"].to_pylist() == views


def test_eval_measures_the_vectors_that_are_served(shop: Path) -> None:
    embed(shop)
    said = invoke("eval", "--json", "--config", shop / "furnclip.toml")
    report = json.loads(said.stdout)
    assert report["served_vectors"] == {"base": report["gallery_size"]}
    (shop / "work/embeddings/master_vectors.parquet").unlink()
    said = invoke("eval", "--json", "--config", shop / "furnclip.toml")
    own = json.loads(said.stdout)
    assert own["served_vectors"] == {"base": 0}
    served, encoded = (each["models"]["base"]["text_to_image"]["mrr"] for each in (report, own))
    assert served == pytest.approx(encoded, abs=1e-4)


def test_two_processes_share_the_row_groups(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(prepare(shop), tmp_path / "alone")
    said = json.loads(run_ranks(2, ["embed", "--json"], shop, env={"FURNCLIP_EMBED__ROW_GROUP_ROWS": "3"}))
    assert said["row_groups_encoded"] == (said["row_groups"] + 1) // 2 < said["row_groups"]
    embed(tmp_path / "alone")
    alone, shared = table_of(tmp_path / "alone"), table_of(shop)
    assert alone.products == shared.products
    np.testing.assert_allclose(alone.matrix("vec_clip_base"), shared.matrix("vec_clip_base"), atol=1e-5)


# --- killed at any moment


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = 20 if FULL else 3
    monkeypatch.setenv("FURNCLIP_EMBED__ROW_GROUP_ROWS", "8")
    monkeypatch.setenv("FURNCLIP_EMBED__BATCH_SIZE", "4")
    model = build_tiny_clip(tmp_path / "clip", captions(), image_px=32, width=128, layers=6)
    shop = write_shop(tmp_path / "shop", products=240, model=model)
    shutil.copytree(prepare(shop), tmp_path / "calm")
    assert embed_in_child(tmp_path / "calm") == 0
    expected = parts_of(tmp_path / "calm")
    chance = random.Random(7)
    twice, early = [], 0
    while kills:
        for made in ("embeddings", "index.lance"):
            shutil.rmtree(shop / "work" / made, ignore_errors=True)
        here = min(kills, chance.randint(2, 4))
        killed = sum(kill_at_random(shop, chance) for _ in range(here))
        said = embed_shards(shop)
        kills, early = kills - here, early + here - killed
        # Each kill costs at most the row group that was being encoded.
        twice.append(max(0, said["row_groups_begun"] - said["row_groups"]))
        assert twice[-1] <= killed
        assert parts_of(shop) == expected
        assert not list((shop / "work/embeddings").glob("*.part"))
        assert not (shop / "work/embeddings/parts").exists()
    print(f"row groups encoded twice, by restart: {twice}; {early} runs ended before their kill")


def embed_in_child(shop: Path, *, kill_after_s: float | None = None, from_the_start: bool = False) -> int:
    """The exit code of `furnclip embed` in a process of its own.

    `kill_after_s`: SIGKILL so long after it has begun its first row group, or `from_the_start`.
    """
    journal = shop / "work/embeddings/journal-0.jsonl"
    size_before = journal.stat().st_size if journal.exists() else 0
    with Path(os.devnull).open("wb") as silent:
        process = Forked(["embed"], shop, os.environ, silent, silent)
    if kill_after_s is not None:
        while (
            not from_the_start
            and process.poll() is None
            and not (journal.exists() and journal.stat().st_size > size_before)
        ):
            time.sleep(0.005)
        with suppress(TimeoutError):
            process.wait(kill_after_s)
        process.send_signal(signal.SIGKILL)
    return process.wait()


def kill_at_random(shop: Path, chance: random.Random) -> bool:
    """Whether the process was still at work when it was killed; every third time it has hardly begun."""
    after_s, at_once = chance.uniform(0, 1), chance.random() < 1 / 3
    return embed_in_child(shop, kill_after_s=after_s, from_the_start=at_once) == -signal.SIGKILL


def test_a_second_process_is_turned_away(shop: Path, cli: Cli) -> None:
    from furnclip.journal import Journal

    with Journal(prepare(shop) / "work/embeddings/journal-0.jsonl"):
        outcome = cli("embed", cwd=shop)
    assert outcome.code == 1
    assert "is in use by another furnclip process" in outcome.stderr


# --- choosing


class _Words:
    """Stands in for a text tower: a phrase is the mean of its words' directions."""

    dimension = 16

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        return vectors.unit(np.stack([phrase_vector(text) for text in texts]))


def phrase_vector(text: str) -> np.ndarray:
    rows = [np.random.default_rng(sum(map(ord, word))).normal(size=16) for word in text.split()]
    return np.mean(rows, axis=0)


def test_the_better_side_gets_the_larger_share() -> None:
    products = [
        {"color": color, "object_type": kind}
        for color in ("red", "blue", "green", "grey")
        for kind in ("chair", "table", "bed")
        for _ in range(4)
    ]
    good = vectors.unit(np.stack([phrase_vector(" ".join(row.values())) for row in products]))
    noise = vectors.unit(np.random.default_rng(0).normal(size=good.shape))
    words: Any = _Words()
    weight, reason, _ = choose_image_weight(products, good, noise, words)
    assert weight > 0.5
    assert "mean average precision" in reason
    # A picture that says nothing also asks nothing, so requests decide.
    assert choose_image_weight(products, noise, good, words)[0] < 0.5


def test_without_queries_the_shares_are_even() -> None:
    words: Any = _Words()
    vectors_of_three = np.eye(3, dtype=np.float32)
    weight, reason, _ = choose_image_weight([{"color": ""}] * 3, vectors_of_three, vectors_of_three, words)
    assert weight == 0.5
    assert reason == "only 0 requests to choose with, 10 needed"


def test_bf16_is_checked_against_float32_on_a_sample(shop: Path, tiny_clip: Path) -> None:
    config = load_config(shop / "furnclip.toml", {"model": {"precision": "bf16"}})
    clip: Clip = load_clip(str(tiny_clip), config.model.model_copy(update={"precision": "fp32"}))
    picture = open_image(shop / "images/00000.jpg")
    choice, cosine = settle_precision(clip, config, [picture], ["a red chair"], earlier=None)
    assert choice.precision == "bf16"
    assert cosine is not None
    assert LEAST_COSINE < cosine < 1


def test_packed_towers_say_what_plain_ones_say(shop: Path, tiny_clip: Path) -> None:
    config = load_config(shop / "furnclip.toml").model
    plain, packed = load_clip(str(tiny_clip), config), load_clip(str(tiny_clip), config)
    if not can_pack(packed):
        pytest.skip("this processor or this build of torch has no bf16 in oneDNN")
    pack(packed, Choice("bf16", "asked for"))
    pictures = [open_image(path) for path in sorted((shop / "images").iterdir())]
    texts = captions()[:5]
    assert (plain.encode_images(pictures) * packed.encode_images(pictures)).sum(axis=1).min() > 0.999
    assert (plain.encode_texts(texts) * packed.encode_texts(texts)).sum(axis=1).min() > 0.999


# --- any CLIP of Hugging Face


def test_the_generator_takes_a_plain_model_and_processor(shop: Path, tiny_clip: Path) -> None:
    import torch
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(tiny_clip).eval()
    processor = CLIPProcessor.from_pretrained(tiny_clip)
    generator = EmbeddingGenerator(batch_size=4)
    paths = sorted((shop / "images").iterdir())[:6]
    images = generator.generate_image_embeddings(model, processor, paths)
    texts = generator.generate_text_embeddings(model, processor, ["a red chair", "a blue bed"])
    assert images.shape == (6, 32)
    assert images.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    inputs = processor(
        text=["a red chair", "a blue bed"],
        images=[open_image(path) for path in paths],
        return_tensors="pt",
        padding=True,
    )
    with torch.no_grad():
        output = model(**inputs)
    np.testing.assert_allclose(images, output.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(texts, output.text_embeds.numpy(), atol=1e-5)
    with pytest.raises(InputError, match="`texts` is one string"):
        generator.generate_text_embeddings(model, processor, "a red chair")
    with pytest.raises(BrokenImage):
        generator.generate_image_embeddings(model, processor, [shop / "products.csv"])


# --- others read the file too


def test_other_libraries_read_the_file(shop: Path) -> None:
    (shop / "images/00001.jpg").unlink()
    embed(shop)
    path = shop / "work/embeddings/master_vectors.parquet"
    expected = vectors.VectorTable(path).matrix("vec_clip_base")
    missing = vectors.VectorTable(path).products.index(table_of(shop).products[1])
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(path)
    np.testing.assert_array_equal(frame["vec_clip_base"][0], expected[0])
    assert frame["image_clip_base"][missing] is None
    lancedb = pytest.importorskip("lancedb")
    import pyarrow.parquet as pq

    table = lancedb.connect(shop / "lance").create_table("t", pq.read_table(path), on_bad_vectors="null")
    best = table.search(expected[2], vector_column_name="vec_clip_base").limit(1).to_list()
    assert best[0]["product_id"] == frame["product_id"][2]


def test_duckdb_reads_the_file(shop: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    embed(shop)
    path = shop / "work/embeddings/master_vectors.parquet"
    expected = table_of(shop).matrix("vec_clip_base")
    query = f"SELECT product_id, vec_clip_base FROM '{path}' ORDER BY product_id"
    rows = duckdb.sql(query).fetchall()
    assert len(rows) == 12
    np.testing.assert_array_equal(np.asarray(rows[5][1], dtype=np.float32), expected[5])


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_polars_reads_the_file(shop: Path, dtype: str) -> None:
    polars = pytest.importorskip("polars")
    embed(shop, "--dtype", dtype)
    frame = polars.read_parquet(shop / "work/embeddings/master_vectors.parquet")
    found = np.asarray(frame.sort("product_id")["vec_clip_base"][5].to_list(), dtype=np.float32)
    np.testing.assert_array_equal(found, table_of(shop).matrix("vec_clip_base")[5])
