"""What a title says of a product: its type, material, color and style, by the words of `lexicon.toml`.

A title is read as pieces between commas, and each piece as a noun phrase in front of "with", "for", "mit",
"avec" ... English and German put the thing last in it ("chair cushion", "Wandspiegel"), French first. A
number, a color, a material or "and" ends the phrase: what follows describes or comes with the thing. Words
that are more often a material, a color or a decoration than a thing ("glass", "light", "rose") count only
where nothing else does. Follows no paper.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import tomli

from furnclip.catalogue import UNKNOWN
from furnclip.clean.prompt import AllowedWords

_LONGEST = 5  # words of a known phrase
_TOKEN = re.compile(r"[^\W_]+|[,(|;]")
_AND = re.compile(r"[/&+]")
_LETTER = re.compile(r"\b([^\W\d_])-(?=[^\W\d_])")  # "T-shirt" is one word


class Found(NamedTuple):
    """A value that a title names, and the places of its words."""

    value: str
    start: int
    end: int


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
        self._qualities = {
            place
            for field in ("material", "color", "style")
            for found in self._found[field]
            for place in range(found.start, found.end)
        }
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
        strong = [found for found in self._found["object_type"] if not self._is_weak(found)]
        weak = [found for found in self._found["object_type"] if not self._is_shade(found)]
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
            gap = range(head.end, following.start)
            comes_first = self._is_romance or self.tokens[head.start] in _set("head_first")
            if comes_first or any(self._ends_phrase(place) for place in gap):
                break
            head = following
        return head

    def _ends_phrase(self, place: int) -> bool:
        word = self.tokens[place]
        return place in self._qualities or word[0].isdigit() or word in _set("and")

    def _is_shade(self, found: Found) -> bool:
        """ "light" before a color, a material or a style."""
        return self.tokens[found.start] in _set("shades") and found.end in self._qualities

    def _is_weak(self, found: Found) -> bool:
        if self._word(found.end) in _set("likeness"):
            return True
        is_single = found.end - found.start == 1
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
        head = range(self._head.start, self._head.end) if self._head else range(0)
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
        kinds = (kind for kind in self._found["object_type"] if kind.start <= found.start < kind.end)
        if any(kind.end - kind.start > found.end - found.start for kind in kinds):
            return False
        is_like = self._word(found.end) in _set("likeness") or self._word(found.start - 1) in _set(
            "imitation"
        )
        return field != "material" or not is_like

    def _is_secondary(self, field: str, found: Found) -> bool:
        """A wood's or metal's own color where another is named; "tufted" where a fabric is."""
        if field == "color":
            is_single = found.end - found.start == 1
            return is_single and self.tokens[found.start] in _alone("material") | _set("weak")
        return self.tokens[found.start] in _set("vague")
