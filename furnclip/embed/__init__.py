"""Shards in, vectors out: one pass over them for the base and the fine-tuned model.

In: `work/shards/`, the base model and a finished run.
Out: `work/embeddings/master_vectors.parquet`, and the search table built from it, `work/index.lance`.
`pipeline` has all of it in order.

`EmbeddingGenerator` is the same as a class, and for any plain CLIP of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from furnclip.config import Config, load_config
from furnclip.embed.encoding import in_batches
from furnclip.embed.pipeline import EmbedSummary as EmbedSummary
from furnclip.embed.pipeline import embed_catalogue as embed_catalogue
from furnclip.errors import InputError
from furnclip.images import open_image
from furnclip.vectors import Floats, unit

_Item = TypeVar("_Item")


class EmbeddingGenerator:
    """Generates embeddings for images and texts with any CLIP of Hugging Face.

        generator = EmbeddingGenerator()
        images = generator.generate_image_embeddings(model, processor, ["chair.jpg", "sofa.jpg"])
        texts = generator.generate_text_embeddings(model, processor, ["a red chair"])
        scores = texts @ images.T  # cosine similarities, (1, 2)

    `generate` embeds the whole catalogue of a `furnclip.toml`, as `furnclip embed` does.
    """

    def __init__(self, config: Config | None = None, *, batch_size: int | None = None) -> None:
        self.config = config or load_config()
        self.batch_size = batch_size or self.config.embed.batch_size

    def generate_image_embeddings(
        self, model: Any, processor: Any, images: Iterable[Image.Image | Path | str]
    ) -> Floats:
        """Unit vectors (N, D) in float32, in the order of `images`.

        `model`: a `CLIPModel` or the like; `processor`: its `CLIPProcessor`, which does all the
        preprocessing. `images`: images or their paths, opened batch by batch. Raises
        `BrokenImage` for an image that cannot be read.
        """

        def encode(batch: Sequence[Image.Image | Path | str]) -> Any:
            images = [each if isinstance(each, Image.Image) else open_image(Path(each)) for each in batch]
            opened = [image.convert("RGB") for image in images]
            weight = next(model.parameters())
            pixels = processor(images=opened, return_tensors="pt")["pixel_values"]
            return model.get_image_features(pixel_values=pixels.to(weight.device, weight.dtype))

        return self._in_batches(encode, images)

    def generate_text_embeddings(self, model: Any, processor: Any, texts: Iterable[str]) -> Floats:
        """Unit vectors (N, D) in float32, in the order of `texts`; long texts are cut."""
        if isinstance(texts, str):
            hint = "pass a list: `[text]`; each gives one vector"
            raise InputError("`texts` is one string, not several", hint=hint)

        def encode(batch: Sequence[str]) -> Any:
            inputs = processor(text=list(batch), return_tensors="pt", padding=True, truncation=True)
            device = next(model.parameters()).device
            return model.get_text_features(**{name: value.to(device) for name, value in inputs.items()})

        return self._in_batches(encode, texts)

    def generate(self, *, run: str | None = None) -> EmbedSummary:
        """Embed the catalogue with the base model and `run` (default: the latest finished run)."""
        return embed_catalogue(self.config, run=run)

    def _in_batches(self, encode: Callable[[Sequence[_Item]], Any], items: Iterable[_Item]) -> Floats:
        import torch  # here, because a night's change is embedded without

        chunks = []
        with torch.inference_mode():
            for batch in in_batches(items, self.batch_size):
                features = encode(batch)
                # transformers 5 wraps the projected features in an output object, 4 returns them as they are
                tensor = getattr(features, "pooler_output", features)
                chunks.append(unit(tensor.float().cpu().numpy()))
        return np.concatenate(chunks) if chunks else np.empty((0, 0), dtype=np.float32)
