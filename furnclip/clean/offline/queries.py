"""What a shopper would type to find a product: as a model wrote it, or made of attributes and everyday words.

In: one product's cleaned values. Out: queries without repeats and without names of makers or series. Nothing
is drawn by lot: the same values give the same queries. Follows no paper; those made of attributes know no
other words than `lexicon.toml` has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from furnclip.catalogue import UNKNOWN
from furnclip.clean.offline.reading import lexicon, words_of

_TITLE_WORDS = 4  # of a title that stands in for a type
_VAGUE = frozenset({"", UNKNOWN, "other"})


def settled(written: Sequence[str], values: Mapping[str, str], names: Sequence[str], count: int) -> list[str]:
    """The first `count` of what was written, and of what rules make of the values where that is too little.

    names: of makers, series and numbers; a query that has one of them is dropped.
    """
    spaced = [f" {' '.join(words_of(name))} " for name in names]
    kept: dict[str, None] = {}
    for query in chain(written, made(values)):
        text = f" {' '.join(words_of(query))} "
        if len(kept) < count and not any(name in text for name in spaced):
            kept[query] = None
    return list(kept)


def made(values: Mapping[str, str]) -> Iterator[str]:
    """A plain query, one with style or use, one in everyday words, and more of the kind."""
    known = {name: value for name, value in values.items() if value not in _VAGUE}
    title = known.get("clean_title", "")
    kind = known.get("object_type") or _without_measures(title)
    color, material, style = (known.get(name, "") for name in ("color", "material", "style"))
    everyday = lexicon()["everyday"].get(kind) or [kind]
    name = everyday[sum(map(ord, title)) % len(everyday)]
    of_material = lexicon()["made_of"].get(material, material)
    rooms = (room for room, kinds in lexicon()["rooms"].items() if kind in kinds)
    room = next(rooms, "")
    use = f"{color or material} {kind} for the {room}" if room else f"{color} {material} {kind}"
    asked = (
        f"{color or material} {kind}",
        f"{style} {material} {kind}" if style else use,
        f"{color} {of_material} {name}" if name != kind else f"{kind} {color} {of_material}",
        f"{color} {material} {kind}",
        f"{of_material} {name}",
        kind,
        _without_measures(title),
    )
    yield from dict.fromkeys(" ".join(query.split()) for query in asked if query.split())


def _without_measures(title: str) -> str:
    words = [word for word in title.split() if not any(map(str.isdigit, word))]
    return " ".join(words[:_TITLE_WORDS])
