"""Searching without torch: the ONNX towers beside the table, what they give, and when they are refused."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from examples.make_tiny_clip import build_tiny_clip
from furnclip import Searcher
from furnclip.config import Config, load_config
from furnclip.errors import ModelMismatchError
from furnclip.journal import read_json
from furnclip.model.export import write_onnx
from furnclip.model.light import LightEncoder
from furnclip.model.loading import load_clip
from tests.conftest import invoke, run_cli
from tests.drawn_shop import captions, write_shop
from tests.pages import ROOT
from tests.siglip import build_tiny_siglip

FULL = os.environ.get("FURNCLIP_FULL") == "1"
TEXTS = (
    *("a red chair", "", "Walnut  Sideboard,\u200b mid-century!", "<|endoftext|> sofa", "ölfarbe 桌子 🪑"),
    *("oak " * 60, "a", "grey velvet armchair with brass legs"),
)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A shop whose search table is made."""
    return embed(write_shop(tmp_path_factory.mktemp("light") / "shop", products=40, model=tiny_clip))


def embed(shop: Path) -> Path:
    for command in ("prepare", "embed"):
        done = invoke(command, "--config", shop / "furnclip.toml")
        assert done.exit_code == 0, done.output
    return shop


def settings(shop: Path) -> Config:
    return load_config(shop / "furnclip.toml")


def the_model(shop: Path) -> Path:
    """The one folder of towers beside the table."""
    (folder,) = (shop / "work" / "index.model").iterdir()
    return folder


def python(code: str, shop: Path) -> Any:
    """What a fresh process in the shop prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=shop, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def model_of(kind: str, folder: Path) -> Path:
    if kind == "siglip":
        return build_tiny_siglip(folder)
    build_tiny_clip(folder, captions(), image_px=32, width=32, layers=2)
    if kind != "clip":
        path = folder / "config.json"
        config = json.loads(path.read_text())
        if kind == "old end of text":
            config["text_config"]["eos_token_id"] = 2
        else:
            config["text_config"]["hidden_act"] = config["vision_config"]["hidden_act"] = kind
        path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["clip", "old end of text", "gelu", "gelu_pytorch_tanh", "siglip"])
def test_the_towers_give_what_torch_gives(kind: str, tmp_path: Path) -> None:
    config = load_config(None, {"model": {"device": "cpu", "precision": "fp32"}})
    clip = load_clip(str(model_of(kind, tmp_path / "model")), config.model)
    encoder = write_onnx(clip, tmp_path / "onnx", config, captions()[:8], int8=("text", "vision"))
    colors = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    images = [*map(Image.fromarray, colors), Image.new("L", (10, 90), 200)]
    assert (encoder.token_ids(TEXTS) == clip.tokenize(TEXTS).numpy()).all()
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), clip.encode_texts(TEXTS), atol=2e-6)
    np.testing.assert_allclose(encoder.encode_images(images), clip.encode_images(images), atol=2e-6)
    assert encoder.encode_texts([]).shape == (0, clip.dimension)
    encoder.text = "text_int8.onnx"
    assert (encoder.encode_texts(TEXTS) * clip.encode_texts(TEXTS)).sum(axis=1).min() > 0.99
    assert encoder.about.cosines.keys() == {"text.onnx", "vision.onnx", "text_int8.onnx", "vision_int8.onnx"}


def test_a_search_loads_no_torch(embedded: Path) -> None:
    code = """
import json, sys
from furnclip import Searcher
searcher = Searcher()
hits = searcher.search("red chair"), searcher.search(image="images/0.jpg"), searcher.search_many(["oak"])[0]
heavy = [name for name in ("torch", "transformers", "peft", "onnx", "sqlglot") if name in sys.modules]
print(json.dumps([heavy, type(searcher.clip).__name__, [len(found) for found in hits]]))
"""
    image = next((embedded / "images").rglob("*.jpg")).relative_to(embedded)
    heavy, encoder, counts = python(code.replace("images/0.jpg", image.as_posix()), embedded)
    assert heavy == []
    assert encoder == "LightEncoder"
    assert min(counts) > 0


def test_hits_are_those_of_torch(embedded: Path) -> None:
    light = Searcher(settings(embedded))
    assert isinstance(light.clip, LightEncoder)
    light.clip.text = "text.onnx"
    by_torch = Searcher(settings(embedded))
    by_torch.clip = load_clip(light.clip.name, by_torch.config.model)
    texts = captions()[: 100 if FULL else 30]
    queries = [f"{color} {text}" for color in ("red", "dark", "") for text in texts]
    for mode in ("vector", "hybrid"):
        found = [searcher.search_many(queries, k=10, mode=mode) for searcher in (light, by_torch)]
        ours, theirs = ([[hit.product_id for hit in hits] for hits in side] for side in found)
        assert ours == theirs


def test_towers_are_written_once(embedded: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in the_model(embedded).iterdir()}
    embed(embedded)
    assert {path: path.stat().st_mtime_ns for path in the_model(embedded).iterdir()} == before
    (the_model(embedded) / "vision.onnx.data").write_bytes(b"")
    embed(embedded)
    assert read_json(the_model(embedded) / "manifest.json", dict[str, Any], what="", hint="")["files"]
    assert (the_model(embedded) / "vision.onnx.data").stat().st_size > 0


def test_another_model_under_the_same_name_is_refused(tmp_path: Path) -> None:
    model = build_tiny_clip(tmp_path / "model", captions(), seed=0, image_px=32, width=32, layers=2)
    shop = embed(write_shop(tmp_path / "shop", products=12, model=model))
    assert isinstance(Searcher(settings(shop)).clip, LightEncoder)
    build_tiny_clip(model, captions(), seed=1, image_px=32, width=32, layers=2)
    with pytest.raises(ModelMismatchError, match="not by the model asked for"):
        Searcher(settings(shop))
    shutil.rmtree(model)  # the table and the towers are all that a machine which only searches has
    assert Searcher(settings(shop)).search("chair")


def test_without_the_towers_torch_is_taken(embedded: Path, tmp_path: Path) -> None:
    shop = Path(shutil.copytree(embedded, tmp_path / "shop"))
    shutil.rmtree(shop / "work" / "index.model")
    assert not isinstance(Searcher(settings(shop)).clip, LightEncoder)
    said = run_cli("search", "chair", cwd=shop, env={"PYTHONPATH": str(without_torch(tmp_path))})
    assert said.code == 1
    assert "there is no model in" in said.stderr
    assert "run `furnclip embed` where torch is installed" in said.stderr


def test_a_damaged_tower_is_told(embedded: Path, tmp_path: Path) -> None:
    shop = Path(shutil.copytree(embedded, tmp_path / "shop"))
    for name in ("text.onnx", "text_int8.onnx"):
        path = the_model(shop) / name
        if path.exists():
            path.write_bytes(b"x" * path.stat().st_size)
    said = run_cli("search", "chair", cwd=shop)
    assert said.code == 1
    assert "cannot be used" in said.stderr
    assert "Traceback" not in said.stderr


def without_torch(folder: Path) -> Path:
    """A folder for PYTHONPATH that hides what `examples/serve/requirements.py` leaves out."""
    left_out = runpy.run_path(str(ROOT / "examples" / "serve" / "requirements.py"))["LEFT_OUT"]
    modules = [name.replace("-", "_") for name in left_out]
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {modules}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    return hidden


def test_search_works_where_torch_is_not_installed(embedded: Path, tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(without_torch(tmp_path))}
    found = run_cli("search", "red chair", "--json", cwd=embedded, env=env).ok().json
    assert found["hits"]
    image = next((embedded / "images").rglob("*.jpg"))
    assert run_cli("search", "--image", image, "--json", cwd=embedded, env=env).ok().json["hits"]
    for words in (["embed"], ["eval"], ["export", "--onnx", "x"], ["prepare"]):
        said = run_cli(*words, cwd=embedded, env=env)
        assert "Traceback" not in said.stderr, words
        assert said.code == 0 or "not installed" in said.stderr, words


IMPORTED = """
import json, sys, furnclip.cli.imports as imports
{}
with imports.quick_imports():
    import lancedb
before = set(sys.modules)
"""
TRIED = """
table = lancedb.connect("tables").create_table("{}", [{{"a": 1}}, {{"a": 2}}])
import lance_namespace, overrides, pandas
names = [name for name in sys.modules if isinstance(sys.modules[name], imports._StandIn)]
whole = all(hasattr(module, "__file__") for module in (lance_namespace, overrides, pandas))
print(json.dumps([table.count_rows("a > 1"), names, whole, "pandas" in before]))
"""


@pytest.mark.parametrize(
    "before", ["", "imports._StandIn.__getattr__ = None", "imports._LEFT_OUT += ('pydantic',)"]
)
def test_lancedb_is_whole_after_a_quick_import(before: str, tmp_path: Path) -> None:
    """Also where a later version of it cannot be imported with stand-ins: then it is imported as usual."""
    assert python(IMPORTED.format(before) + TRIED.format("t"), tmp_path) == [1, [], True, False]


def test_towers_lie_in_the_bucket_beside_the_table(
    tmp_path: Path, tiny_clip: Path, server: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = write_shop(tmp_path / "shop", products=12, model=tiny_clip)
    monkeypatch.setenv("FURNCLIP_STORAGE__ENDPOINT_URL", server)
    monkeypatch.setenv("FURNCLIP_SEARCH__INDEX", f"s3://{bucket}/shop/index.lance")
    for command in ("prepare", "embed", "embed"):
        done = invoke(command, "--config", shop / "furnclip.toml")
        assert done.exit_code == 0, done.output
    config = load_config(shop / "furnclip.toml")
    assert not (shop / "work" / "index.model").exists()
    shutil.rmtree(config.paths.cache / "light")  # another machine
    searcher = Searcher(config)
    assert isinstance(searcher.clip, LightEncoder)
    assert searcher.search("red chair", mode="vector")
    (towers,) = (config.paths.cache / "light").iterdir()
    assert (towers / "vision.onnx.data").is_file()
