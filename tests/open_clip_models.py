"""Models of open_clip with weights that any machine can draw again, and the vectors that open_clip makes.

    python -m tests.open_clip_models --write

makes `tests/golden/open_clip.json` anew and needs `open_clip_torch`; the tests do not. Towers have their
published widths and shapes, but two layers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "golden" / "open_clip.json"
LAYERS = 2
SIGLIP = {
    **{"context_length": 64, "width": 768, "heads": 12, "layers": 12, "no_causal_mask": True},
    **{"proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-06}},
    "tokenizer_kwargs": {"clean": "canonicalize"},
}
TIMM = {"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}
OPENAI = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}


def siglip(timm_name: str, side_px: int, vocabulary: int, **text: Any) -> dict[str, Any]:
    """The configuration of a SigLIP of base size."""
    return {
        **{"embed_dim": 768, "init_logit_bias": -10, "custom_text": True},
        "vision_cfg": {"image_size": side_px, "timm_model_name": timm_name, **TIMM},
        "text_cfg": {**SIGLIP, "vocab_size": vocabulary, **text},
    }


def vit(patch_px: int, **more: Any) -> dict[str, Any]:
    """The configuration of a ViT-B as of OpenAI and LAION."""
    vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": patch_px}
    return {"embed_dim": 512, "vision_cfg": vision, "text_cfg": OPENAI, **more}


MODELS = {
    "ViT-B-32": vit(32),
    "ViT-B-32-quickgelu": vit(32, quick_gelu=True),
    "ViT-B-16 (Marqo-FashionCLIP)": vit(16),
    "ViT-B-16-SigLIP (marqo-ecommerce-embeddings-B)": siglip("vit_base_patch16_siglip_224", 224, 32_000),
    "ViT-B-16-SigLIP2": siglip(
        "vit_base_patch16_siglip_224", 224, 256_000, act_kwargs={"approximate": "tanh"}
    ),
}


def shallow(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """The same towers with fewer layers; of timm's towers the depth is in the weights alone."""
    vision, text = ({**config[name], "layers": layers} for name in ("vision_cfg", "text_cfg"))
    if "timm_model_name" in vision:
        vision = config["vision_cfg"]
    return {**config, "vision_cfg": vision, "text_cfg": text}


def draw(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Weights for open_clip's names, large enough that each of them shows in the vectors."""
    weights = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        noise = np.random.default_rng(number).standard_normal(shape, dtype=np.float32)
        is_norm = name.endswith("weight") and len(shape) == 1
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 100
        weights[name] = torch.from_numpy(np.asarray(is_norm + noise * (0.5 if is_norm else 1) / fan_in**0.5))
    return weights


def inputs(side_px: int, length: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three images (3, 3, H, W) and the ids of three texts (3, T), which end in the highest id."""
    random = np.random.default_rng(7)
    pixels = random.standard_normal((3, 3, side_px, side_px), dtype=np.float32)
    ids = random.integers(3, min(vocabulary, 30_000) - 2, size=(3, length))
    for row, end in enumerate((4, 9, length - 1)):
        ids[row, end:] = vocabulary - 1
    return torch.from_numpy(pixels), torch.from_numpy(ids)


def golden_entry(config: dict[str, Any]) -> dict[str, Any]:
    """Shapes of the weights and the first numbers of open_clip's vectors."""
    from open_clip.model import CLIP, CustomTextCLIP

    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    model = kind(**{name: value for name, value in config.items() if name != "custom_text"}).eval()
    if "timm_model_name" in config["vision_cfg"]:
        model.visual.trunk.blocks = model.visual.trunk.blocks[:LAYERS]
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "attn_mask"}
    model.load_state_dict(draw(shapes), strict=False)
    text = config["text_cfg"]
    pixels, ids = inputs(config["vision_cfg"]["image_size"], text["context_length"], text["vocab_size"])
    with torch.inference_mode():
        images = model.encode_image(pixels, normalize=True).numpy()
        texts = model.encode_text(ids, normalize=True).numpy()
    return {"shapes": shapes, "images": rounded(images), "texts": rounded(texts)}


def rounded(vectors: NDArray[np.float32]) -> list[list[float]]:
    return [[round(float(number), 6) for number in row] for row in vectors]


if __name__ == "__main__" and "--write" in sys.argv:
    from tests.bench.embed import _declare_torchvision_operators

    declared = _declare_torchvision_operators()
    found = {name: golden_entry(shallow(config, LAYERS)) for name, config in MODELS.items()}
    GOLDEN.write_text(json.dumps(found, separators=(",", ":")), encoding="utf-8")
