"""Models in open_clip's format: the vectors of open_clip itself, through furnclip's own door."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from furnclip.config import ModelConfig
from furnclip.errors import ModelError
from furnclip.model.loading import load_float32
from furnclip.model.towers import pooled_images, pooled_texts, project
from tests.open_clip_models import GOLDEN, LAYERS, MODELS, draw, inputs, shallow, siglip, vit

BIN = "open_clip_pytorch_model.bin"
ENTRIES: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(cache))
    return cache


def write_model(
    folder: Path, config: dict[str, Any], tokenizer: Path, *, name: str = "open_clip_model.safetensors"
) -> Path:
    """A folder as open_clip's own `push_to_hf_hub` leaves it, with drawn weights."""
    folder.mkdir()
    known = next(key for key in MODELS if shallow(MODELS[key], LAYERS) == config)
    weights = draw({key: tuple(shape) for key, shape in ENTRIES[known]["shapes"].items()})
    if name.endswith(".safetensors"):
        save_file(weights, folder / name)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, folder / name)
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "interpolation": "bicubic"}
    described = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(described), encoding="utf-8")
    write_tokenizer(folder, tokenizer, end=config["text_cfg"]["vocab_size"] - 1)
    return folder


def write_tokenizer(folder: Path, tokenizer: Path, *, end: int) -> None:
    """The tokenizer with its two special tokens at the end of the vocabulary, where OpenAI's has them."""
    shutil.copy(tokenizer / "tokenizer_config.json", folder)
    tokens = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    new = {"<|startoftext|>": end - 1, "<|endoftext|>": end}
    tokens["model"]["vocab"].update(new)
    for token in tokens["added_tokens"]:
        token["id"] = new[token["content"]]
    if tokens["padding"]:
        tokens["padding"]["pad_id"] = end
    tokens["post_processor"].update(sep=["<|endoftext|>", end], cls=["<|startoftext|>", end - 1])
    (folder / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")


@pytest.fixture(scope="module")
def drawn(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B-32; drawing its weights takes longer than any test."""
    config = shallow(MODELS["ViT-B-32"], LAYERS)
    return write_model(tmp_path_factory.mktemp("drawn") / "model", config, tiny_clip)


@pytest.fixture
def vit_b32(drawn: Path, tmp_path: Path) -> Path:
    """A folder of its own; the files are linked, so a test replaces them and does not write to them."""
    return Path(shutil.copytree(drawn, tmp_path / "model", copy_function=os.link))


def replace(path: Path, value: Any) -> None:
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_those_of_open_clip(name: str, tiny_clip: Path, tmp_path: Path) -> None:
    config = shallow(MODELS[name], LAYERS)
    folder = write_model(tmp_path / "model", config, tiny_clip)
    clip = load_float32(str(folder), ModelConfig())
    text = config["text_cfg"]
    pixels, ids = inputs(config["vision_cfg"]["image_size"], text["context_length"], text["vocab_size"])
    with torch.inference_mode():
        images = project(clip.module, clip.family, "vision", pooled_images(clip.module, clip.family, pixels))
        texts = project(clip.module, clip.family, "text", pooled_texts(clip.module, clip.family, ids))
    for ours, theirs in ((images, ENTRIES[name]["images"]), (texts, ENTRIES[name]["texts"])):
        wanted = np.asarray(theirs)  # (3, D)
        assert ((ours.numpy() * wanted).sum(axis=1) >= 0.9999).all()
        assert (wanted @ wanted.T)[0, 1] < 0.99  # the three are not one vector
    assert clip.preprocessing.mean == (0.5, 0.5, 0.5)
    assert clip.preprocessing.std == (0.25, 0.5, 0.5)


def test_a_command_takes_such_a_folder_and_converts_it_once(
    tiny_clip: Path, tmp_path: Path, own_cache: Path
) -> None:
    folder = write_model(tmp_path / "model", shallow(MODELS["ViT-B-32"], LAYERS), tiny_clip, name=BIN)
    first = load_float32(str(folder), ModelConfig())
    made = list((own_cache / "furnclip").iterdir())
    again = load_float32(str(folder), ModelConfig())
    assert list((own_cache / "furnclip").iterdir()) == made
    assert first.fingerprint == again.fingerprint
    np.testing.assert_array_equal(first.encode_texts(["a red chair"]), again.encode_texts(["a red chair"]))


def test_a_config_that_only_the_repositorys_code_can_read_is_no_obstacle(vit_b32: Path) -> None:
    own_code = {"model_type": "shop_clip", "auto_map": {"AutoConfig": "shop.ShopConfig"}}
    replace(vit_b32 / "config.json", own_code)
    assert load_float32(str(vit_b32), ModelConfig()).dimension == 512


SIGLIP_TIMM = "vit_base_patch16_siglip_224"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (vit(32) | {"vision_cfg": {**vit(32)["vision_cfg"], "layers": [3, 4, 6, 3]}}, "ResNet"),
        (vit(32) | {"text_cfg": {"hf_model_name": "xlm-roberta-base"}}, "hf_model_name"),
        (vit(32) | {"vision_cfg": {**vit(32)["vision_cfg"], "attentional_pool": True}}, "attentional_pool"),
        (vit(32) | {"vision_cfg": {"timm_model_name": "fastvit_mci1", "image_size": 256}}, "fastvit_mci1"),
        (siglip("vit_base_patch16_siglip_gap_224", 224, 32_000), "siglip_gap"),
        (siglip(SIGLIP_TIMM, 224, 32_000, no_causal_mask=False), "no_causal_mask"),
        (siglip(SIGLIP_TIMM, 224, 32_000, pool_type="argmax"), "pool_type"),
        ({"embed_dim": 512, "vision_cfg": vit(32)["vision_cfg"]}, "text_cfg"),
        (vit(14), "do not fit"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(
    config: dict[str, Any], said: str, vit_b32: Path
) -> None:
    replace(vit_b32 / "open_clip_config.json", {"model_cfg": config})
    with pytest.raises(ModelError, match=said) as caught:
        load_float32(str(vit_b32), ModelConfig())
    assert caught.value.hint


def test_without_a_tokenizer_the_hint_says_where_it_comes_from(vit_b32: Path) -> None:
    for file in vit_b32.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="no tokenizer") as caught:
        load_float32(str(vit_b32), ModelConfig())
    assert "openai/clip-vit-base-patch32" in caught.value.hint
