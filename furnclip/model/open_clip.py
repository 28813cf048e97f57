"""Models in open_clip's format, converted once to the Hugging Face layout that everything else reads.

In: a folder, or a snapshot from the hub, with `open_clip_config.json` and weights. Out: a folder of the same
model in the cache of the hub (`HF_HOME/furnclip`), named by what it was made from. Two kinds of towers are
known: OpenAI's (a ViT and a causal text transformer) and SigLIP's (a timm ViT pooled by attention, a text
tower without a mask). What else a configuration asks for is refused with its name, because a weight in the
wrong place gives vectors that mean nothing. `tests/test_open_clip.py` holds the vectors equal to
open_clip's.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import tomli
import torch
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
from transformers.modeling_utils import load_state_dict

from furnclip.catalogue import content_hash
from furnclip.errors import ModelError, first_line
from furnclip.journal import read_json, replacing_folder, write_json
from furnclip.model.inputs import Preprocessing

CONFIG_NAME = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")
_TOKENIZER_FILES = ("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "*.model")
_VERSION = "1"  # raise it when the conversion changes
_OPENAI_TOKENIZER = "openai/clip-vit-base-patch32"
_HINT = "choose a model whose towers are OpenAI's ViT or SigLIP's"
_TIMM_SIGLIP = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_\d+")
_TIMM_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
_VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"} | {
    *("hf_tokenizer_name", "tokenizer_kwargs", "norm_kwargs", "act_kwargs"),
}
_SIGLIP_VISION = {"timm_pool": "map", "timm_proj": "none"}
_SIGLIP_TEXT = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}

_LAYER = re.compile(
    r"(visual\.transformer\.resblocks|visual\.trunk\.blocks|transformer\.resblocks)\.(\d+)\.(.+)"
)
_NAMES = tomli.loads(Path(__file__).with_name("open_clip_names.toml").read_text(encoding="utf-8"))
_POOL_INPUTS = ("visual.trunk.attn_pool.q", "visual.trunk.attn_pool.kv")


def from_hub(name: str, revision: str) -> Path | None:
    """The converted model of a repository on the hub; None where it has no open_clip configuration."""
    hub = huggingface_hub
    try:
        hub.hf_hub_download(name, CONFIG_NAME, revision=revision)
        files = hub.list_repo_files(name, revision=revision)
        weights = [file for file in _WEIGHTS if file in files][:1]
        wanted = [CONFIG_NAME, *weights, *_TOKENIZER_FILES]
        folder = hub.snapshot_download(name, revision=revision, allow_patterns=wanted)
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, ValueError):
        return None
    return converted(Path(folder))


def converted(folder: Path) -> Path:
    """The Hugging Face folder of the open_clip model in `folder`, made once.

    Raises `ModelError` for towers that cannot be converted and weights that do not fit, `InputError` for a
    damaged configuration.
    """
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    hint = "download the model again"
    if weights is None:
        raise ModelError(f"`{folder}` has no weights ({', '.join(f'`{n}`' for n in _WEIGHTS)})", hint=hint)
    text = read_json(folder / CONFIG_NAME, dict[str, Any], what="the open_clip configuration", hint=hint)
    status = weights.stat()
    made_from = (str(folder.resolve()), json.dumps(text), str(status.st_size), str(status.st_mtime_ns))
    target = Path(huggingface_hub.constants.HF_HOME) / "furnclip" / content_hash(_VERSION, *made_from)
    if (target / "config.json").is_file():
        return target
    model, preprocess = text.get("model_cfg", text), text.get("preprocess_cfg", {})
    try:
        named = _read(weights)
        config = _siglip(model, named) if "timm_model_name" in model["vision_cfg"] else _openai(model)
    except (KeyError, TypeError) as error:
        raise ModelError(f"`{folder / CONFIG_NAME}` has no usable `{error.args[0]}`", hint=_HINT) from None
    with replacing_folder(target) as made:
        _save(made, config, dict(_renamed(named)), name=folder.name)
        _save_tokenizer(folder, made, model["text_cfg"])
        usual = Preprocessing(int(model["vision_cfg"]["image_size"]))
        mean, std = (
            tuple(map(float, value if isinstance(value, list) else [value] * 3))
            for value in (preprocess.get("mean", list(usual.mean)), preprocess.get("std", list(usual.std)))
        )
        is_bilinear = preprocess.get("interpolation") == "bilinear"
        resample = Image.Resampling.BILINEAR if is_bilinear else Image.Resampling.BICUBIC
        steps = Preprocessing(usual.image_px, mean, std, resample)
        write_json(made / "preprocessor_config.json", steps.to_config())
    return target


def _openai(model: Mapping[str, Any]) -> CLIPConfig:
    vision, text = model["vision_cfg"], model["text_cfg"]
    _refuse_others(vision, _VISION_KEYS, {}, "vision")
    _refuse_others(text, _TEXT_KEYS, {}, "text")
    if not isinstance(vision["layers"], int):
        raise ModelError("the vision tower is a ResNet, not a ViT", hint=_HINT)
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    both = {"hidden_act": activation, "projection_dim": model["embed_dim"]}
    end = text["vocab_size"] - 1  # open_clip reads a text at its highest token
    ends = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    sizes = {
        "hidden_size": vision["width"],
        "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4)),
        "num_hidden_layers": vision["layers"],
        "num_attention_heads": vision["width"] // vision.get("head_width", 64),
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
    }
    return CLIPConfig(
        projection_dim=model["embed_dim"],
        vision_config={**sizes, **both},
        text_config={**_text_sizes(text), **both, **ends},
    )


def _siglip(model: Mapping[str, Any], weights: Mapping[str, Tensor]) -> SiglipConfig:
    """timm's names of towers say neither depth nor width; the weights do."""
    vision, text = model["vision_cfg"], model["text_cfg"]
    name = str(vision["timm_model_name"])
    known = _TIMM_SIGLIP.fullmatch(name)
    if known is None:
        raise ModelError(f"the vision tower `{name}` of timm cannot be converted", hint=_HINT)
    ignored = {"image_size", "timm_model_name", "timm_model_pretrained", "timm_drop", "timm_drop_path"}
    _refuse_others(vision, ignored, _SIGLIP_VISION, "vision")
    _refuse_others(text, _TEXT_KEYS, _SIGLIP_TEXT, "text")
    width = model["embed_dim"]  # there is no projection behind the vision tower
    layers = sum(name.endswith(".attn.qkv.weight") for name in weights)
    by_tanh = text.get("act_kwargs", {}).get("approximate") == "tanh"
    eps = text.get("norm_kwargs", {}).get("eps", 1e-6)
    return SiglipConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": weights["visual.trunk.blocks.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": layers,
            "num_attention_heads": _TIMM_HEADS[known[1]],
            "image_size": vision["image_size"],
            "patch_size": int(known[2]),
            "hidden_act": "gelu_pytorch_tanh" if known[1] == "giantopt" else "gelu",
            "layer_norm_eps": 1e-6,
        },
        text_config={
            **_text_sizes(text),
            "hidden_act": "gelu_pytorch_tanh" if by_tanh else "gelu",
            "layer_norm_eps": eps,
            "projection_size": width,
        },
    )


def _text_sizes(text: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": text["vocab_size"],
        "max_position_embeddings": text["context_length"],
        "hidden_size": text["width"],
        "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4)),
        "num_hidden_layers": text["layers"],
        "num_attention_heads": text["heads"],
    }


def _refuse_others(given: Mapping[str, Any], known: set[str], needed: Mapping[str, Any], tower: str) -> None:
    """Refuse a tower that differs from the known one in anything that its configuration names."""
    for key, value in needed.items():
        if given.get(key) != value:
            raise ModelError(f"the {tower} tower has `{key}` = {given.get(key)!r}, not {value!r}", hint=_HINT)
    for key, value in given.items():
        if key not in known and key not in needed and value not in (None, False):
            raise ModelError(f"the {tower} tower has `{key}` = {value!r}, which is not known", hint=_HINT)


def _read(path: Path) -> dict[str, Tensor]:
    """The weights by open_clip's names."""
    found: dict[str, Any] = load_state_dict(path, map_location="cpu", weights_only=True)
    weights = found.get("state_dict", found)
    names = {name: name.removeprefix("module.").removeprefix("text.") for name in weights}
    return {short: weights[name].float() for name, short in names.items()}


def _renamed(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face's name and shape for each weight."""
    pool: dict[str, Tensor] = {}
    beside = _NAMES["beside_layers"]
    for name, value in weights.items():
        stem, _, kind = name.rpartition(".")
        if layer := _LAYER.fullmatch(name):
            yield from _layer_weights(layer, value)
        elif stem in _POOL_INPUTS:
            pool[name] = value
        elif name in _NAMES["transposed"]:
            yield _NAMES["transposed"][name], value.T.contiguous()
        elif kind != "attn_mask":  # a constant that old checkpoints hold
            known = beside.get(name) or f"{beside.get(stem, stem)}.{kind}"
            yield known, value[0] if name == "visual.trunk.pos_embed" else value
    for kind in ("weight", "bias") if pool else ():
        joined = torch.cat([pool[f"{stem}.{kind}"] for stem in _POOL_INPUTS])
        yield f"vision_model.head.attention.in_proj_{kind}", joined


def _layer_weights(layer: re.Match[str], value: Tensor) -> Iterator[tuple[str, Tensor]]:
    tower = "vision_model" if layer[1].startswith("visual") else "text_model"
    prefix = f"{tower}.encoder.layers.{layer[2]}"
    joined = re.fullmatch(r"attn\.(?:in_proj_|qkv\.)(weight|bias)", layer[3])
    if joined:
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            yield f"{prefix}.self_attn.{part}_proj.{joined[1]}", rows.contiguous()
    else:
        stem, _, kind = layer[3].rpartition(".")
        yield f"{prefix}.{_NAMES['in_layer'].get(stem, stem)}.{kind}", value


def _save(folder: Path, config: Any, weights: dict[str, Tensor], *, name: str) -> None:
    """Configuration and weights, once every weight has its place."""
    kind = SiglipModel if isinstance(config, SiglipConfig) else CLIPModel
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in kind(config).state_dict().items()}
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in weights and scalar in shapes:
            weights[scalar] = weights[scalar].reshape(shapes[scalar])
    found = {key: tuple(value.shape) for key, value in weights.items()}
    wrong = sorted(key for key in {*shapes, *found} if shapes.get(key) != found.get(key))
    if wrong:
        problem = f"do not fit its configuration: `{wrong[0]}` and {len(wrong) - 1} more"
        hint = "download the model again, or choose another one"
        raise ModelError(f"the weights of `{name}` {problem}", hint=hint)
    config.architectures = [kind.__name__]
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _save_tokenizer(folder: Path, target: Path, text: Mapping[str, Any]) -> None:
    """The tokenizer of the folder; without one, the one that the configuration names, from the hub."""
    files = [file for pattern in _TOKENIZER_FILES for file in sorted(folder.glob(pattern)) if file.is_file()]
    for file in files:
        shutil.copyfile(file, target / file.name)
    name = str(text.get("hf_tokenizer_name") or _OPENAI_TOKENIZER)
    try:
        tokenizer = AutoTokenizer.from_pretrained(target if files else name, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"there is no tokenizer in `{folder}`, and `{name}` cannot be loaded: {first_line(error)}",
            hint=f"put `tokenizer.json` and `tokenizer_config.json` of `{name}` into the folder",
        ) from None
    tokenizer.model_max_length = int(text["context_length"])
    # `TextInput` goes by it
    tokenizer.init_kwargs["clean"] = text.get("tokenizer_kwargs", {}).get("clean", "")
    tokenizer.save_pretrained(target)
