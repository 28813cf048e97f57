"""The hits as one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from furnclip.images import BrokenImage, contact_sheet, encode_jpeg, open_image
from furnclip.journal import write_bytes
from furnclip.search.searcher import Hit

_CELL_PX = 200
_COLUMNS = 5


def write_preview(hits: Sequence[Hit], images: Path, target: Path) -> Path:
    """A contact sheet of the hits' images with rank and title at `target`; its path.

    An image that cannot be read is an empty frame.
    """
    cells = [
        (_image(hit, images), f"{place}. {hit.clean_title or hit.title}")
        for place, hit in enumerate(hits, start=1)
    ]
    rows = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    write_bytes(target, encode_jpeg(contact_sheet(rows, cell_px=_CELL_PX), quality=90))
    return target


def _image(hit: Hit, images: Path) -> Image.Image | None:
    try:
        return open_image(images / hit.image, longest_px=_CELL_PX) if hit.image else None
    except BrokenImage:
        return None
