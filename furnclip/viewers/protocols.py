"""Two terminals' picture protocols, written directly: for kitty and iTerm2 without any tool.

Sources: sw.kovidgoyal.net/kitty/graphics-protocol, iterm2.com/documentation-images.html. iTerm2 takes
the file as it is, kitty only a PNG; the terminal scales it. Not tried on every terminal that claims
them.
"""

from __future__ import annotations

import base64
import io
import zlib
from pathlib import Path

from PIL import Image

_CHUNK = 4096  # most base64 characters that kitty takes in one sequence
_PNG_START = b"\x89PNG\r\n\x1a\n"


def kitty_picture(picture: Path, *, fitted_by_width: bool, cells: int) -> bytes:
    """A picture for kitty, `cells` wide or high, its shape kept; the terminal is told not to answer."""
    data = base64.b64encode(_as_png(picture))
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    side = "c" if fitted_by_width else "r"
    pieces = []
    for number, chunk in enumerate(chunks):
        more = int(number < len(chunks) - 1)
        # a=T: show it now, f=100: PNG, q=2: no answer, C=1: the cursor stays
        control = f"a=T,f=100,q=2,C=1,{side}={cells},m={more}" if number == 0 else f"m={more}"
        pieces.append(b"\x1b_G" + control.encode() + b";" + chunk + b"\x1b\\")
    return b"".join(pieces)


def _as_png(picture: Path) -> bytes:
    content = picture.read_bytes()
    if content.startswith(_PNG_START):
        return content
    encoded = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        # filtered lines and runs only: faster and, for white margins, smaller than level 1 of the usual
        image.save(encoded, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return encoded.getvalue()


def iterm_picture(picture: Path, *, cols: int, rows: int) -> bytes:
    """A picture for iTerm2 and those who speak its protocol, inside `cols` x `rows` cells."""
    content = picture.read_bytes()
    control = f"inline=1;size={len(content)};width={cols};height={rows};preserveAspectRatio=1"
    return b"\x1b]1337;File=" + control.encode() + b":" + base64.b64encode(content) + b"\x07"


def fits_by_width(picture: Path, width_px: int, height_px: int) -> bool:
    """Whether the picture reaches the sides of a box before its top and bottom."""
    with Image.open(picture) as image:
        return image.width * height_px >= image.height * width_px
