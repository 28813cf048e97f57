"""From images to the tensor a vision tower reads: letterbox, resize, scale, normalize.

The shards hold squares that `images.letterbox` made, so resizing a square to the model's own side is
all that Hugging Face's processor would do to them; `tests/test_model.py` holds the two equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, FiniteFloat, PositiveInt

from furnclip.errors import ModelError
from furnclip.images import letterbox
from furnclip.journal import parse_json

if TYPE_CHECKING:
    import torch

# Means and deviations that OpenAI trained with; Hugging Face writes them into every CLIP folder.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_KNOWN_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_HINT = "restore `preprocessor_config.json` from the model's own repository, or choose another model"
_Sides = PositiveInt | dict[str, PositiveInt | None]
_Positive = Annotated[FiniteFloat, Field(gt=0)]
_Three = Field(min_length=3, max_length=3)


@dataclass(frozen=True)
class _Settings:
    """`preprocessor_config.json`, as far as it decides what becomes of a square image."""

    size: _Sides | None = None
    crop_size: _Sides | None = None
    do_resize: bool = True
    do_center_crop: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    rescale_factor: _Positive = 1 / 255
    image_mean: Annotated[tuple[FiniteFloat, ...], _Three] = _CLIP_MEAN
    image_std: Annotated[tuple[_Positive, ...], _Three] = _CLIP_STD
    resample: Literal[0, 1, 2, 3, 4, 5] = 3

    def problem(self, image_px: int) -> str:
        """Why the tower's squares cannot be made as asked for; empty: they can."""
        for key in ("size", "crop_size") if self.do_center_crop else ("size",):
            asked = getattr(self, key)
            sides = set(asked.values()) - {None} if isinstance(asked, dict) else {asked}
            if asked is not None and sides != {image_px}:
                return f"`{key}` is {asked}, and the vision tower reads squares of {image_px} px"
        if not self.do_resize:
            return "`do_resize` is off, and product images come in all sizes"
        if self.resample not in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
            name = Image.Resampling(self.resample).name.lower()
            return f"`resample` is {self.resample} ({name}); only 2 (bilinear) and 3 (bicubic) are known"
        return ""


@dataclass(frozen=True)
class Preprocessing:
    """Side in pixels and the per-channel mean and deviation (of values from 0 to 1) of one model."""

    image_px: int
    mean: tuple[float, ...] = _CLIP_MEAN
    std: tuple[float, ...] = _CLIP_STD
    resample: int = field(default=Image.Resampling.BICUBIC, repr=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, image_px: int, name: str) -> Preprocessing:
        """Read from `preprocessor_config.json` of the model `name`, for a tower that reads `image_px`.

        Raises `InputError` for values of the wrong kind, `ModelError` for steps that would not be done.
        """
        what = f"the preprocessing of `{name}`"
        given = {key: value for key, value in config.items() if value is not None}
        settings = parse_json(json.dumps(given), _Settings, what=what, hint=_HINT)
        asked = {key for key, value in given.items() if value is True and key.startswith(("do_", "rescale_"))}
        unknown = sorted(asked - _KNOWN_STEPS) + [key for key in ("crop_pct",) if key in given]
        problem = f"`{unknown[0]}` is not supported" if unknown else settings.problem(image_px)
        if problem:
            raise ModelError(f"{what} cannot be done: {problem}", hint=_HINT)
        # mean and deviation of values from 0 to 1, whatever they are given for
        unit = 255 * settings.rescale_factor if settings.do_rescale else 255.0
        mean = settings.image_mean if settings.do_normalize else (0.0,) * 3
        std = settings.image_std if settings.do_normalize else (1.0,) * 3
        return cls(
            image_px,
            tuple(value / unit for value in mean),
            tuple(value / unit for value in std),
            settings.resample,
        )

    def to_config(self) -> dict[str, Any]:
        """What goes into `preprocessor_config.json`."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.image_px},
            "resample": int(self.resample),
            "do_center_crop": True,
            "crop_size": {"height": self.image_px, "width": self.image_px},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def square(self, image: Image.Image) -> Image.Image:
        """The image as an RGB square of the model's side; other shapes are letterboxed on white."""
        if image.mode != "RGB":
            image = image.convert("RGB")
        if image.width != image.height:
            return letterbox(image, self.image_px)
        if image.width != self.image_px:
            return image.resize((self.image_px, self.image_px), Image.Resampling(self.resample))
        return image

    def normalize(self, squares: NDArray[np.uint8]) -> torch.Tensor:
        """(B, H, W, 3) bytes -> (B, 3, H, W) float32, as the tower reads it."""
        import torch  # here, because a search without torch makes its squares by this class

        mean = torch.tensor(self.mean).mul(255)
        std = torch.tensor(self.std).mul(255)
        pixels = torch.from_numpy(squares).float().sub_(mean).div_(std)  # (B, H, W, 3)
        return pixels.permute(0, 3, 1, 2)

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Images of any size -> (B, 3, H, W) float32."""
        return self.normalize(np.stack([np.asarray(self.square(image)) for image in images]))
