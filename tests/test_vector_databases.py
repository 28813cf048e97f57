"""`examples/vector_databases.md` and `examples/onnx_search.py`, run as far as they go without a server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from furnclip import Searcher, vectors
from furnclip.cli.commands import app
from furnclip.config import load_config
from furnclip.images import load_square
from tests.drawn_shop import write_shop
from tests.pages import ROOT, blocks

PAGE = ROOT / "examples" / "vector_databases.md"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    shop = write_shop(tmp_path_factory.mktemp("databases") / "shop", products=12, model=tiny_clip)
    for command in ("prepare", "embed"):
        done = CliRunner().invoke(app, [command, "--config", str(shop / "furnclip.toml")])
        assert done.exit_code == 0, done.output
    return shop


def typed(word: str, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the Python block of the page that has `word` in it."""
    monkeypatch.chdir(shop)
    (block,) = [block for block in blocks(PAGE) if block.language == "python" and word in block.text]
    exec(compile(block.text, PAGE.name, "exec"), {})


def best(shop: Path) -> list[str]:
    """The products that furnclip itself finds nearest."""
    searcher = Searcher(load_config(shop / "furnclip.toml"))
    return [hit.product_id for hit in searcher.search("walnut sideboard", k=5, mode="vector")]


def table(shop: Path) -> vectors.VectorTable:
    return vectors.VectorTable(shop / "work" / "embeddings" / "master_vectors.parquet")


@pytest.mark.parametrize("library", ["qdrant_client", "faiss"])
def test_a_library_finds_what_furnclip_finds(
    library: str, embedded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss") if library == "faiss" else pytest.importorskip("qdrant_client")
    capsys.readouterr()
    typed(library, embedded, monkeypatch)
    assert re.findall(r"'(\w+)'", capsys.readouterr().out) == best(embedded)


def test_copy_lines_hold_every_product(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed("furniture.tsv", embedded, monkeypatch)
    lines = [line.split("\t") for line in (embedded / "furniture.tsv").read_text("utf-8").splitlines()]
    assert [line[0] for line in lines] == [row["product_id"] for row in table(embedded).products]
    stored = np.array([json.loads(line[2]) for line in lines])
    np.testing.assert_allclose(stored, table(embedded).matrix("vec_clip_base"), atol=1e-6)


def test_bulk_lines_hold_every_product(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed("ndjson", embedded, monkeypatch)
    lines = [json.loads(line) for line in (embedded / "furniture-0000.ndjson").read_text().splitlines()]
    products = table(embedded).products
    assert [line["index"]["_id"] for line in lines[::2]] == [row["product_id"] for row in products]
    assert [line["title"] for line in lines[1::2]] == [row["title"] for row in products]


def test_exported_towers_work_alone(embedded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    flags = ["--config", str(embedded / "furnclip.toml")]
    done = CliRunner().invoke(app, ["export", "--onnx", str(folder), "--int8", "--json", *flags])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert min(said["cosines"]["text.onnx"], said["cosines"]["vision.onnx"]) >= 0.9999
    assert {"text_int8.onnx", "vision_int8.onnx"} <= said["cosines"].keys()
    again = CliRunner().invoke(app, ["export", "--onnx", str(folder), "--json", *flags])
    assert json.loads(again.stdout)["up_to_date"]

    clip = Searcher(load_config(embedded / "furnclip.toml")).clip
    images = sorted((embedded / "images").rglob("*.jpg"))[:4]
    squares = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, square in zip(images, squares, strict=True):
        load_square(image, clip.image_px).save(square)
    command = [sys.executable, str(ROOT / "examples" / "onnx_search.py"), str(folder), "Red  chair"]
    done_alone = subprocess.run(
        [*command, *map(str, squares)], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    scores = dict(line.split(" ")[::-1] for line in done_alone.stdout.splitlines())
    wanted = clip.encode_images([load_square(image, clip.image_px) for image in images])
    for square, score in zip(squares, wanted @ clip.encode_texts(["Red  chair"])[0], strict=True):
        assert abs(float(scores[str(square)]) - score) < 0.02


def test_an_export_replaces_nothing_else(embedded: Path) -> None:
    for folder in (embedded, embedded / "work" / "index.lance", embedded / "products.csv"):
        flags = ["--config", str(embedded / "furnclip.toml")]
        done = CliRunner().invoke(app, ["export", "--onnx", str(folder), *flags])
        assert done.exit_code == 1
        assert "is no export" in done.output
    assert (embedded / "products.csv").is_file()
