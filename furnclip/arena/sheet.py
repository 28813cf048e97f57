"""The image of one trial: the query, row A and row B, in the shape of the place it is shown in.

Sheets lie in a folder of their own as long as the session lasts; the next one removes what a killed one left.
Neither name nor image tells the models apart. A rater waits for what happens here: that is why it is JPEG
(encoded in a twentieth of the time of PNG, and every viewer reads it), and why the next sheets are drawn
while the rater looks at this one.
"""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from furnclip.images import BrokenImage, load_square
from furnclip.journal import aside_name, sweep
from furnclip.viewers import Box, Drawing, Viewer

if TYPE_CHECKING:
    from furnclip.arena.app import Trial

_QUALITY = 92
_DECODERS = 4
_LABEL_SHARE = 0.35  # width of the column with A and B, in cells
_MARGIN_SHARE = 0.04  # white around every image, in cells
_MAX_PX = 1600  # a sheet's longest side; more would only slow a viewer down
_MIN_CELL_PX = 4
_INK, _PALE = (90, 90, 90), (235, 235, 235)
AHEAD = 2  # trials whose images are drawn before they are needed: fast raters need the second
_MAX_DRAWINGS = AHEAD + 2  # besides them the one on the screen, and the one before, for undoing
Square = tuple[int, int, int]  # left, top and side in pixels
Drawn = tuple[Drawing, Path]  # for the terminal, and the sheet that it shows


class SheetLayout(NamedTuple):
    """Where things are on a sheet, in pixels."""

    size_px: tuple[int, int]
    query: Square | None
    rows: tuple[tuple[Square, ...], tuple[Square, ...]]


def arrange(width_px: int, height_px: int, *, k: int, with_query: bool) -> SheetLayout:
    """The layout with the largest cells: the query left of both rows, or above them."""
    row_width = k + _LABEL_SHARE  # in cells
    beside = min(height_px / 2, width_px / (row_width + 2))
    above = min(height_px / 3, width_px / row_width)
    is_beside = with_query and beside >= above
    cell = max(beside, above) if with_query else min(height_px / 2, width_px / row_width)
    side = max(_MIN_CELL_PX, int(cell))
    gutter = int(_LABEL_SHARE * side)
    left = 2 * side if is_beside else 0
    top = side if with_query and not is_beside else 0
    query = (0, 0, 2 * side) if is_beside else (gutter, 0, side)
    upper, lower = (
        tuple((left + gutter + column * side, y, side) for column in range(k)) for y in (top, top + side)
    )
    size_px = (left + gutter + k * side, top + 2 * side)
    return SheetLayout(size_px, query if with_query else None, (upper, lower))


def draw_sheet(trial: Trial, path: Path, *, width_px: int, height_px: int) -> None:
    """Write the sheet of a trial that fits into this many pixels."""
    scale = min(1.0, _MAX_PX / max(width_px, height_px))
    k = max(1, *(len(row) for row in trial.results))
    with_query = trial.query.kind == "image"
    layout = arrange(int(width_px * scale), int(height_px * scale), k=k, with_query=with_query)
    shown = [(layout.query, trial.query.image)] if layout.query is not None else []
    for row, cards in zip(layout.rows, trial.results, strict=True):
        shown += [(cell, card.image) for cell, card in zip(row, cards, strict=False)]
    sides = [side - 2 * int(side * _MARGIN_SHARE) for (_, _, side), _ in shown]
    with ThreadPoolExecutor(_DECODERS) as decoders:  # Pillow lets other threads run while it decodes
        images = list(decoders.map(thumbnail, [source for _, source in shown], sides))
    sheet = Image.new("RGB", layout.size_px, "white")
    for ((left, top, side), _), image in zip(shown, images, strict=True):
        margin = (side - image.width) // 2
        sheet.paste(image, (left + margin, top + margin))
    for label, ((left, top, side), *_) in zip("AB", layout.rows, strict=True):
        _write(sheet, label, (left - _LABEL_SHARE * side / 2, top + side / 2), int(side * 0.45), "black")
    sheet.save(path, format="JPEG", quality=_QUALITY, subsampling=0)


@lru_cache(maxsize=256)  # about 20 MB of thumbnails: results come back in later queries
def thumbnail(source: str, side_px: int) -> Image.Image:
    """The image as a square; one that cannot be read is a square that says so."""
    try:
        return load_square(Path(source), side_px)
    except BrokenImage:
        blank = Image.new("RGB", (side_px, side_px), _PALE)
        _write(blank, "no image", (side_px / 2, side_px / 2), side_px // 6, _INK)
        return blank


def _write(
    image: Image.Image, text: str, center: tuple[float, float], height_px: int, ink: str | tuple[int, ...]
) -> None:
    font = ImageFont.load_default(max(6, height_px))
    ImageDraw.Draw(image).text(center, text, fill=ink, anchor="mm", font=font)


class DrawingQueue(AbstractContextManager["DrawingQueue"]):
    """Draws sheets in the background, one at a time; keeps those shown last and those prepared."""

    def __init__(self, viewer: Viewer, cache: Path) -> None:
        self.viewer = viewer
        sweep(cache)
        self._folder = aside_name(cache / "sheets")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._paths = (self._folder / f"{number:04d}.jpg" for number in count(1))
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._started: dict[tuple[Trial, Box], Future[Drawn]] = {}

    def __exit__(self, *exception: object) -> None:
        self.viewer.stopped.set()
        self._worker.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, trial: Trial, box: Box, *, ahead: bool = False) -> Future[Drawn]:
        """The drawing of a trial and its sheet, begun earlier, or now before all that were begun `ahead`."""
        key = (trial, box)
        if key not in self._started:
            if not ahead:
                self._started = {each: drawn for each, drawn in self._started.items() if not drawn.cancel()}
            while len(self._started) >= _MAX_DRAWINGS:
                self._started.pop(next(iter(self._started))).cancel()
            self._started[key] = self._worker.submit(self._draw, trial, box)
        return self._started[key]

    def _draw(self, trial: Trial, box: Box) -> Drawn:
        (width_px, height_px), sheet = box.size_px, next(self._paths)
        draw_sheet(trial, sheet, width_px=width_px, height_px=height_px)
        return self.viewer.draw(sheet, box), sheet
