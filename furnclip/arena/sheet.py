"""The image of one trial: the query, row A and row B, in the shape of the place it is shown in.

Sheets are kept in `work/cache/arena/` as `HASH.jpg`, the few hundred that were used last; the hash is
over what is on the sheet, so that neither name nor image tells the models apart. A product whose
image cannot be read gets a cell that says so.

A rater waits for what happens here: that is why it is JPEG (encoded in a twentieth of the time of PNG,
and every viewer reads it) and why nothing is flushed to the disk.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from furnclip.arena.state import Trial
from furnclip.catalogue import content_hash
from furnclip.images import BrokenImage, letterbox, open_image
from furnclip.journal import replacing

_FORMAT = "2"
_QUALITY = 92
_JPEG_END = b"\xff\xd9"
_DECODERS = 4
MAX_SHEETS = 300  # about 30 MB
_IN_USE = 8  # sheets used last by this session: shown, prepared, or one undo away
_LABEL_SHARE = 0.35  # width of the column with A and B, in cells
_MARGIN_SHARE = 0.04  # white around every image, in cells
_MAX_PX = 1600  # a sheet's longest side; more would only slow a viewer down
_MIN_CELL_PX = 4
_INK = (90, 90, 90)
_PALE = (235, 235, 235)


@dataclass(frozen=True)
class SheetLayout:
    """Where things are on a sheet, in pixels: squares as (left, top, side)."""

    size_px: tuple[int, int]
    query: tuple[int, int, int] | None
    rows: tuple[tuple[tuple[int, int, int], ...], ...]
    labels: tuple[tuple[int, int, int], ...]


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
    tops = (top, top + side)
    return SheetLayout(
        size_px=(left + gutter + k * side, top + 2 * side),
        query=query if with_query else None,
        rows=tuple(tuple((left + gutter + column * side, y, side) for column in range(k)) for y in tops),
        labels=tuple((left, y, side) for y in tops),
    )


class Sheets:
    """Draws sheets and keeps them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._in_use: deque[Path] = deque(maxlen=_IN_USE)
        # Pillow lets other threads run while it decodes
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="thumbnails")

    def path(self, trial: Trial, *, width_px: int, height_px: int) -> Path:
        """The sheet of a trial that fits into this many pixels, drawn if it was not yet."""
        scale = min(1.0, _MAX_PX / max(width_px, height_px))
        width_px, height_px = int(width_px * scale), int(height_px * scale)
        shown = [trial.query.image, *(card.image for row in trial.results for card in row)]
        lengths = [str(len(row)) for row in trial.results]
        name = content_hash(_FORMAT, f"{width_px}x{height_px}", *lengths, *map(_version, shown))
        path = self._folder / f"{name}.jpg"
        self._in_use.append(path)
        if _is_whole(path):
            path.touch()
            return path
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path, durable=False) as file:
            sheet = self._draw(trial, width_px, height_px)
            sheet.save(file, format="JPEG", quality=_QUALITY, subsampling=0)
        self._prune()
        return path

    def _prune(self) -> None:
        """Remove the sheets that were used longest ago, and nothing that is in use here."""
        oldest_first = sorted(self._folder.iterdir(), key=_last_used)
        for path in oldest_first[:-MAX_SHEETS]:
            if path not in self._in_use:
                path.unlink(missing_ok=True)

    def _draw(self, trial: Trial, width_px: int, height_px: int) -> Image.Image:
        k = max(1, *(len(row) for row in trial.results))
        layout = arrange(width_px, height_px, k=k, with_query=trial.query.kind == "image")
        places = [(layout.query, trial.query.image)] if layout.query is not None else []
        for cells, cards in zip(layout.rows, trial.results, strict=True):
            places += [(cell, card.image) for cell, card in zip(cells, cards, strict=False)]
        frames = [_inside_margin(cell) for cell, _ in places]
        sources = [source for _, source in places]
        images = self._decoders.map(_thumbnail, sources, [side for _, _, side in frames])
        sheet = Image.new("RGB", layout.size_px, "white")
        for (left, top, _), image in zip(frames, images, strict=True):
            sheet.paste(image, (left, top))
        for label, place in zip("AB", layout.labels, strict=True):
            _write(sheet, place, label)
        return sheet


def _version(source: str) -> str:
    """Changes when an image file is replaced."""
    try:
        status = Path(source).stat()
    except (OSError, ValueError):
        return source
    return f"{source} {status.st_mtime_ns} {status.st_size}"


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another rater's session removed it
        return 0.0


def _is_whole(path: Path) -> bool:
    """Whether a sheet is there to the end; after a power cut it may be shorter."""
    try:
        return path.read_bytes().endswith(_JPEG_END)
    except FileNotFoundError:
        return False


def _inside_margin(cell: tuple[int, int, int]) -> tuple[int, int, int]:
    left, top, side = cell
    margin = int(side * _MARGIN_SHARE)
    return left + margin, top + margin, side - 2 * margin


@lru_cache(maxsize=256)  # about 20 MB of thumbnails: results come back in later queries
def _thumbnail(source: str, side_px: int) -> Image.Image:
    try:
        return letterbox(open_image(Path(source), longest_px=side_px), side_px)
    except BrokenImage:
        blank = Image.new("RGB", (side_px, side_px), _PALE)
        ImageDraw.Draw(blank).text(
            (side_px / 2, side_px / 2), "no image", fill=_INK, anchor="mm", font=_font(side_px // 6)
        )
        return blank


def _write(sheet: Image.Image, place: tuple[int, int, int], label: str) -> None:
    left, top, side = place
    center = (left + _LABEL_SHARE * side / 2, top + side / 2)
    ImageDraw.Draw(sheet).text(center, label, fill="black", anchor="mm", font=_font(int(side * 0.45)))


@lru_cache(maxsize=32)
def _font(height_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(6, height_px))
