"""A CLIP small enough for a test: random weights, its own tokenizer, a plain Hugging Face folder.

Out: a folder that `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` read. The tokenizer
is a byte-level BPE learnt from the captions given, so any text can be written with it. The weights
are random: retrieval with an untrained one is chance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from furnclip.journal import replacing_folder, write_json
from furnclip.model.pixels import Preprocessing
from furnclip.model.quiet import quiet

_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
_HEAD_WIDTH = 32


def build_tiny_clip(
    folder: Path,
    captions: Sequence[str],
    *,
    seed: int = 0,
    image_px: int = 64,
    width: int = 64,
    layers: int = 2,
    patch_px: int = 16,
    text_positions: int = 77,
    vocabulary_size: int = 2048,
) -> Path:
    """Write a tiny random CLIP into `folder` (replaced if it exists) and return it.

    Same arguments, same bytes. `width` must be a multiple of 32 (one attention head each).
    """
    if width % _HEAD_WIDTH or image_px % patch_px:
        raise ValueError("width must be a multiple of 32 and image_px of patch_px")
    tokenizer = learn_tokenizer(captions, size=vocabulary_size, text_positions=text_positions)
    module = _random_clip(
        tokenizer, seed=seed, image_px=image_px, width=width, layers=layers, patch_px=patch_px
    )
    with replacing_folder(folder) as aside, quiet():
        module.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        write_json(aside / "preprocessor_config.json", Preprocessing(image_px).to_config())
    return folder


def learn_tokenizer(captions: Iterable[str], *, size: int, text_positions: int = 77) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learnt from `captions`; it can spell any other text too."""
    empty = CLIPTokenizer()
    learner = Tokenizer(BPE(end_of_word_suffix=_WORD_END))
    learner.normalizer = empty.backend_tokenizer.normalizer
    learner.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
    )
    learner.train_from_iterator(captions, trainer)
    merges: list[Any] = _merges(learner)
    # Every byte, alone and at a word's end, as in OpenAI's vocabulary: then no text is unknown.
    words = [*alphabet, *(letter + _WORD_END for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*words, _START, _END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=text_positions)


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]


def _random_clip(
    tokenizer: CLIPTokenizer, *, seed: int, image_px: int, width: int, layers: int, patch_px: int
) -> CLIPModel:
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // _HEAD_WIDTH,
        "projection_dim": width,
    }
    text = {
        **tower,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower, "image_size": image_px, "patch_size": patch_px}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config)
