"""Opening images from strangers: safe, upright, RGB, on white; and the square that CLIP sees.

Input: a file or its bytes. Output: an RGB image, or `BrokenImage` with a short stable `reason`:

    missing, outside, not-a-file    there is no such file inside the image folder
    empty, too-many-bytes           nothing in it, or more than `MAX_BYTES`
    not-a-picture                   none of `FORMATS`, whatever its name says
    too-many-pixels, too-small      a decompression bomb, or a tracking pixel
    truncated                       the header is fine, the image stops in the middle or is damaged
    no-memory                       this process may not take the memory that the image needs

Large JPEGs are decoded at a fraction of their size; color profiles are not applied.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

from PIL import Image, ImageDraw, ImageFile, ImageOps, UnidentifiedImageError

from furnclip.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_PLUGINS = {"WEBP": "WebP"}  # where the plugin is not called as the format, capitalized
MAX_BYTES = 100 * 2**20
MAX_PIXELS = 80_000_000
_MAX_PIXELS_OF = {"WEBP": 40_000_000, "AVIF": 40_000_000}  # their decoders keep two or three whole copies
MIN_SIDE_PX = 8
_STRIP_PIXELS = 4_000_000  # flattened at a time; a whole image of `MAX_PIXELS` would take four copies
_REDUCING_GAP = 2.0
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
_LABEL_PX = 16  # the line of text under an image of a contact sheet
WHITE = (255, 255, 255)
_REPLACE = "use another image, or leave this one out"

# The decoders of Pillow answer damaged data with any of these.
_DECODER_ERRORS: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, ArithmeticError, LookupError, EOFError),
    *(TypeError, AttributeError, struct.error),
)
# The filter under which Pillow's own modules may warn without anybody hearing it.
_QUIET_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImage(InputError):
    """An image that cannot be used; `reason` is a short stable word for counting."""

    def __init__(self, reason: str, detail: str, *, hint: str = _REPLACE) -> None:
        super().__init__(detail, hint=hint)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BrokenImage], tuple[str, str]]:
        # the default would rebuild it from the message alone when it crosses a process
        return BrokenImage, (self.reason, self.message)


def open_image(
    source: Path | bytes, *, longest_px: int | None = None, name: str = "the image"
) -> Image.Image:
    """The image, upright, RGB, alpha on white, first frame.

    `longest_px`: scale down so that the longest side has at most this many pixels; large JPEGs are
    then never decoded in full. `name`: what an error calls bytes. Raises `BrokenImage`.
    """
    data = read_bytes(source) if isinstance(source, Path) else source
    name = f"`{source.name}`" if isinstance(source, Path) else name
    image = _identify(data, name)
    try:
        return _upright_rgb(image, longest_px)
    except MemoryError:
        detail = f"{name} has {image.width} x {image.height} pixels, too many for the memory left"
        raise BrokenImage("no-memory", detail, hint="use fewer workers or a smaller image") from None
    except _DECODER_ERRORS as error:
        raise BrokenImage("truncated", f"{name} is damaged or cut off ({error})") from None


def image_format(data: bytes, *, name: str = "what was sent") -> tuple[str, bool]:
    """The format of an image, and whether its last bytes say that it is whole. Raises `BrokenImage`."""
    kind = _identify(data, name).format or ""
    end = _ENDS.get(kind)
    return kind, end is not None and data.rstrip(b"\0\r\n ").endswith(end)


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file. Raises `BrokenImage` where there are none, or too many."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise BrokenImage("not-a-file", f"`{path.name}` is not a file")
        size_bytes = path.stat().st_size
        if size_bytes > MAX_BYTES:
            detail = f"`{path.name}` has {size_bytes:,} bytes, at most {MAX_BYTES:,}"
            raise BrokenImage("too-many-bytes", detail)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BrokenImage("missing", f"`{path.name}` cannot be read: {detail.lower()}") from None


def _identify(data: bytes, name: str) -> ImageFile.ImageFile:
    """The lazily opened image, after looking at nothing but its header."""
    # Damaged metadata makes Pillow warn; what it means is judged here. `warnings.catch_warnings` restores the
    # filters in the wrong order where there are several threads, so one is put in, and again if taken out.
    if _QUIET_PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET_PILLOW[3].pattern)
    if not data:
        raise BrokenImage("empty", f"{name} is empty")
    if len(data) > MAX_BYTES:
        raise BrokenImage("too-many-bytes", f"{name} has {len(data):,} bytes, at most {MAX_BYTES:,}")
    try:
        image = Image.open(io.BytesIO(data), formats=_known_formats())
    except UnidentifiedImageError:
        raise BrokenImage("not-a-picture", f"{name} is not an image ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise BrokenImage("too-many-pixels", f"{name} has too many pixels, at most {MAX_PIXELS:,}") from None
    except _DECODER_ERRORS as error:
        raise BrokenImage("truncated", f"{name} is damaged or cut off ({error})") from None
    width_px, height_px = image.size
    most = _MAX_PIXELS_OF.get(image.format or "", MAX_PIXELS)
    if width_px * height_px > most:
        detail = f"{name} has {width_px} x {height_px} pixels, at most {most:,} in all"
        raise BrokenImage("too-many-pixels", detail)
    if min(width_px, height_px) < MIN_SIDE_PX:
        detail = f"{name} has {width_px} x {height_px} pixels, at least {MIN_SIDE_PX} a side"
        raise BrokenImage("too-small", detail)
    return image


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow can read; all plugins would take more time and address space."""
    for name in FORMATS:
        with suppress(ImportError):
            import_module(f"PIL.{_PLUGINS.get(name, name.capitalize())}ImagePlugin")
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _upright_rgb(image: ImageFile.ImageFile, longest_px: int | None) -> Image.Image:
    turn: Image.Transpose | None = None
    with suppress(*_DECODER_ERRORS):  # unreadable metadata says nothing against the image
        # read now: Pillow forgets it for some formats
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    if longest_px is not None:
        # libjpeg halves the image while decoding, down to the last size that is large enough
        image.draft("RGB", _fitted(image.size, longest_px))
    image.load()
    if longest_px is not None and max(image.size) > longest_px:
        flat = _scaled_rgb(image, _fitted(image.size, longest_px))
    else:
        flat = _flat_rgb(image, _full_scale(image))
    return flat if turn is None else flat.transpose(turn)


def _scaled_rgb(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image flattened and scaled down; a large one in strips: the same pixels, less memory."""
    x_factor, y_factor = (
        int(side / wanted / _REDUCING_GAP) or 1 for side, wanted in zip(image.size, size, strict=True)
    )
    full_scale = _full_scale(image)
    if image.width * image.height <= _STRIP_PIXELS or x_factor * y_factor == 1:
        flat = _flat_rgb(image, full_scale)
        return flat.resize(size, Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP)
    reduced = Image.new("RGB", (-(-image.width // x_factor), -(-image.height // y_factor)))
    step_px = max(1, _STRIP_PIXELS // image.width // y_factor) * y_factor
    for top in range(0, image.height, step_px):
        strip = image.crop((0, top, image.width, min(top + step_px, image.height)))
        reduced.paste(_flat_rgb(strip, full_scale).reduce((x_factor, y_factor)), (0, top // y_factor))
    box = (0.0, 0.0, image.width / x_factor, image.height / y_factor)
    return reduced.resize(size, Image.Resampling.BICUBIC, box=box)


def _flat_rgb(image: Image.Image, full_scale: float) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):  # of 16 or 32 bits: plain `convert` would clip at 255
        gray = image.convert("F").point(lambda value: value * (255.0 / full_scale) + 0.0)
        return gray.convert("L").convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, (*WHITE, 255)), clear).convert("RGB")
    return image.convert("RGB")


def _full_scale(image: Image.Image) -> float:
    """What stands for white."""
    if image.mode == "F":
        _, brightest = image.getextrema()
        return 255.0 if float(str(brightest)) > 1 else 1.0
    return 65535.0 if image.mode.startswith("I") else 255.0


def _fitted(size: tuple[int, int], longest_px: int) -> tuple[int, int]:
    """`size` scaled so that its longest side is `longest_px`, never a side of 0."""
    scale = longest_px / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def letterbox(image: Image.Image, side_px: int) -> Image.Image:
    """The whole image, scaled up or down, in the middle of a white square."""
    fitted = _fitted(image.size, side_px)
    if image.size != fitted:
        image = image.resize(fitted, Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP)
    if fitted == (side_px, side_px):
        return image
    square = Image.new("RGB", (side_px, side_px), WHITE)
    square.paste(image, ((side_px - fitted[0]) // 2, (side_px - fitted[1]) // 2))
    return square


def load_square(source: Path | bytes, side_px: int) -> Image.Image:
    """Open and letterbox: what every model of furnclip gets to see. Raises `BrokenImage`."""
    return letterbox(open_image(source, longest_px=side_px), side_px)


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """JPEG bytes; the same image always gives the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def contact_sheet(
    rows: Sequence[Sequence[tuple[Image.Image | None, str]]], *, cell_px: int = 160
) -> Image.Image:
    """A grid of images, each with a line of text under it; None draws an empty frame."""
    columns = max(map(len, rows), default=1)
    height_px = cell_px + _LABEL_PX
    inner_px = cell_px - 4
    sheet = Image.new("RGB", (max(1, columns) * cell_px, max(1, len(rows)) * height_px), WHITE)
    draw = ImageDraw.Draw(sheet)
    for row_index, row in enumerate(rows):
        for column_index, (image, label) in enumerate(row):
            left, top = column_index * cell_px + 2, row_index * height_px + 2
            if image is None:
                frame = (left, top, left + inner_px - 1, top + inner_px - 1)
                draw.rectangle(frame, outline=(160, 160, 160))
            else:
                fitted = ImageOps.pad(image.convert("RGB"), (inner_px, inner_px), color=WHITE)
                sheet.paste(fitted, (left, top))
            text = " ".join(label.split())
            while text and draw.textlength(text) > inner_px:
                text = text[:-1]
            draw.text((left, top + cell_px - 1), text, fill=(0, 0, 0))
    return sheet
