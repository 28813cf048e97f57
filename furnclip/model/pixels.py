"""From pictures to the tensor a vision tower reads: letterbox, resize, scale, normalise.

The shards hold squares that `images.letterbox` made, so resizing a square to the model's own side is
all that Hugging Face's processor would do to them; `tests/test_model.py` holds the two equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from furnclip.images import letterbox

# Means and deviations that OpenAI trained with; Hugging Face writes them into every CLIP folder.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """Side in pixels and the per-channel mean and deviation (of values from 0 to 1) of one model."""

    image_px: int
    mean: tuple[float, ...] = _CLIP_MEAN
    std: tuple[float, ...] = _CLIP_STD

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, image_px: int) -> Preprocessing:
        """Read from `preprocessor_config.json`; the side is the one that the tower was built for."""
        mean, std = config.get("image_mean", _CLIP_MEAN), config.get("image_std", _CLIP_STD)
        return cls(image_px, tuple(float(value) for value in mean), tuple(float(value) for value in std))

    def to_config(self) -> dict[str, Any]:
        """What goes into `preprocessor_config.json`."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.image_px},
            "resample": int(Image.Resampling.BICUBIC),
            "do_center_crop": True,
            "crop_size": {"height": self.image_px, "width": self.image_px},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def square(self, image: Image.Image) -> Image.Image:
        """The picture as an RGB square of the model's side; other shapes are letterboxed on white."""
        if image.mode != "RGB":
            image = image.convert("RGB")
        if image.width != image.height:
            return letterbox(image, self.image_px)
        if image.width != self.image_px:
            return image.resize((self.image_px, self.image_px), Image.Resampling.BICUBIC)
        return image

    def squares(self, images: Sequence[Image.Image]) -> NDArray[np.uint8]:
        """The pictures as one array (B, H, W, 3) of bytes."""
        return np.stack([np.asarray(self.square(image)) for image in images])

    def normalise(self, squares: NDArray[np.uint8]) -> torch.Tensor:
        """(B, H, W, 3) bytes -> (B, 3, H, W) float32, as the tower reads it."""
        mean = torch.tensor(self.mean).mul(255)
        std = torch.tensor(self.std).mul(255)
        pixels = torch.from_numpy(squares).float().sub_(mean).div_(std)  # (B, H, W, 3)
        return pixels.permute(0, 3, 1, 2)

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Pictures of any size -> (B, 3, H, W) float32."""
        return self.normalise(self.squares(images))
