"""`work/arena/report.html`: the standings and the images behind the votes, in one file.

Images are shrunk to thumbnails and each is stored once, however many votes it appears in. The page
names the models: it is for after the voting.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2

from furnclip.arena.lineup import Card
from furnclip.arena.stats import Standings
from furnclip.arena.tables import duel_lines, tables
from furnclip.arena.votes import Vote
from furnclip.catalogue import content_hash
from furnclip.images import BrokenImage, encode_jpeg, load_square
from furnclip.journal import write_text

_THUMBNAIL_PX = 96
_JPEG_QUALITY = 75
_VOTES_SHOWN = 300  # about 10 MB of thumbnails at most


def write_page(path: Path, standings: Standings, votes: Sequence[Vote]) -> None:
    """Write the page with the latest votes first."""
    shown = list(reversed(votes))[:_VOTES_SHOWN]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("furnclip.arena", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("page.html").render(
        duels=[list(duel_lines(duel)) for duel in standings.duels],
        tables=list(tables(standings)),
        votes=shown,
        hidden=len(votes) - len(shown),
        thumbnails=dict(_thumbnails(shown)),
        css_class=css_class,
        votes_total=standings.votes,
    )
    write_text(path, text)


def css_class(image: str) -> str:
    """The class that shows an image as its background."""
    return f"p{content_hash(image)}"


def _thumbnails(votes: Sequence[Vote]) -> Iterator[tuple[str, str]]:
    """CSS class and data URI of every image that can be read; others show their title alone."""
    for image in dict.fromkeys(image for vote in votes for image in _images(vote)):
        try:
            data = encode_jpeg(load_square(Path(image), _THUMBNAIL_PX), _JPEG_QUALITY)
        except BrokenImage:
            continue
        yield css_class(image), f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _images(vote: Vote) -> Iterator[str]:
    cards: list[Card] = [card for row in vote.results for card in row]
    yield from (image for image in (vote.query.image, *(card.image for card in cards)) if image)
