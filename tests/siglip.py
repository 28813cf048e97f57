"""A SigLIP small enough for a test, with the tiny CLIP's tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import SiglipConfig, SiglipModel

from examples.make_tiny_clip import learn_tokenizer
from furnclip.journal import write_json
from furnclip.model.clip import quiet
from furnclip.model.inputs import Preprocessing
from tests.drawn_shop import captions


def build_tiny_siglip(folder: Path) -> Path:
    """Write a random SigLIP of width 32 into `folder`."""
    tokenizer = learn_tokenizer(captions(), size=1024, text_positions=24)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 24,
            "projection_size": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(0)
    with quiet():
        SiglipModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    half = (0.5, 0.5, 0.5)
    write_json(folder / "preprocessor_config.json", Preprocessing(32, half, half).to_config())
    return folder
