"""`Clip`: one wrapper around both towers that returns unit vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from furnclip.journal import write_json
from furnclip.model.families import Family
from furnclip.model.pixels import Preprocessing
from furnclip.model.precision import Choice
from furnclip.model.quiet import quiet
from furnclip.model.texts import TextInput
from furnclip.model.towers import pooled_images, pooled_texts, project

_CHUNK = 256  # pictures or captions in one forward pass, so that a long list cannot exhaust memory


class Clip:
    """A CLIP or SigLIP model, its tokenizer and its preprocessing.

    `name`: as it was asked for. `fingerprint`: 16 hex digits of weights, tokenizer and preprocessing
    (in float32, so the precision of the towers does not change it). `dimension`: of the vectors.
    `image_px`: side of the pictures that the tower reads. `module`: the Hugging Face model. `tokenize`: texts
    to token ids (B, T), by the one rule for captions and queries.
    """

    def __init__(
        self, module: nn.Module, tokenizer: Any, *, name: str, family: Family, preprocessing: Preprocessing
    ) -> None:
        self.module: Any = module.eval()  # CLIPModel or SiglipModel
        self.tokenizer = tokenizer
        self.name = name
        self.family = family
        self.preprocessing = preprocessing
        self.fingerprint = fingerprint(module, tokenizer, preprocessing)
        self.precision = Choice("fp32", "as loaded")
        positions = int(self._text_config.max_position_embeddings)
        self.tokenize = TextInput(tokenizer, family, positions=positions)

    @property
    def image_px(self) -> int:
        return self.preprocessing.image_px

    @property
    def dimension(self) -> int:
        config: Any = self.module.config
        return int(getattr(config, "projection_dim", None) or config.text_config.projection_size)

    @property
    def logit_scale(self) -> float:
        """The factor that similarities are multiplied by, about 100 for OpenAI's models."""
        return float(self.module.logit_scale.detach().exp())

    @property
    def layers(self) -> dict[str, int]:
        """Number of encoder layers of each tower."""
        config = self.module.config
        return {
            "vision": int(config.vision_config.num_hidden_layers),
            "text": int(config.text_config.num_hidden_layers),
        }

    @property
    def _text_config(self) -> Any:
        return self.module.config.text_config

    @property
    def device(self) -> torch.device:
        return next(self._parameters()).device

    def place(self, device: torch.device, choice: Choice) -> Clip:
        """Move the towers to a device and into an arithmetic; returns itself."""
        dtype = torch.bfloat16 if choice.precision == "bf16" else torch.float32
        self.module.to(device=device, dtype=dtype)
        self.precision = choice
        return self

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """(B, D) unit vectors; pictures of any size, squares are best made by `images.load_square`."""

        def encode(chunk: Sequence[Image.Image]) -> Tensor:
            pixels = self.preprocessing.pixels(chunk).to(self.device, self._dtype)
            pooled = pooled_images(self.module, self.family, pixels)
            return project(self.module, self.family, "vision", pooled)

        return self._in_chunks(encode, images)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(B, D) unit vectors, in the order given."""

        def encode(chunk: Sequence[str]) -> Tensor:
            pooled = pooled_texts(self.module, self.family, self.tokenize(chunk))
            return project(self.module, self.family, "text", pooled)

        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding
        vectors = self._in_chunks(encode, [texts[index] for index in by_length])
        ordered = np.empty_like(vectors)
        ordered[by_length] = vectors
        return ordered

    def save(self, folder: Path) -> None:
        """Write a plain Hugging Face folder: weights as safetensors, tokenizer, preprocessing."""
        with quiet():
            self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", self.preprocessing.to_config())

    def _parameters(self) -> Iterator[nn.Parameter]:
        module: nn.Module = self.module
        return module.parameters()

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._parameters()).dtype

    @torch.inference_mode()
    def _in_chunks(
        self, encode: Callable[[Sequence[Any]], Tensor], items: Sequence[Any]
    ) -> NDArray[np.float32]:
        vectors = np.empty((len(items), self.dimension), dtype=np.float32)
        for start in range(0, len(items), _CHUNK):
            chunk = items[start : start + _CHUNK]
            vectors[start : start + len(chunk)] = encode(chunk).cpu().numpy()
        return vectors


def fingerprint(module: nn.Module, tokenizer: Any, preprocessing: Preprocessing) -> str:
    """16 hex digits that change when a weight, a token or the preprocessing does."""
    digest = hashlib.sha256(repr(preprocessing).encode())
    if preprocessing.resample != Image.Resampling.BICUBIC:
        digest.update(f"resample {preprocessing.resample}".encode())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().contiguous().cpu().numpy().data)
    return digest.hexdigest()[:16]
