"""The fallback that always works: a picture as coloured upper half blocks, with Pillow alone.

A character cell is about twice as high as wide, so half of one is a square pixel: the upper half is
the character's colour, the lower half its background.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

_RESET = "\x1b[0m"


def half_blocks(image: Image.Image, *, cols: int, rows: int, colors: str = "truecolor") -> list[str]:
    """Lines of half blocks that show `image` inside `cols` x `rows` cells, its shape kept.

    `colors` is `truecolor` or `256`. Every line ends with a reset.
    """
    scale = min(cols / image.width, 2 * rows / image.height)
    width = max(1, min(cols, round(image.width * scale)))
    height = max(1, min(2 * rows, round(image.height * scale)))
    fitted = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    pixels = np.asarray(fitted)  # (H, W, 3)
    encode = _rgb if colors == "truecolor" else _cube
    return [_line(pixels[top : top + 2], encode) for top in range(0, height, 2)]


def _line(pixels: npt.NDArray[np.uint8], encode: Callable[[int, int, int], str]) -> str:
    """One line of cells from one or two rows of pixels, (1 or 2, W, 3)."""
    cells: list[str] = []
    previous = ""
    for column in pixels.transpose(1, 0, 2).tolist():
        style = ";".join(
            f"{ground};{encode(*pixel)}" for ground, pixel in zip((38, 48), column, strict=False)
        )
        # A run of equal cells needs one escape: product pictures are mostly white.
        cells.append("▀" if style == previous else f"\x1b[{style}m▀")
        previous = style
    return "".join(cells) + _RESET


def _rgb(red: int, green: int, blue: int) -> str:
    return f"2;{red};{green};{blue}"


def _cube(red: int, green: int, blue: int) -> str:
    """The nearest of xterm's 6 x 6 x 6 cube, or of its 24 greys for a colour without a tint."""
    if max(red, green, blue) - min(red, green, blue) < 10:
        grey = (red + green + blue) // 3
        if 8 <= grey <= 243:
            return f"5;{232 + (grey - 3) // 10}"
    levels = [0 if level < 48 else 1 if level < 115 else (level - 35) // 40 for level in (red, green, blue)]
    return f"5;{16 + 36 * levels[0] + 6 * levels[1] + levels[2]}"
