"""What a title says of a product: its type, material, color and style; and the colors on its image.

In: a title, and the words of `lexicon.toml`.

A title is read as pieces between commas, and each piece as a noun phrase in front of "with", "for", "mit",
"avec" ... English and German put the thing last in it ("chair cushion", "Wandspiegel"), French first. A
number, a color, a material or "and" ends the phrase: what follows describes or comes with the thing. Words
that are more often a material, a color or a decoration than a thing ("glass", "light", "rose") count only
where nothing else does.

On an image the product's pixels are counted, background and shadow taken off, by hue, saturation and
brightness. Do not trust that in a room, or in colored light. Both follow no paper.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli
from numpy.typing import NDArray
from PIL import Image

from furnclip.catalogue import UNKNOWN
from furnclip.clean.prompt import AllowedWords

Pixels = NDArray[np.int16]

_BACKGROUND_DISTANCE = 24  # RGB, 0 to 255 a channel
_PLAIN_BORDER = 0.9  # share of the border that has its usual color when the background is uniform ...
_WHITE_BORDER = 0.55  # ... or white, where the product may reach the border
_WHITE = 235  # of each channel, at least
_SHADOW_DISTANCE = 14  # between a pixel and the background made darker
_SHADOW_DEPTH = 0.4  # what a shadow leaves of the background's light, at least
_BESIDE_SHADOW = 0.3  # share of the product that must be left when shadow is taken off
_WHITE_FROM, _BLACK_TO = 195, 90  # brightness of the lit side, 0 to 255
_PLAIN = frozenset({"white", "black", "gray", "beige", "brown"})
_LONGEST = 5  # words of a known phrase
_TOKEN = re.compile(r"\d+,\d+|[^\W_]+|[,(|;]")
_AND = re.compile(r"[/&+]")
_LETTER = re.compile(r"\b([^\W\d_])-(?=[^\W\d_])")  # "T-shirt" is one word


class Found(NamedTuple):
    """A value that a title names, and the places of its words."""

    value: str
    start: int
    end: int

    @property
    def places(self) -> range:
        return range(self.start, self.end)


class Words(NamedTuple):
    """What the words of one field mean: whole phrases, and beginnings and ends of compounds."""

    phrases: Mapping[tuple[str, ...], str]
    ends: Mapping[str, str]
    beginnings: Mapping[str, str]

    def find(self, tokens: Sequence[str]) -> list[Found]:
        """Every value that `tokens` name, the longest phrase first, in the order of the text."""
        found, place = [], 0
        while place < len(tokens):
            lengths = range(min(_LONGEST, len(tokens) - place), 0, -1)
            known = ((length, self.phrases.get(tuple(tokens[place : place + length]))) for length in lengths)
            length, value = next(((n, value) for n, value in known if value), (1, None))
            value = value or self._compound(tokens[place])
            if value:
                found.append(Found(value, place, place + length))
            place += length
        return found

    def _compound(self, token: str) -> str | None:
        """By the longest known end of a compound, in the plural too, or by its beginning."""
        for start in range(1, len(token) - 2):
            for ending in ("", "e", "n", "en", "er"):
                if token.endswith(ending) and (
                    value := self.ends.get(token[start : len(token) - len(ending)])
                ):
                    return value
        cuts = range(len(token) - 1, 2, -1)
        return next((self.beginnings[token[:cut]] for cut in cuts if token[:cut] in self.beginnings), None)


@cache
def lexicon() -> Mapping[str, Any]:
    return tomli.loads(Path(__file__).with_name("lexicon.toml").read_text(encoding="utf-8"))


def folded(text: str) -> str:
    """In small letters without accents."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKD", text.lower().replace("ß", "ss").replace("œ", "oe"))
    return "".join(c for c in plain if not unicodedata.combining(c))


@cache
def singular(word: str) -> str:
    """English and French plurals, by their letters alone: the same is done to the lexicon."""
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if len(word) > 3 and (word.endswith("eaux") or (word.endswith("s") and word[-2] not in "sui")):
        return word[:-1]
    return word


def words_of(text: str) -> list[str]:
    """Its words, folded and in the singular, and the marks that end a piece."""
    plain = _LETTER.sub(r"\1", _AND.sub(" and ", folded(text)))
    return [singular(word) for word in _TOKEN.findall(plain)]


@cache
def known_words(field: str, allowed: tuple[str, ...]) -> Words:
    """What words mean which of the `allowed` values; the value itself is always one of them."""
    phrases: dict[tuple[str, ...], str] = {}
    ends: dict[str, str] = {}
    beginnings: dict[str, str] = {}
    for value in allowed:
        own = () if field == "usual_material" or value == UNKNOWN else (value,)
        for word in (*own, *lexicon()[field].get(value, ())):
            if word.startswith("*"):
                ends.setdefault(singular(folded(word[1:])), value)
            elif word.endswith("*"):
                beginnings.setdefault(folded(word[:-1]), value)
            else:
                phrases.setdefault(tuple(words_of(word)), value)
    return Words(phrases, ends, beginnings)


@cache
def _set(name: str) -> frozenset[str]:
    """Single words of the lexicon's table `grammar`."""
    return frozenset(singular(folded(word)) for word in lexicon()["grammar"][name])


@cache
def _alone(field: str) -> frozenset[str]:
    return frozenset(
        singular(folded(word.strip("*")))
        for value, words in lexicon()[field].items()
        for word in (value, *words)
    )


class TitleReading:
    """One title, read with the words of a vocabulary."""

    def __init__(self, title: str, vocabulary: AllowedWords) -> None:
        self.tokens = words_of(title)
        self._found = {
            field: known_words(field, getattr(vocabulary, field)).find(self.tokens)
            for field in ("object_type", "material", "color", "style")
        }
        qualities = (found for field in ("material", "color", "style") for found in self._found[field])
        self._qualities = {place for found in qualities for place in found.places}
        self._is_romance = not _set("romance").isdisjoint(self.tokens)
        self._head = self._kind()
        self.object_type = self._head.value if self._head else UNKNOWN
        self._purposes = self._what_it_is_for()
        self._parts = self._what_parts_have()

    def _word(self, place: int) -> str:
        return self.tokens[place] if 0 <= place < len(self.tokens) else ","

    def _pieces(self) -> Iterator[tuple[int, int, int]]:
        """(start, end of the head, end) of each piece that has words."""
        start = 0
        for end in [*(n for n, word in enumerate(self.tokens) if word in ",(|;"), len(self.tokens)]:
            heads = (n for n in range(start, end) if self.tokens[n] in _set("after_head"))
            head = next(heads, end)
            if end > start:
                yield start, head, end
            start = end + 1

    def _kind(self) -> Found | None:
        """The thing that the title is about."""
        kinds, shades = self._found["object_type"], _set("shades")
        strong = [found for found in kinds if not self._is_weak(found)]
        # not the "light" before a color, a material or a style
        weak = [k for k in kinds if self.tokens[k.start] not in shades or k.end not in self._qualities]
        pieces = list(self._pieces())
        heads = [(start, head) for start, head, _ in pieces]
        whole = [(start, end) for start, _, end in pieces]
        for candidates, spans in ((strong, heads), (weak, heads[:1]), (strong, whole), (weak, whole)):
            for start, end in spans:
                inside = [found for found in candidates if start <= found.start and found.end <= end]
                if inside:
                    return self._last_of_phrase(inside)
        return None

    def _last_of_phrase(self, found: list[Found]) -> Found:
        head = found[0]
        for following in found[1:]:
            gap = [(place, self.tokens[place]) for place in range(head.end, following.start)]
            has_ended = any(n in self._qualities or w[0].isdigit() or w in _set("and") for n, w in gap)
            if has_ended or self._is_romance or self.tokens[head.start] in _set("head_first"):
                break
            head = following
        return head

    def _is_weak(self, found: Found) -> bool:
        if self._word(found.end) in _set("likeness"):
            return True
        is_single = len(found.places) == 1
        return is_single and self.tokens[found.start] in _set("weak") | _alone("material") | _alone("color")

    def _what_it_is_for(self) -> set[int]:
        """Places of "for" and the words behind it, up to the end of the piece."""
        purposes: set[int] = set()
        for start, _, end in self._pieces():
            fors = (n for n in range(start, end) if self.tokens[n] in _set("purpose"))
            purposes.update(range(next(fors, end), end))
        return purposes

    def _what_parts_have(self) -> set[int]:
        """Places of the qualities of a part: the gold of "gold legs"."""
        places: set[int] = set()
        head = self._head.places if self._head else range(0)
        for place, word in enumerate(self.tokens):
            if place in head or not self._is_part(place, word):
                continue
            before = place - 1
            while before in self._qualities and before not in head:
                places.add(before)
                before -= 1
        return places

    def _is_part(self, place: int, word: str) -> bool:
        """ "legs", but not the frame of a mirror; in front of the thing only doors, legs and the like."""
        parts = lexicon()["parts"]
        word = next((part for part in parts if word == part or (word.endswith(part) and len(part) > 4)), "")
        is_behind = self._head is not None and place >= self._head.end
        return bool(word) and self.object_type not in parts[word] and (is_behind or "*" in parts[word])

    def first(self, field: str) -> str:
        """The value of `field` that the title says of the thing itself, or `unknown`: mostly the first."""
        counted = [one for one in self._found[field] if self._counts(field, one)]
        found = [one for one in counted if one.start not in self._purposes]
        if field == "color":  # "sofa for living room gray"
            found = found or counted
        found = [one for one in found if not self._is_secondary(field, one)] or found
        if not found:
            return UNKNOWN
        return (self._nearest(found) if field == "color" else found[0]).value

    def _nearest(self, found: list[Found]) -> Found:
        """Of colors in front of the thing with other words between them the last: "Red Hill brown chair"."""
        chosen = found[0]
        for before, following in pairwise(found):
            gap = range(before.end, following.start)
            is_in_front = self._head is not None and following.end <= self._head.start
            is_apart = any(n not in self._qualities and self.tokens[n] not in _set("and") for n in gap)
            if not is_in_front or any(self.tokens[n] in ",(|;" for n in gap):
                break
            chosen = following if is_apart else chosen
        return chosen

    def _counts(self, field: str, found: Found) -> bool:
        """Not the gold of "gold legs", the "charcoal" of a charcoal grill, the marble of "marble effect"."""
        if found.start in self._parts:
            return False
        kinds = (kind.places for kind in self._found["object_type"])
        if any(found.start in kind and len(kind) > len(found.places) for kind in kinds):
            return False
        before, after = self._word(found.start - 1), self._word(found.end)
        return field != "material" or not (after in _set("likeness") or before in _set("imitation"))

    def _is_secondary(self, field: str, found: Found) -> bool:
        """A wood's or metal's own color where another is named; "tufted" where a fabric is."""
        words = _alone("material") | _set("weak") if field == "color" else _set("vague")
        return self.tokens[found.start] in words and (field != "color" or len(found.places) == 1)


def read_pixels(image: Image.Image, side_px: int) -> Pixels:
    """(side, side, 3), 0 to 255, without regard to the image's proportions."""
    return np.asarray(image.convert("RGB").resize((side_px, side_px)), dtype=np.int16)


def color_shares(pixels: Pixels) -> dict[str, float]:
    """Color name -> share of the product's pixels, largest first; `multicolor` leads where none does."""
    product = _product(pixels)  # (N, 3)
    counts = Counter(_names(product))
    shares = {name: count / len(product) for name, count in counts.most_common()}
    vivid = [name for name, share in shares.items() if share >= 0.12 and name not in _PLAIN]
    if len(vivid) >= 3 and max(shares.values()) < 0.4:
        return {"multicolor": 1.0, **shares}
    return shares


def _product(pixels: Pixels) -> Pixels:
    """(N, 3): the pixels without background and, where enough is left, without the shadow cast on it."""
    product = pixels[~_background(pixels)]
    if len(product) < len(pixels):  # nearly all of it looks like background: a white thing on white
        return pixels.reshape(-1, 3)
    usual = np.median(_border(pixels), axis=0)
    light = product @ usual / max(1.0, usual @ usual)  # (N,), 1 where a pixel is as bright as the background
    off = np.abs(product - light[:, None] * usual).max(axis=1)
    kept = product[(off > _SHADOW_DISTANCE) | (light >= 1) | (light <= _SHADOW_DEPTH)]
    return kept if len(kept) >= _BESIDE_SHADOW * len(product) else product


def has_plain_border(pixels: Pixels) -> bool:
    """Whether the product is cut out and not in a room: most of the border has one color."""
    border = _border(pixels)
    usual = np.median(border, axis=0)
    share = (np.abs(border - usual).max(axis=1) <= _BACKGROUND_DISTANCE).mean()
    return bool(share >= (_WHITE_BORDER if usual.min() >= _WHITE else _PLAIN_BORDER))


def _border(pixels: Pixels) -> Pixels:
    """(4 * side, 3)"""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _background(pixels: Pixels) -> NDArray[np.bool_]:
    """(H, W): pixels like the border's usual color that hang together with the border."""
    usual = np.median(_border(pixels), axis=0)
    alike: NDArray[np.bool_] = np.abs(pixels - usual).max(axis=2) <= _BACKGROUND_DISTANCE  # (H, W)
    reached = np.zeros_like(alike)
    reached[[0, -1]], reached[:, [0, -1]] = alike[[0, -1]], alike[:, [0, -1]]
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= alike
        if (grown == reached).all():
            return reached
        reached = grown


def _names(pixels: Pixels) -> list[str]:
    """The color name of each pixel, by hue, saturation and brightness."""
    high, low = pixels.max(axis=1), pixels.min(axis=1)
    spread = np.maximum(high - low, 1)
    saturation = (high - low) / np.maximum(high, 1)
    red, green, blue = pixels[:, 0], pixels[:, 1], pixels[:, 2]
    hue = np.where(
        high == red,
        (60 * (green - blue) / spread) % 360,
        np.where(high == green, 60 * (blue - red) / spread + 120, 60 * (red - green) / spread + 240),
    )
    limits, hues = zip(*lexicon()["colors"]["hues"], strict=True)
    names = np.array(hues, dtype="<U10")[np.searchsorted(limits, hue, side="right")]
    warm = (hue >= 8) & (hue < 60)
    names[((hue >= 330) | (hue < 15)) & (saturation < 0.45) & (high > 170)] = "pink"
    names[warm & (saturation < 0.45) & (high >= 150)] = "beige"
    names[warm & (saturation >= 0.18) & (high < 185) & ~((saturation > 0.75) & (high > 150))] = "brown"
    names[(hue >= 42) & (hue < 60) & (saturation > 0.6) & (high > 140)] = "yellow"
    plain = (saturation < 0.14) | (high < 50) | ((saturation < 0.25) & (high < 65))
    if plain.any():  # all of it gets one name, since shade darkens half of a white thing
        lit = float(np.quantile(high[plain], 0.6))
        names[plain] = "white" if lit >= _WHITE_FROM else "black" if lit < _BLACK_TO else "gray"
    colors: list[str] = names.tolist()  # a loop over NumPy strings loses what a signal handler raises
    return colors
