"""Pictures from strangers: what can be read looks right, what cannot be read has a reason."""

from __future__ import annotations

import io
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from furnclip.images import (
    FORMATS,
    MAX_BYTES,
    BrokenImage,
    contact_sheet,
    encode_jpeg,
    letterbox,
    load_square,
    open_image,
)

RED = (200, 30, 20)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def drawn(size: tuple[int, int] = (400, 300), mode: str = "RGB") -> Image.Image:
    """A red top left quarter on blue, so that turning it shows."""
    image = Image.new("RGB", size, (20, 40, 200))
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2 - 1, size[1] // 2 - 1), fill=RED)
    return image.convert(mode)


def reason_of(source: Path | bytes) -> str:
    with pytest.raises(BrokenImage) as caught:
        open_image(source)
    assert caught.value.hint
    return caught.value.reason


def close(pixel: object, wanted: tuple[int, int, int], tolerance: int = 12) -> bool:
    return bool(np.abs(np.array(pixel, dtype=int) - wanted).max() <= tolerance)


# --- what can be read


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind: str) -> None:
    try:
        data = encoded(drawn(), kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {kind}")
    image = open_image(data, longest_px=100)
    assert (image.mode, image.size) == ("RGB", (100, 75))
    assert close(image.getpixel((20, 20)), RED, 40)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("L", (60, 40), 128).convert(mode if mode not in ("I;16", "I", "F") else "L")
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.full((40, 60), 128 * 257, dtype=np.uint16)).convert(mode)
    if mode == "F":
        image = Image.fromarray(np.array([[0.5, 1.0]] * 20, dtype=np.float32)).resize(
            (60, 40), Image.Resampling.BOX
        )
    found = open_image(encoded(image, "TIFF"))
    assert found.mode == "RGB"
    if mode != "1":
        assert close(found.getpixel((3, 3)), (128, 128, 128), 4)


def test_deep_grey_keeps_its_shades() -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (16, 1))
    found = np.asarray(open_image(encoded(Image.fromarray(ramp), "PNG")))[8, :, 0].astype(int)
    assert np.abs(found - ramp[8] / 257).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("longest_px", [None, 50])
def test_a_picture_stands_upright(orientation: int, longest_px: int | None) -> None:
    turned = drawn((400, 200))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a camera then undoes
    if orientation in undo:
        turned = turned.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = open_image(encoded(turned, "JPEG", exif=exif, quality=95), longest_px=longest_px)
    assert found.width == 2 * found.height
    assert close(found.getpixel((found.width // 8, found.height // 8)), RED, 30)
    assert not close(found.getpixel((found.width * 7 // 8, found.height * 7 // 8)), RED, 60)


def test_clear_parts_are_white_in_every_way_a_file_can_say_it() -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([10, 20, 30] * 256)
    for data in (
        encoded(clear, "PNG"),
        encoded(clear, "WEBP", lossless=True),
        encoded(Image.new("LA", (40, 40), (0, 0)), "PNG"),
        encoded(palette, "PNG", transparency=0),
        encoded(palette, "GIF", transparency=0),
        encoded(Image.new("RGB", (40, 40), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        encoded(Image.new("L", (40, 40), 7), "PNG", transparency=7),
    ):
        assert open_image(data).getpixel((20, 20)) == (255, 255, 255)


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (40, 40), color) for color in (RED, (0, 0, 0))]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert close(open_image(data).getpixel((20, 20)), RED, 20), kind


def test_a_large_photo_is_not_decoded_in_full_and_looks_the_same() -> None:
    photo = drawn((3000, 2400)).resize((3000, 2400), Image.Resampling.BICUBIC)
    data = encoded(photo, "JPEG", quality=90)
    exact = photo.resize((224, 179), Image.Resampling.LANCZOS)
    found = open_image(data, longest_px=224)
    assert found.size == (224, 179)
    assert np.abs(np.asarray(found, dtype=int) - np.asarray(exact)).mean() < 2


def test_damaged_metadata_says_nothing_against_the_picture() -> None:
    data = encoded(drawn(), "JPEG")
    broken = data[:2] + b"\xff\xe1" + struct.pack(">H", 20) + b"Exif\0\0MM\0*" + b"\xff" * 8 + data[2:]
    assert open_image(broken).size == (400, 300)


def test_many_threads_open_pictures_and_the_process_still_hears_warnings() -> None:
    open_image(encoded(drawn(), "PNG"))
    before = list(warnings.filters)
    damaged = encoded(drawn((40, 30)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0garbage")
    with ThreadPoolExecutor(8) as threads:
        sizes = {image.size for image in threads.map(open_image, [damaged] * 200)}
    assert sizes == {(40, 30)}
    assert warnings.filters == before


# --- what cannot be read


def test_each_kind_of_broken_has_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    assert reason_of(path) == "missing"
    assert reason_of(tmp_path) == "not-a-file"
    path.write_bytes(b"")
    assert reason_of(path) == "empty"
    path.write_text("<html>not found</html>")
    assert reason_of(path) == "not-a-picture"
    path.write_bytes(encoded(drawn(), "JPEG")[:2000])
    assert reason_of(path) == "truncated"
    path.write_bytes(encoded(Image.new("RGB", (1, 1)), "GIF"))
    assert reason_of(path) == "too-small"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert reason_of(path) == "too-many-bytes"
    assert reason_of(bytes(MAX_BYTES + 1)) == "too-many-bytes"


def test_a_bomb_is_refused_by_its_header() -> None:
    assert reason_of(png_header(20_000, 20_000)) == "too-many-pixels"
    assert reason_of(png_header(9_500, 9_500)) == "too-many-pixels"  # Pillow would only warn
    assert reason_of(png_header(2_000_000_000, 2)) == "too-many-pixels"


def test_formats_that_are_decoded_in_copies_have_a_lower_limit() -> None:
    picture = encoded(Image.new("RGB", (7000, 6000)), "WEBP", quality=1, method=0)
    assert reason_of(picture) == "too-many-pixels"


MEASURE = """
import resource, sys
from furnclip.images import BrokenImage, load_square
limit_mb = int(sys.argv[2])
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
if limit_mb:
    resource.setrlimit(resource.RLIMIT_AS, (used + limit_mb * 2**20,) * 2)
before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_square(open(sys.argv[1], "rb").read(), 224)
    print("read")
except BrokenImage as error:
    print(error.reason)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) // 1024)
"""


def measured(path: Path, limit_mb: int = 0) -> tuple[str, int]:
    """(`read` or the reason, megabytes it took) of a picture in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(limit_mb)], capture_output=True, text=True, check=True
    )
    outcome, memory_mb = done.stdout.split()
    return outcome, int(memory_mb)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("CMYK", "TIFF")])
def test_the_largest_square_allowed_takes_little_more_than_itself(
    tmp_path: Path, mode: str, kind: str
) -> None:
    path = tmp_path / "large"
    options = (
        {"compress_level": 1} if kind == "PNG" else {"compression": "packbits"} if mode == "CMYK" else {}
    )
    Image.new(mode, (8900, 8900), None).save(path, kind, **options)  # type: ignore[arg-type]
    outcome, memory_mb = measured(path)
    assert outcome == "read"
    assert memory_mb < 480  # 302 for four bytes a pixel


@pytest.mark.parametrize("limit_mb", [10, 40, 65])
def test_too_little_address_space_is_a_reason(tmp_path: Path, limit_mb: int) -> None:
    path = tmp_path / "large.png"
    Image.new("RGBA", (4000, 4000)).save(path, compress_level=1)
    assert measured(path, limit_mb)[0] == "no-memory"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("size", [(2600, 1801), (401, 11_000)])
def test_strips_give_the_pixels_of_the_whole(mode: str, size: tuple[int, int]) -> None:
    image = drawn(size).resize((size[0] // 7, size[1] // 7)).resize(size)  # with edges that are not sharp
    image = image.convert("L").convert(mode) if mode in ("I;16", "I", "F") else image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(size))
    content = encoded(image, "PNG" if mode not in ("CMYK", "F", "I") else "TIFF")
    whole = open_image(content)
    small = whole.resize(
        (max(1, round(size[0] * 224 / max(size))), round(size[1] * 224 / max(size))),
        Image.Resampling.BICUBIC,
        reducing_gap=2.0,
    )
    assert np.array_equal(np.asarray(open_image(content, longest_px=224)), np.asarray(small))


def png_header(width_px: int, height_px: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def test_a_format_outside_the_list_is_refused_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(drawn(), "EPS"))  # Pillow would start Ghostscript for it
    assert reason_of(path) == "not-a-picture"


def test_a_broken_image_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(BrokenImage("truncated", "it is cut off")))
    assert (error.reason, error.message) == ("truncated", "it is cut off")


SEEDS = [encoded(drawn((64, 48)), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")]


@given(st.sampled_from(SEEDS), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_a_mutated_picture_is_a_picture_or_a_broken_image(seed: bytes, number: int) -> None:
    try:
        image = open_image(mutated(seed, random.Random(number)), longest_px=32)
    except BrokenImage:
        return
    assert (image.mode, max(image.size) <= 32) == ("RGB", True)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, or a part cut out, doubled or cut off."""
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        start, length = chance.randrange(len(damaged)), chance.randint(1, 40)
        match chance.randrange(5):
            case 0 | 1:
                damaged[start] = chance.randrange(256)
            case 2:
                del damaged[start : start + length]
            case 3:
                damaged[start:start] = damaged[start : start + length]
            case 4:
                damaged[start : start + 4] = chance.randbytes(4)
        if len(damaged) < 4:
            break
    return bytes(damaged)


# --- the square


@given(st.integers(8, 700), st.integers(8, 700), st.integers(8, 256))
@settings(max_examples=60, deadline=None)
def test_a_square_holds_the_whole_picture_in_the_middle(width_px: int, height_px: int, side_px: int) -> None:
    square = letterbox(Image.new("RGB", (width_px, height_px), RED), side_px)
    assert square.size == (side_px, side_px)
    pixels = np.asarray(square)
    assert tuple(pixels[(side_px - 1) // 2, (side_px - 1) // 2]) == RED
    inked = (pixels != 255).any(axis=2)
    rows, columns = inked.any(axis=1).sum(), inked.any(axis=0).sum()
    assert max(rows, columns) == side_px
    assert (
        abs(min(rows, columns) - max(1, side_px * min(width_px, height_px) / max(width_px, height_px))) <= 1
    )


def test_the_same_picture_gives_the_same_square_from_a_file_and_from_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(drawn(), "JPEG"))
    first, second = load_square(path, 224), load_square(path.read_bytes(), 224)
    assert encode_jpeg(first, 95) == encode_jpeg(second, 95)


def test_a_contact_sheet_has_a_cell_for_each_picture_and_an_empty_frame_for_none() -> None:
    sheet = contact_sheet([[(drawn(), "a" * 200), (None, "missing")], [(drawn(), "b")]], cell_px=100)
    assert sheet.size == (200, 232)
    assert close(sheet.getpixel((20, 30)), RED, 30)
    assert sheet.getpixel((150, 50)) == (255, 255, 255)
