"""Showing one image file at the cursor: for `furnclip search --preview` and `furnclip doctor`."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from PIL import Image, ImageDraw

from furnclip.images import open_image
from furnclip.journal import replacing
from furnclip.viewers.detection import Plan, detect
from furnclip.viewers.running import Box, Drawing, Viewer
from furnclip.viewers.template import ViewerSetting

_PREVIEW_PX = 1024


def show_image(
    path: Path, viewer: ViewerSetting | Plan | Viewer = "auto", *, cache: Path, cols: int = 0, rows: int = 0
) -> Drawing:
    """What draws the image at the cursor, for `console.show_bytes` to write.

    `viewer`: a setting, a plan, or a `Viewer` that remembers failures over several images. `cache`:
    folder for a harmless copy, since old viewers know neither WebP nor odd names. `cols` and `rows`
    are the maximum size in cells; 0 chooses for this terminal. Raises `BrokenImage` for an image that
    cannot be read.
    """
    if not isinstance(viewer, Viewer):
        viewer = Viewer(viewer if isinstance(viewer, Plan) else detect(viewer))
    if not viewer.draws:
        return Drawing(b"", "none")
    window = shutil.get_terminal_size()
    box = Box(
        cols=cols or max(10, int(window.columns * 0.6)),
        rows=rows or max(5, window.lines // 2),
        window_cols=window.columns,
        window_rows=window.lines,
    )
    return viewer.draw(preview_copy(path, cache), box, original=path)


def preview_copy(path: Path, cache: Path) -> Path:
    """A PNG of at most 1024 pixels under a name of our own, made once; only we can read the folder."""
    source = path.absolute()
    stamp = f"{source}\0{source.stat().st_mtime_ns}\0{source.stat().st_size}"
    copy = cache / f"{hashlib.sha256(stamp.encode()).hexdigest()[:24]}.png"
    if not copy.is_file():
        image = open_image(source, longest_px=_PREVIEW_PX)
        image.thumbnail((_PREVIEW_PX, _PREVIEW_PX))
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(copy) as file:
            image.save(file, format="PNG", compress_level=1)
    return copy


def test_card(folder: Path) -> Path:
    """A card with color bars, a gray ramp and a circle: round and in order, or the viewer is wrong."""
    card = Image.new("RGB", (480, 240), "white")
    draw = ImageDraw.Draw(card)
    for number, color in enumerate(("red", "yellow", "lime", "cyan", "blue", "magenta")):
        draw.rectangle((number * 80, 0, number * 80 + 79, 119), fill=color)
    for x in range(480):
        draw.line((x, 120, x, 239), fill=(x * 255 // 479,) * 3)
    draw.ellipse((150, 30, 329, 209), outline="black", width=8)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "test-card.png"
    with replacing(path) as file:
        card.save(file, format="PNG")
    return path
