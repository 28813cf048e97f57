"""Pictures changed a little each epoch, the product always whole.

    none       as prepared
    simple     mirrored half of the time; shrunk to 80 to 100 % and shifted on white
    advanced   the same, and brightness, contrast and saturation within 20 %, tilted up to 8 degrees

There is no random crop: half a chair is not the product, and its caption would be wrong. Mirrored
lettering on a picture is wrong too; furniture seldom carries any.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance

Augmentation = Literal["none", "simple", "advanced"]
_WHITE = (255, 255, 255)
_SMALLEST_SHARE = 0.8
_LARGEST_TILT_DEGREES = 8.0
_COLOUR_SPREAD = 0.2


def augment(image: Image.Image, kind: Augmentation, random: np.random.Generator) -> Image.Image:
    """The square picture changed at random, of the same size."""
    if kind == "none":
        return image
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if kind == "advanced":
        image = _recolour(_tilt(image, random), random)
    return _shift(image, random)


def _shift(image: Image.Image, random: np.random.Generator) -> Image.Image:
    side_px = image.width
    inner_px = max(1, round(side_px * random.uniform(_SMALLEST_SHARE, 1.0)))
    left, top = (int(value) for value in random.integers(0, side_px - inner_px + 1, size=2))
    canvas = Image.new("RGB", image.size, _WHITE)
    canvas.paste(image.resize((inner_px, inner_px), Image.Resampling.BILINEAR), (left, top))
    return canvas


def _tilt(image: Image.Image, random: np.random.Generator) -> Image.Image:
    degrees = random.uniform(-_LARGEST_TILT_DEGREES, _LARGEST_TILT_DEGREES)
    side_px = image.width
    wide = image.rotate(degrees, Image.Resampling.BILINEAR, expand=True, fillcolor=_WHITE)
    return wide.resize((side_px, side_px), Image.Resampling.BILINEAR)


def _recolour(image: Image.Image, random: np.random.Generator) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(random.uniform(1 - _COLOUR_SPREAD, 1 + _COLOUR_SPREAD))
    return image
