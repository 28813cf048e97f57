"""The colors of a product on its image, by name.

Counts the product's pixels, background and shadow taken off, by hue, saturation and brightness; follows no
paper. Do not trust it in a room, or in colored light.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from furnclip.clean.offline.reading import lexicon

Pixels = NDArray[np.int16]

_BACKGROUND_DISTANCE = 24  # RGB, 0 to 255 a channel
_PLAIN_BORDER = 0.9  # share of the border that has its usual color when the background is uniform ...
_WHITE_BORDER = 0.55  # ... or white, where the product may reach the border
_WHITE = 235  # of each channel, at least
_SHADOW_DISTANCE = 14  # between a pixel and the background made darker
_SHADOW_DEPTH = 0.4  # what a shadow leaves of the background's light, at least
_BESIDE_SHADOW = 0.3  # share of the product that must be left when shadow is taken off
_WHITE_FROM, _BLACK_TO = 195, 90  # brightness of the lit side, 0 to 255


def read_pixels(image: Image.Image, side_px: int) -> Pixels:
    """(side, side, 3), 0 to 255, without regard to the image's proportions."""
    return np.asarray(image.convert("RGB").resize((side_px, side_px)), dtype=np.int16)


def color_shares(pixels: Pixels) -> dict[str, float]:
    """Color name -> share of the product's pixels, largest first; `multicolor` leads where none does."""
    product = _product(pixels)  # (N, 3)
    counts = Counter(_names(product))
    shares = {name: count / len(product) for name, count in counts.most_common()}
    vivid = [name for name, share in shares.items() if share >= 0.12 and name not in _PLAIN]
    if len(vivid) >= 3 and max(shares.values()) < 0.4:
        return {"multicolor": 1.0, **shares}
    return shares


def _product(pixels: Pixels) -> Pixels:
    """(N, 3): the pixels without background and, where enough is left, without the shadow cast on it."""
    product = pixels[~_background(pixels)]
    if len(product) < len(pixels):  # nearly all of it looks like background: a white thing on white
        return pixels.reshape(-1, 3)
    usual = np.median(_border(pixels), axis=0)
    light = product @ usual / max(1.0, usual @ usual)  # (N,), 1 where a pixel is as bright as the background
    off = np.abs(product - light[:, None] * usual).max(axis=1)
    kept = product[(off > _SHADOW_DISTANCE) | (light >= 1) | (light <= _SHADOW_DEPTH)]
    return kept if len(kept) >= _BESIDE_SHADOW * len(product) else product


def has_plain_border(pixels: Pixels) -> bool:
    """Whether the product is cut out and not in a room: most of the border has one color."""
    border = _border(pixels)
    usual = np.median(border, axis=0)
    share = (np.abs(border - usual).max(axis=1) <= _BACKGROUND_DISTANCE).mean()
    return bool(share >= (_WHITE_BORDER if usual.min() >= _WHITE else _PLAIN_BORDER))


def _border(pixels: Pixels) -> Pixels:
    """(4 * side, 3)"""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _background(pixels: Pixels) -> NDArray[np.bool_]:
    """(H, W): pixels like the border's usual color that hang together with the border."""
    usual = np.median(_border(pixels), axis=0)
    alike: NDArray[np.bool_] = np.abs(pixels - usual).max(axis=2) <= _BACKGROUND_DISTANCE  # (H, W)
    reached = np.zeros_like(alike)
    reached[[0, -1]], reached[:, [0, -1]] = alike[[0, -1]], alike[:, [0, -1]]
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= alike
        if (grown == reached).all():
            return reached
        reached = grown


_PLAIN = frozenset({"white", "black", "gray", "beige", "brown"})


def _names(pixels: Pixels) -> list[str]:
    """The color name of each pixel, by hue, saturation and brightness."""
    high, low = pixels.max(axis=1), pixels.min(axis=1)
    spread = np.maximum(high - low, 1)
    saturation = (high - low) / np.maximum(high, 1)
    red, green, blue = pixels[:, 0], pixels[:, 1], pixels[:, 2]
    hue = np.where(
        high == red,
        (60 * (green - blue) / spread) % 360,
        np.where(high == green, 60 * (blue - red) / spread + 120, 60 * (red - green) / spread + 240),
    )
    limits, hues = zip(*lexicon()["colors"]["hues"], strict=True)
    names = np.array(hues, dtype="<U10")[np.searchsorted(limits, hue, side="right")]
    warm = (hue >= 8) & (hue < 60)
    names[((hue >= 330) | (hue < 15)) & (saturation < 0.45) & (high > 170)] = "pink"
    names[warm & (saturation < 0.45) & (high >= 150)] = "beige"
    names[warm & (saturation >= 0.18) & (high < 185) & ~((saturation > 0.75) & (high > 150))] = "brown"
    names[(hue >= 42) & (hue < 60) & (saturation > 0.6) & (high > 140)] = "yellow"
    plain = (saturation < 0.14) | (high < 50) | ((saturation < 0.25) & (high < 65))
    if plain.any():  # all of it gets one name, since shade darkens half of a white thing
        lit = float(np.quantile(high[plain], 0.6))
        names[plain] = "white" if lit >= _WHITE_FROM else "black" if lit < _BLACK_TO else "gray"
    colors: list[str] = names.tolist()  # a loop over NumPy strings loses what a signal handler raises
    return colors
