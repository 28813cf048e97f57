"""`Clip`: one wrapper around both towers that returns unit vectors."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from furnclip.journal import write_json
from furnclip.model.inputs import Preprocessing, TextInput
from furnclip.model.light import in_chunks
from furnclip.model.towers import Family, Tower, pooled_images, pooled_texts, project
from furnclip.runs import PrecisionChoice

_CHUNK = 256  # images or captions in one forward pass


class Clip:
    """A CLIP or SigLIP model, its tokenizer and its preprocessing.

    `name`: as it was asked for. `fingerprint`: 16 hex digits of weights, tokenizer and preprocessing
    (in float32, so the precision of the towers does not change it). `dimension`: of the vectors.
    `image_px`: side of the images that the tower reads. `module`: the Hugging Face model. `tokenize`: texts
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
        self.image_px = preprocessing.image_px
        self.fingerprint = _fingerprint(module, tokenizer, preprocessing)
        self.precision = PrecisionChoice("fp32", "as loaded")
        config: Any = self.module.config
        self.dimension = int(getattr(config, "projection_dim", None) or config.text_config.projection_size)
        self.tokenize = TextInput(tokenizer, family, positions=config.text_config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        weight: nn.Parameter = next(self.module.parameters())
        return weight.device

    def place(self, device: torch.device, choice: PrecisionChoice) -> Clip:
        """Move the towers to a device and into a precision; returns itself."""
        dtype = torch.bfloat16 if choice.precision == "bf16" else torch.float32
        self.module.to(device=device, dtype=dtype)
        self.precision = choice
        return self

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """(B, D) unit vectors; images of any size, squares are best made by `images.load_square`."""
        return in_chunks(partial(self._encode, "vision"), images, self.dimension, _CHUNK)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(B, D) unit vectors, in the order given."""
        return in_chunks(partial(self._encode, "text"), texts, self.dimension, _CHUNK)

    @torch.inference_mode()
    def _encode(self, tower: Tower, chunk: list[Any]) -> NDArray[np.float32]:
        if tower == "vision":
            weight = next(self.module.parameters())
            pixels = self.preprocessing.pixels(chunk).to(weight.device, weight.dtype)
            pooled = pooled_images(self.module, self.family, pixels)
        else:
            pooled = pooled_texts(self.module, self.family, self.tokenize(chunk))
        vectors: NDArray[np.float32] = project(self.module, self.family, tower, pooled).cpu().numpy()
        return vectors

    def save(self, folder: Path) -> None:
        """Write a plain Hugging Face folder: weights as safetensors, tokenizer, preprocessing."""
        with quiet():
            self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", self.preprocessing.to_config())


def _fingerprint(module: nn.Module, tokenizer: Any, preprocessing: Preprocessing) -> str:
    """16 hex digits that change when a weight, a token or the preprocessing does."""
    digest = hashlib.sha256(repr(preprocessing).encode())
    if preprocessing.resample != Image.Resampling.BICUBIC:
        digest.update(f"resample {preprocessing.resample}".encode())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().contiguous().cpu().numpy().data)
    return digest.hexdigest()[:16]


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block transformers and peft print errors only: a user can do nothing about their notes and
    about what they will change between themselves.
    """
    log: Any = transformers.utils.logging
    level = log.get_verbosity()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.set_verbosity(level)
        log.enable_progress_bar()
