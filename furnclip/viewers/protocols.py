"""Two terminals' picture protocols, written directly: for kitty and iTerm2 without any tool.

Sources: sw.kovidgoyal.net/kitty/graphics-protocol, iterm2.com/documentation-images.html. Both take
a PNG as it is; the terminal scales it. Not tried on every terminal that claims them.
"""

from __future__ import annotations

import base64
from pathlib import Path

from PIL import Image

_CHUNK = 4096  # most base64 characters that kitty takes in one sequence


def kitty_picture(picture: Path, *, fitted_by_width: bool, cells: int) -> bytes:
    """A PNG for kitty, `cells` wide or high, its shape kept; the terminal is told not to answer."""
    data = base64.b64encode(picture.read_bytes())
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    side = "c" if fitted_by_width else "r"
    pieces = []
    for number, chunk in enumerate(chunks):
        more = int(number < len(chunks) - 1)
        # a=T: show it now, f=100: PNG, q=2: no answer, C=1: the cursor stays
        control = f"a=T,f=100,q=2,C=1,{side}={cells},m={more}" if number == 0 else f"m={more}"
        pieces.append(b"\x1b_G" + control.encode() + b";" + chunk + b"\x1b\\")
    return b"".join(pieces)


def iterm_picture(picture: Path, *, cols: int, rows: int) -> bytes:
    """A PNG for iTerm2 and those who speak its protocol, inside `cols` x `rows` cells."""
    content = picture.read_bytes()
    control = f"inline=1;size={len(content)};width={cols};height={rows};preserveAspectRatio=1"
    return b"\x1b]1337;File=" + control.encode() + b":" + base64.b64encode(content) + b"\x07"


def fits_by_width(picture: Path, width_px: int, height_px: int) -> bool:
    """Whether the picture reaches the sides of a box before its top and bottom."""
    with Image.open(picture) as image:
        return image.width * height_px >= image.height * width_px
