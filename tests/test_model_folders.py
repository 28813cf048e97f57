"""Model folders whose parts do not fit together: refused with the part's name, or honored to the digit."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pexpect
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from furnclip.config import ModelConfig
from furnclip.errors import FurnclipError
from furnclip.model.loading import load_clip
from tests.conftest import Cli
from tests.siglip import build_tiny_siglip
from tests.test_bad_input import assert_told_plainly

CPU = ModelConfig(device="cpu", precision="fp32")
Spoil = Callable[[Path], None]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_siglip(tmp_path_factory.mktemp("model") / "siglip")


@pytest.fixture
def folder(tiny_clip: Path, tmp_path: Path) -> Path:
    """A copy of the tiny CLIP."""
    return Path(shutil.copytree(tiny_clip, tmp_path / "model"))


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Spoil:
    """Rewrite the weights file."""

    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return spoil


def prefixed(prefix: str) -> Spoil:
    return weights(lambda found: {prefix + name: value for name, value in found.items()})


def without(name: str) -> Spoil:
    return weights(lambda found: {key: value for key, value in found.items() if name not in key})


def with_value(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    return weights(lambda found: {**found, name: change(found[name]).contiguous()})


def added(name: str) -> Spoil:
    return weights(lambda found: {**found, name: torch.zeros(4)})


def setting(file: str, **values: Any) -> Spoil:
    """Change values of a JSON file; None removes one."""

    def spoil(folder: Path) -> None:
        path = folder / file
        content = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return spoil


def pixels(**values: Any) -> Spoil:
    return setting("preprocessor_config.json", **values)


def tokens(**values: Any) -> Spoil:
    return setting("tokenizer_config.json", **values)


def text_tower(**values: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        content["text_config"].update(values)
        path.write_text(json.dumps(content))

    return spoil


def file(name: str, content: object) -> Spoil:
    return lambda folder: (folder / name).write_text(json.dumps(content)) and None


def removed(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def fifo(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def index(target: object) -> Spoil:
    def spoil(folder: Path) -> None:
        names = load_file(folder / "model.safetensors")
        content = {"metadata": {}, "weight_map": dict.fromkeys(names, target)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return spoil


WEIGHTS = {
    "module": (prefixed("module."), "begins with `module.`"),
    "model": (prefixed("model."), "begins with `model.`"),
    "compiled": (prefixed("_orig_mod."), "begins with `_orig_mod.`"),
    "lightning": (prefixed("net.clip."), "begins with `net.clip.`"),
    "no projection": (without("visual_projection"), "`visual_projection.weight` is missing"),
    "no layer": (without("text_model.encoder.layers.1."), "are missing from the file"),
    "no temperature": (without("logit_scale"), "`logit_scale` is missing"),
    "adapter kept apart": (added("text_model.encoder.layers.0.mlp.fc1.lora_A.weight"), "no place for them"),
    "another head": (added("classifier.weight"), "`classifier.weight` is in the file"),
    "narrow": (with_value("text_projection.weight", lambda v: v[:8]), "the shape of `text_projection"),
    "gray": (with_value("vision_model.embeddings.patch_embedding.weight", lambda v: v[:, :1]), "the shape"),
    "not a number": (with_value("text_projection.weight", lambda v: v * torch.nan), "is not finite"),
    "infinite": (with_value("logit_scale", lambda value: value + torch.inf), "`logit_scale` is not finite"),
}
PREPROCESSING = {
    "larger": (pixels(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}), "`size` is"),
    "zoomed": (pixels(size={"shortest_edge": 40}), "`size` is"),
    "cropped": (pixels(crop_size={"height": 16, "width": 16}), "`crop_size` is"),
    "flat": (pixels(size={"height": 32, "width": 16}), "`size` is"),
    "size as text": (pixels(size="32"), "`size"),
    "two means": (pixels(image_mean=[0.5, 0.5]), "`image_mean`"),
    "mean as text": (pixels(image_mean=["a", "b", "c"]), "`image_mean.0`"),
    "zero deviation": (pixels(image_std=[0.2, 0, 0.2]), "`image_std.1`"),
    "no resizing": (pixels(do_resize=False), "`do_resize`"),
    "nearest": (pixels(resample=0), "`resample` is 0 (nearest)"),
    "resample 9": (pixels(resample=9), "`resample`"),
    "zero scale": (pixels(rescale_factor=0), "`rescale_factor`"),
    "BGR": (pixels(do_flip_channel_order=True), "`do_flip_channel_order` is not supported"),
    "padded": (pixels(do_pad=True), "`do_pad` is not supported"),
}
TOKENIZER = {
    "left": (tokens(padding_side="left"), "pads on the left"),
    "sideways": (tokens(padding_side="top"), "cannot be loaded"),
    "two tokens": (tokens(model_max_length=2), "`model_max_length` = 2"),
    "length as text": (tokens(model_max_length="77"), "cannot be loaded"),
    "no vocabulary": (removed("tokenizer.json"), "has no vocabulary"),
    "another end": (text_tower(eos_token_id=7), "does not end texts with the token 7"),
    "few rows": (text_tower(vocab_size=20), "the shape of"),
}
FILES = {
    "no weights": (removed("model.safetensors"), "has no weights"),
    "adapter": (file("adapter_config.json", {"peft_type": "LORA"}), "holds an adapter, not a whole model"),
    "config is a list": (file("config.json", []), "cannot be loaded"),
    "config without towers": (setting("config.json", vision_config="none"), "cannot be loaded"),
    "preprocessing is a list": (file("preprocessor_config.json", [1]), "cannot be loaded"),
    "index leads out": (index("../other.safetensors"), "is not in its folder"),
    "index is absolute": (index("/etc/hostname"), "is not in its folder"),
    "index of nothing": (index("part-2.safetensors"), "is not there"),
    "index of numbers": (index(3), "is damaged"),
    "config is a FIFO": (fifo("config.json"), "is not a regular file"),
    "weights are a FIFO": (fifo("model.safetensors"), "is not a regular file"),
    "tokenizer is a FIFO": (fifo("tokenizer.json"), "is not a regular file"),
    "preprocessing is a FIFO": (fifo("preprocessor_config.json"), "is not a regular file"),
}
ALL = {**WEIGHTS, **PREPROCESSING, **TOKENIZER, **FILES}


@pytest.mark.parametrize("name", ALL)
def test_what_does_not_fit_is_refused_by_name(folder: Path, name: str) -> None:
    spoil, words = ALL[name]
    spoil(folder)
    with pytest.raises(FurnclipError) as caught:
        load_clip(str(folder), CPU)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (prefixed("module."), "begins with `module.`"),
        (without("text_model.head"), "are missing"),
        (without("logit_bias"), "`logit_bias` is missing"),
        (added("vision_model.head.extra"), "`vision_model.head.extra` is in the file"),
        (pixels(size={"height": 64, "width": 64}), "`size` is"),
        (tokens(model_max_length=1), "`model_max_length` = 1"),
        (removed("tokenizer.json"), "has no vocabulary"),
    ],
)
def test_a_siglip_folder_is_held_to_the_same(siglip: Path, tmp_path: Path, spoil: Spoil, words: str) -> None:
    folder = Path(shutil.copytree(siglip, tmp_path / "model"))
    spoil(folder)
    with pytest.raises(FurnclipError) as caught:
        load_clip(str(folder), CPU)
    assert words in caught.value.message


@pytest.mark.parametrize(
    "spoil",
    [
        pixels(rescale_factor=1 / 127.5, image_mean=[1.0, 1.0, 1.0], image_std=[0.9, 1.0, 1.1]),
        pixels(do_rescale=False, image_mean=[120.0, 110.0, 100.0], image_std=[60.0, 61.0, 62.0]),
        pixels(do_normalize=False),
        pixels(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]),
        pixels(size=32, crop_size=32),
        pixels(do_center_crop=False, size={"height": 32, "width": 32}),
        pixels(resample=2),
        pixels(crop_size=None, do_center_crop=False),
    ],
)
def test_preprocessing_values_are_honored_as_hugging_face_does(folder: Path, spoil: Spoil) -> None:
    spoil(folder)
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in (32, 75)]
    theirs = CLIPImageProcessorPil.from_pretrained(folder)(images=images, return_tensors="pt")
    ours = load_clip(str(folder), CPU).preprocessing.pixels(images)
    assert torch.allclose(ours, theirs["pixel_values"], atol=1e-5)


@pytest.mark.parametrize("length", [5, 12, 77, 10**30])
def test_a_tokenizer_that_cuts_earlier_is_honored(folder: Path, length: int) -> None:
    tokens(model_max_length=length)(folder)
    clip = load_clip(str(folder), CPU)
    assert clip.tokenize(["a red oak chair " * 40]).shape == (1, min(length, 77))


def test_old_buffers_in_the_file_do_no_harm(folder: Path, tiny_clip: Path) -> None:
    ids = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    weights(lambda found: {**found, **ids})(folder)
    assert load_clip(str(folder), CPU).fingerprint == load_clip(str(tiny_clip), CPU).fingerprint


# For an unknown kind of model transformers asks whether to run the folder's code, and `y` runs it.
LOAD = """
import sys
from furnclip.config import ModelConfig
from furnclip.errors import FurnclipError
from furnclip.model.loading import load_clip
for folder in sys.argv[1:]:
    try:
        load_clip(folder, ModelConfig(device="cpu"))
        print("loaded", folder)
    except FurnclipError as error:
        print("refused", folder, error.message)
"""


def with_code(folder: Path, kind: str, ran: Path) -> Path:
    """A model folder with code that writes `ran` when it is run."""
    (folder / "stranger.py").write_text(f"open({str(ran)!r}, 'w')\n")
    code = {
        "AutoConfig": "stranger.Config",
        "AutoModel": "stranger.Model",
        "AutoTokenizer": ["stranger.Tokenizer", None],
        "AutoImageProcessor": "stranger.Pixels",
        "AutoProcessor": "stranger.Processor",
    }
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        setting(name, auto_map=code)(folder)
    setting("config.json", model_type=kind)(folder)
    return folder


def said_when_all_is_allowed(*arguments: object, cwd: Path) -> tuple[str, int | None]:
    """What a Python process prints, and its exit code, where the person at the terminal says yes to all."""
    child = pexpect.spawn(
        sys.executable, list(map(str, arguments)), cwd=str(cwd), encoding="utf-8", timeout=300
    )
    for _ in range(8):
        child.sendline("y")
    said = child.read()
    child.close()
    assert "trust_remote_code" not in said
    assert "[y/N]" not in said
    return said, child.exitstatus


def test_code_in_a_model_folder_is_neither_run_nor_asked_about(tiny_clip: Path, tmp_path: Path) -> None:
    ran, kinds = tmp_path / "ran", ("clip", "siglip", "stranger", "resnet")
    folders = [with_code(Path(shutil.copytree(tiny_clip, tmp_path / kind)), kind, ran).name for kind in kinds]
    said, _ = said_when_all_is_allowed("-c", LOAD, *folders, cwd=tmp_path)
    assert [f"{'loaded' if kind == 'clip' else 'refused'} {kind}" in said for kind in kinds] == [True] * 4, (
        said
    )
    assert not ran.exists()


def test_the_command_refuses_noise_and_code(cli: Cli, shop: Path, folder: Path, tmp_path: Path) -> None:
    cli("prepare", cwd=shop).ok()
    noise = Path(shutil.copytree(folder, tmp_path / "noise"))
    prefixed("module.")(noise)
    outcome = cli("embed", "--model", str(noise), cwd=shop)
    assert outcome.code == 1
    assert "every name begins with `module.`" in outcome.stderr
    hollow = Path(shutil.copytree(folder, shop / "hollow"))
    (hollow / "model.safetensors").unlink()
    assert_told_plainly(cli("train", "--model", "hollow", cwd=shop), code=1, words=("hollow", "no weights"))
    with_code(folder, "stranger", tmp_path / "ran")
    _, code = said_when_all_is_allowed("-m", "furnclip", "embed", "--model", folder, cwd=shop)
    assert code == 1
    assert not (tmp_path / "ran").exists()
    assert not (shop / "work" / "embeddings" / "master_vectors.parquet").exists()
