"""A small CLIP with random weights, to train from scratch where no pretrained one can be downloaded.

    python examples/make_tiny_clip.py my-shop

In: `my-shop/furnclip.toml`, and the catalogue that it names, cleaned or not, for the words of the tokenizer.
Out: `my-shop/tiny-clip/`, a plain Hugging Face folder for `model.name` or `--model`.

The tokenizer is a byte-level BPE learnt from the captions given, so any text can be written with it. Search
results are random until the model is trained: `furnclip train --scenario full`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from furnclip.catalogue import Product, catalogue_path, read_products
from furnclip.config import load_config
from furnclip.errors import FurnclipError
from furnclip.journal import replacing_folder, write_json
from furnclip.model.clip import quiet
from furnclip.model.inputs import Preprocessing
from furnclip.relevance import default_caption

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


def catalogue_captions(shop: Path) -> list[str]:
    """The caption and the title of every product of a shop."""
    settings = shop / "furnclip.toml"
    paths = load_config(settings).paths
    rows = read_products(catalogue_path(paths), paths)
    products = [row for row in rows if isinstance(row, Product)]
    return [
        text for each in products for text in (default_caption(each.fields, title=each.title), each.title)
    ]


def main() -> None:
    """Read the folder from the command line and write the model into it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of a shop, with its furnclip.toml")
    parser.add_argument("--image-px", type=int, default=64, help="side of the images it sees, in pixels")
    parser.add_argument("--width", type=int, default=96, help="width of its towers, a multiple of 32")
    parser.add_argument("--layers", type=int, default=3, help="layers in each tower")
    parser.add_argument("--patch-px", type=int, default=16, help="side of a patch, in pixels")
    arguments = parser.parse_args()
    try:
        captions = catalogue_captions(arguments.folder)
    except FurnclipError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
    folder = build_tiny_clip(
        arguments.folder / "tiny-clip",
        captions,
        image_px=arguments.image_px,
        width=arguments.width,
        layers=arguments.layers,
        patch_px=arguments.patch_px,
    )
    print(f"wrote a random CLIP to {folder}")


if __name__ == "__main__":
    main()
