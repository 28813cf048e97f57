"""What a search gives back: hits, how the request was understood, and a contact sheet of the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from furnclip.images import BrokenImage, contact_sheet, encode_jpeg, open_image
from furnclip.journal import write_bytes
from furnclip.sources import ShopImages
from furnclip.vectors.words import codes_of, name_of

if TYPE_CHECKING:
    from furnclip.search.query import Query
    from furnclip.search.table import SearchTable

NOTHING = "no product has these words; nearest by meaning:"
_CELL_PX = 200  # of the contact sheet
_SHEET_COLUMNS = 5


@dataclass(frozen=True)
class Hit:
    """One product. `score`: cosine, share of what is asked that its words have, or both weighed, by mode."""

    product_id: str
    title: str
    score: float
    clean_title: str
    style: str
    material: str
    color: str
    object_type: str
    group: str
    split: str
    image: str  # path of the image, relative to the image folder
    variants: int = 1  # products of its group in the table, itself included
    columns: Mapping[str, Any] = field(default_factory=dict)  # the shop's own, by name
    why: Mapping[str, Any] = field(default_factory=dict)
    """`words`: word of the query -> columns that have it; `cosine`; `exact`: columns that equal the query or
    a code in it
    """

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Answer(list[Hit]):
    """The hits of one request, best first, and what to tell about it.

    `understood`: what of the text became a filter or another word, a line each. `note`: why these hits are
    only the nearest, empty where they are what was asked for.
    """

    def __init__(self, hits: Iterable[Hit] = (), *, understood: Sequence[str] = (), note: str = "") -> None:
        super().__init__(hits)
        self.understood = tuple(understood)
        self.note = note


def explain(hit: Hit, query: Query, table: SearchTable) -> dict[str, Any]:
    """The `why` of a hit, with the words of the query and where it has them."""
    words, exact, product = dict[str, list[str]](), list[str](), {**vars(hit), **hit.columns}
    fields = sorted(table.fields, key=lambda field_: field_.kind == "code")  # an id says least of all
    for field_ in fields if query.terms else ():
        texts = field_.texts(product)
        told = {f"@{name_of(text)}" for text in texts} | {
            f"={code}" for text in texts for code in codes_of(text)
        }
        if told & set(query.exact):
            exact += [field_.column] * (field_.kind in ("code", "name"))
        tokens = {token for text in texts for token in table.vocabulary.tokens(text)}
        for term in query.terms:
            if tokens & set(term.stems):
                words.setdefault(term.word, []).append(field_.column)
    return {name: value for name, value in (("words", words), ("exact", exact)) if value} | dict(hit.why)


def write_preview(hits: Sequence[Hit], images: ShopImages, target: Path) -> Path:
    """A contact sheet of the hits' images with rank and title at `target`; its path.

    An image that cannot be read is an empty frame.
    """
    cells: list[tuple[Image.Image | None, str]] = []
    for place, hit in enumerate(hits, start=1):
        image = None
        with suppress(BrokenImage):
            if hit.image:
                image = open_image(images.read(hit.image, hit.product_id), longest_px=_CELL_PX)
        cells.append((image, f"{place}. {hit.clean_title or hit.title}"))
    rows = [cells[start : start + _SHEET_COLUMNS] for start in range(0, len(cells), _SHEET_COLUMNS)]
    write_bytes(target, encode_jpeg(contact_sheet(rows, cell_px=_CELL_PX), quality=90))
    return target
