"""The picture of one trial: the query, row A and row B, in the shape of the place it is shown in.

Sheets are kept in `work/cache/arena/` as `HASH.png`; the hash is over what is on the sheet, so that
neither name nor picture tells the models apart. A product whose picture cannot be read gets a cell
that says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from furnclip.arena.state import Trial
from furnclip.catalogue import content_hash
from furnclip.images import BrokenImage, letterbox, open_image
from furnclip.journal import replacing

_FORMAT = "1"
_LABEL_SHARE = 0.35  # width of the column with A and B, in cells
_MARGIN_SHARE = 0.04  # white around every picture, in cells
_MOST_PX = 1600  # a sheet's longest side; more would only slow a viewer down
_SMALLEST_CELL_PX = 4
_INK = (90, 90, 90)
_PALE = (235, 235, 235)


@dataclass(frozen=True)
class Layout:
    """Where things are on a sheet, in pixels: squares as (left, top, side)."""

    size_px: tuple[int, int]
    query: tuple[int, int, int] | None
    rows: tuple[tuple[tuple[int, int, int], ...], ...]
    labels: tuple[tuple[int, int, int], ...]


def arrange(width_px: int, height_px: int, *, k: int, with_query: bool) -> Layout:
    """The layout with the largest cells: the query left of both rows, or above them."""
    row_width = k + _LABEL_SHARE  # in cells
    if not with_query:
        return _stacked(min(height_px / 2, width_px / row_width), k, query_rows=0)
    beside = min(height_px / 2, width_px / (2 + row_width))
    above = min(height_px / 3, width_px / row_width)
    return _stacked(above, k, query_rows=1) if above > beside else _side_by_side(beside, k)


def _stacked(cell: float, k: int, *, query_rows: int) -> Layout:
    side = max(_SMALLEST_CELL_PX, int(cell))
    gutter = int(_LABEL_SHARE * side)
    size = (gutter + k * side, (2 + query_rows) * side)
    query = (gutter, 0, side) if query_rows else None
    return _layout(size, query, side, left=0, top=query_rows * side, k=k)


def _side_by_side(cell: float, k: int) -> Layout:
    side = max(_SMALLEST_CELL_PX, int(cell))
    gutter = int(_LABEL_SHARE * side)
    return _layout(
        (2 * side + gutter + k * side, 2 * side), (0, 0, 2 * side), side, left=2 * side, top=0, k=k
    )


def _layout(
    size_px: tuple[int, int],
    query: tuple[int, int, int] | None,
    side: int,
    *,
    left: int,
    top: int,
    k: int,
) -> Layout:
    gutter = int(_LABEL_SHARE * side)
    rows = tuple(
        tuple((left + gutter + column * side, top + row * side, side) for column in range(k))
        for row in (0, 1)
    )
    labels = tuple((left, top + row * side, side) for row in (0, 1))
    return Layout(size_px, query, rows, labels)


class Sheets:
    """Draws sheets and keeps them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, trial: Trial, *, width_px: int, height_px: int) -> Path:
        """The sheet of a trial that fits into this many pixels, drawn if it was not yet."""
        scale = min(1.0, _MOST_PX / max(width_px, height_px))
        width_px, height_px = int(width_px * scale), int(height_px * scale)
        shown = [trial.query.image, *(card.image for row in trial.results for card in row)]
        lengths = [str(len(row)) for row in trial.results]
        name = content_hash(_FORMAT, f"{width_px}x{height_px}", *lengths, *shown)
        path = self._folder / f"{name}.png"
        if not path.is_file():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(path) as file:
                # level 1: a sheet is read once or twice, a rater waits for it now
                _draw(trial, width_px, height_px).save(file, format="PNG", compress_level=1)
        return path


def _draw(trial: Trial, width_px: int, height_px: int) -> Image.Image:
    k = max(1, *(len(row) for row in trial.results))
    has_picture = trial.query.kind == "image"
    layout = arrange(width_px, height_px, k=k, with_query=has_picture)
    sheet = Image.new("RGB", layout.size_px, "white")
    if layout.query is not None:
        _paste(sheet, layout.query, trial.query.image)
    for cells, cards in zip(layout.rows, trial.results, strict=True):
        for cell, card in zip(cells, cards, strict=False):
            _paste(sheet, cell, card.image)
    for label, place in zip("AB", layout.labels, strict=True):
        _write(sheet, place, label)
    return sheet


def _paste(sheet: Image.Image, cell: tuple[int, int, int], source: str) -> None:
    left, top, side = cell
    margin = int(side * _MARGIN_SHARE)
    thumbnail = _thumbnail(source, side - 2 * margin)
    sheet.paste(thumbnail, (left + margin, top + margin))


@lru_cache(maxsize=256)  # about 20 MB of thumbnails: results come back in later queries
def _thumbnail(source: str, side_px: int) -> Image.Image:
    try:
        return letterbox(open_image(Path(source), longest_px=side_px), side_px)
    except BrokenImage:
        blank = Image.new("RGB", (side_px, side_px), _PALE)
        ImageDraw.Draw(blank).text(
            (side_px / 2, side_px / 2), "no picture", fill=_INK, anchor="mm", font=_font(side_px // 6)
        )
        return blank


def _write(sheet: Image.Image, place: tuple[int, int, int], label: str) -> None:
    left, top, side = place
    centre = (left + _LABEL_SHARE * side / 2, top + side / 2)
    ImageDraw.Draw(sheet).text(centre, label, fill="black", anchor="mm", font=_font(int(side * 0.45)))


@lru_cache(maxsize=32)
def _font(height_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(6, height_px))
