"""`furnclip.model`: loading by name, one answer with Hugging Face's own forward pass, adapters."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from PIL import Image
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from examples.make_tiny_clip import build_tiny_clip
from furnclip.config import ModelConfig, TrainingConfig
from furnclip.errors import ConfigError, FurnclipError, ModelError
from furnclip.journal import write_json
from furnclip.model.adapters import LeanLora, add_lora, shifted, weight_changes
from furnclip.model.clip import Clip
from furnclip.model.loading import load_clip, load_float32
from furnclip.model.precision import can_pack, choose_precision
from furnclip.model.towers import Grid, pooled_images, pooled_texts
from furnclip.runs import latest_run

CPU = ModelConfig(device="cpu", precision="fp32")
CAPTIONS = ["a red oak chair", "Ørsted lamp, 日本製 & more", "", "a photo of a green velvet sofa " * 12]


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> Clip:
    return load_clip(str(tiny_clip), CPU)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in (32, 224, 75)
    ]


def test_same_arguments_give_the_same_folder_byte_for_byte(tmp_path: Path) -> None:
    folders = [
        build_tiny_clip(tmp_path / name, CAPTIONS, seed=3, image_px=32, width=32) for name in ("a", "b")
    ]
    names = sorted(path.name for path in folders[0].iterdir())
    assert [(folders[0] / name).read_bytes() for name in names] == [
        (folders[1] / name).read_bytes() for name in names
    ]
    other = build_tiny_clip(tmp_path / "c", CAPTIONS, seed=4, image_px=32, width=32)
    assert load_clip(str(other), CPU).fingerprint != load_clip(str(folders[0]), CPU).fingerprint


def test_the_tokenizer_knows_every_text(clip: Clip) -> None:
    for text in ("zebra", "日本 Ørsted", "€ 5,- ½", "\x00\x7f"):
        ids = clip.tokenize([text])[0].tolist()
        assert ids[0] == clip.tokenizer.bos_token_id
        assert ids[1:].count(clip.tokenizer.eos_token_id) == 1, text  # none stands for an unknown letter
    assert clip.tokenizer.decode(clip.tokenize(["red oak"])[0], skip_special_tokens=True) == "red oak"


def test_pixels_are_those_of_the_hugging_face_processor(
    clip: Clip, tiny_clip: Path, pictures: list[Image.Image]
) -> None:
    processor = CLIPImageProcessorPil.from_pretrained(tiny_clip)
    theirs = processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert torch.allclose(clip.preprocessing.pixels(pictures), theirs, atol=1e-6)


def test_vectors_are_those_of_the_plain_model(
    clip: Clip, tiny_clip: Path, pictures: list[Image.Image]
) -> None:
    plain = CLIPModel.from_pretrained(tiny_clip).eval()
    tokens = AutoTokenizer.from_pretrained(tiny_clip)(
        CAPTIONS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        images = plain.get_image_features(clip.preprocessing.pixels(pictures)).pooler_output
        texts = plain.get_text_features(**tokens).pooler_output
    for ours, theirs in ((clip.encode_images(pictures), images), (clip.encode_texts(CAPTIONS), texts)):
        assert ours.dtype == np.float32
        assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
        assert np.allclose(ours, torch.nn.functional.normalize(theirs).numpy(), atol=1e-6)


@given(
    ends=st.lists(st.integers(0, 40), min_size=1, max_size=24),
    spare=st.integers(0, 30),
)
def test_rows_are_the_real_ones_then_idle_ones_up_to_a_round_number(ends: list[int], spare: int) -> None:
    length = max(ends) + 1 + spare
    places = Grid.until(torch.tensor(ends), length).places
    assert places is not None
    real = [row * length + place for row, end in enumerate(ends) for place in range(end + 1)]
    assert places[: len(real)].tolist() == real
    assert len(set(places.tolist())) == len(places)
    assert len(places) in (-(-len(real) // 32) * 32, len(ends) * length)


def test_the_short_cut_has_the_gradient_of_the_plain_model(clip: Clip, pictures: list[Image.Image]) -> None:
    tokens = clip.tokenize(CAPTIONS)
    pixels = clip.preprocessing.pixels(pictures)
    module = clip.module.train()

    def gradients(images: torch.Tensor, texts: torch.Tensor) -> dict[str, torch.Tensor]:
        module.zero_grad()
        (images.square().sum() + texts.pow(3).sum()).backward()
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    short = gradients(pooled_images(module, clip.family, pixels), pooled_texts(module, clip.family, tokens))
    plain = gradients(
        module.vision_model(pixel_values=pixels).pooler_output,
        module.text_model(input_ids=tokens).pooler_output,
    )
    module.eval()
    assert short.keys() == plain.keys()
    ours, theirs = (torch.cat([part.flatten() for part in parts.values()]) for parts in (short, plain))
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_order_and_company_do_not_change_a_vector(clip: Clip) -> None:
    together = clip.encode_texts(CAPTIONS)
    alone = np.concatenate([clip.encode_texts([caption]) for caption in CAPTIONS])
    assert np.allclose(together, alone, atol=1e-6)
    assert clip.encode_texts([]).shape == (0, clip.dimension)
    assert clip.encode_images([]).shape == (0, clip.dimension)


def test_bf16_stays_close_and_keeps_the_fingerprint(
    clip: Clip, tiny_clip: Path, pictures: list[Image.Image]
) -> None:
    narrow = load_clip(str(tiny_clip), ModelConfig(device="cpu", precision="bf16"))
    assert narrow.fingerprint == clip.fingerprint
    cosines = np.sum(narrow.encode_images(pictures) * clip.encode_images(pictures), axis=1)
    assert cosines.min() > 0.999


def test_precision_is_not_measured_where_it_cannot_help(clip: Clip) -> None:
    choice = choose_precision("auto", clip.module, torch.device("cpu"))
    assert choice.precision == "fp32"
    assert "width 32" in choice.reason


def test_a_saved_folder_is_the_same_model(clip: Clip, tmp_path: Path) -> None:
    clip.save(tmp_path / "saved")
    assert load_clip(str(tmp_path / "saved"), CPU).fingerprint == clip.fingerprint


def _copy_without(source: Path, target: Path, pattern: str) -> str:
    shutil.copytree(source, target)
    for path in target.glob(pattern):
        path.unlink()
    return str(target)


def test_each_way_a_name_can_be_wrong_is_said(tiny_clip: Path, tmp_path: Path) -> None:
    bert = tmp_path / "bert"
    bert.mkdir()
    write_json(bert / "config.json", {"model_type": "bert"})
    (bert / "model.safetensors").touch()
    cut = _copy_without(tiny_clip, tmp_path / "cut", "nothing")
    weights = Path(cut) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    cases = {
        _copy_without(tiny_clip, tmp_path / "no-weights", "*.safetensors"): "has no weights",
        _copy_without(tiny_clip, tmp_path / "no-config", "config.json"): "has no `config.json`",
        str(tmp_path / "nowhere"): "there is no model folder",
        "openai/not-downloaded": "cannot be loaded",
        str(bert): "is a `bert` model, not CLIP or SigLIP",
        cut: "cannot be loaded",
        "": "there is no model folder",
    }
    for name, message in cases.items():
        with pytest.raises(ModelError) as caught:
            load_clip(name, CPU)
        assert message in caught.value.message, name
        assert caught.value.hint
        assert "\n" not in caught.value.message
    with pytest.raises(ConfigError):
        load_clip(str(tiny_clip), ModelConfig(device="teapot"))


def test_a_run_is_found_by_name_once_it_is_finished(clip: Clip, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert latest_run(runs) is None
    for name, finished_at in (("early", "2026-01-01"), ("late", "2026-02-01"), ("open", "")):
        (runs / name).mkdir(parents=True)
        status = "finished" if finished_at else "running"
        write_json(runs / name / "run.json", {"status": status, "finished_at": finished_at})
    assert latest_run(runs) == "late"
    clip.save(runs / "late" / "model")
    assert load_clip("late", CPU, runs=runs).fingerprint == clip.fingerprint
    with pytest.raises(FurnclipError, match="the run `open` is not finished"):
        load_clip("open", CPU, runs=runs)


LORA = TrainingConfig(seed=1, lora_r=4, lora_alpha=8, lora_targets=("q_proj", "fc1"))


def test_adapters_start_as_the_identity_and_sit_where_asked(
    tiny_clip: Path, clip: Clip, pictures: list[Image.Image]
) -> None:
    adapted = load_float32(str(tiny_clip), CPU)
    paths = add_lora(adapted, ("vision",), LORA)
    assert paths == [
        f"vision_model.encoder.layers.{layer}.{part}"
        for layer in range(2)
        for part in ("self_attn.q_proj", "mlp.fc1")
    ]
    assert np.allclose(adapted.encode_images(pictures), clip.encode_images(pictures), atol=1e-6)
    trainable = [name for name, p in adapted.module.named_parameters() if p.requires_grad]
    assert all(".lora_" in name and name.startswith("vision_model") for name in trainable)
    assert len(trainable) == 2 * len(paths)


def test_a_target_that_is_not_there_lists_what_is(tiny_clip: Path) -> None:
    lora = TrainingConfig(lora_targets=("qproj",))
    with pytest.raises(ConfigError) as caught:
        add_lora(load_float32(str(tiny_clip), CPU), ("text",), lora)
    assert caught.value.hint == "did you mean `q_proj`?"


def test_shifted_weights_walk_from_the_base_to_the_trained_model(
    tiny_clip: Path, pictures: list[Image.Image]
) -> None:
    trained, plain = (load_float32(str(tiny_clip), CPU) for _ in range(2))
    before = plain.encode_images(pictures)
    add_lora(trained, ("vision", "text"), LORA)
    trained.module.visual_projection.requires_grad_(True)
    with torch.no_grad():
        for parameter in trained.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    changes = weight_changes(trained.module, plain.module)
    base = {name: p.detach().clone() for name, p in plain.module.named_parameters()}
    for share, expected in ((1.0, trained.encode_images(pictures)), (0.0, before)):
        plain.module.load_state_dict(shifted(base, changes, share), strict=False)
        assert np.allclose(plain.encode_images(pictures), expected, atol=1e-5)
    assert not np.allclose(before, trained.encode_images(pictures), atol=1e-2)


def test_without_pefts_private_door_adapters_are_pefts_own_and_the_same(
    tiny_clip: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    lean = load_float32(str(tiny_clip), CPU)
    add_lora(lean, ("vision", "text"), LORA)
    monkeypatch.delattr(LoraConfig, "_register_custom_module")
    plain = load_float32(str(tiny_clip), CPU)
    add_lora(plain, ("vision", "text"), LORA)
    assert not any(isinstance(layer, LeanLora) for layer in plain.module.modules())
    for clip in (lean, plain):
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in clip.module.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    assert np.allclose(lean.encode_images(pictures), plain.encode_images(pictures), atol=1e-5)
    base = load_float32(str(tiny_clip), CPU).module
    ours, theirs = weight_changes(lean.module, base), weight_changes(plain.module, base)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


@pytest.mark.parametrize("left", ["none", "renamed", "other arguments"])
def test_without_torchs_private_operators_layers_stay_as_they_are(
    clip: Clip, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    operators = {
        "none": SimpleNamespace(),
        "renamed": SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True),
        "other arguments": SimpleNamespace(
            _is_mkldnn_bf16_supported=lambda: True,
            _reorder_linear_weight=lambda weight, rows: weight,
            _linear_pointwise=lambda inputs: inputs,
        ),
    }
    monkeypatch.setattr(torch.ops, "mkldnn", operators[left])
    assert not can_pack(clip)
