"""The offline rules for words: a shop's title -> a plain name and what it says about the product.

In: a title and the vocabularies; `lexicon.toml` beside this file. Out: `clean_title` and the attributes
that the words give away. English only, and no better than its word lists: a brand that is neither listed
nor found by `makers` stays in the title.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from furnclip.clean.prompt import MAX_TITLE_CHARACTERS, UNKNOWN, Vocabulary, readable, sendable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MONEY = r"(?:us)?[$€£]\s?\d[\d.,]*|\b\d[\d.,]*\s?(?:usd|eur|gbp|dollars?|euros?)\b"
_COUNT = (
    r"\(?\b(?:set|pack|pair|bundle|lot|box|qty)\s+of\s+(?:\d+|two|three|four|five|six|eight|ten)\b\)?"
    r"|\b\d+\s?[- ]?(?:pack|pcs|pc|pieces?|count|ct)\b(?:\s+set\b)?"
    r"|(?<![\d\"']\s)(?<!\b[whdl]\s)\bx\s?\d+\b(?!\s?(?:cm|mm|m|in)\b|[\"'\u2033]|\.\d)|\b\d+\s?x\b(?!\s?\d)"
)
_SELLING = (
    r"\bfree\s+(?:shipping|delivery|returns?)\b|\b(?:fast|quick|(?:same|next|\d+)[- ]day|express)\s+"
    r"(?:shipping|delivery)\b|\bships?\s+(?:free|today|fast)\b|\b(?:shipping|delivery)\s+included\b"
    r"|\b(?:on\s+)?sale\b!*|\bclearance\b|\b\d+\s?%\s?off\b|\bbest\s?(?:seller|price|deal)\b|\bnew\s+arrivals?\b"
    r"|\bhot\s+(?:deal|sale)\b|\blimited\s+(?:time|edition|offer|stock)\b|\bin\s+stock\b|\bbrand[- ]new\b"
    r"|\bamazon'?s?\s+choice\b|\beasy\s+assembly\b|\b(?:no\s+)?assembly\s+required\b|\btop\s+quality\b"
)
# After a label any number goes, but not "model 3-drawer chest"; without one, only what cannot be a measure.
_LABEL = r"\b(?:sku|mpn|upc|ean|gtin|asin|ref|model|item|art(?:icle|ikel(?:nummer)?)?|part|product|order)\b"
_NUMBERS = (
    rf"{_LABEL}[\s.:#-]*(?:\b(?:no|nr|num|number|id|code)\b[\s.:#-]*)?"
    r"(?!\d+-[a-z]{3})[a-z]{0,6}[-_/.]?\d[\w/-]*"
    r"|#\s?[\w-]*\d[\w/-]*"
    r"|(?<![\w/-])(?![whdl\u00f8]\d+(?:cm|mm)?\b)[a-z]{1,6}[-_/]?\d{3,}[\w/-]*"
    r"|(?<![\w/-])(?-i:[A-Z]{2,6})[-_/]\d{2,}[\w/-]*"
    r"|\b(?=\w*[a-z])(?=\w*\d)[a-z0-9]{2,}(?:[-_/][a-z0-9]+)+\b"
    r"|\bno\.\s?\d+\b|\b\d+(?:\.\d+){2,}\b|\b\d{5,}\b|(?-i:\b\d{4,}[A-Z]{1,3}\b)|\bb0[a-z0-9]{8}\b"
)
_DROPPED = re.compile("|".join((_MONEY, _COUNT, _SELLING, _NUMBERS)), re.IGNORECASE)
_BY_MAKER = re.compile(r"\s+by\s+[A-Z][\w&.'-]*(?:\s+[A-Z][\w&.'-]*){0,3}\s*(?=$|[,(|-])")
_MARKED = re.compile(r"\b[\w&.'-]+\s?[®™©]")
_TAGS = re.compile(r"<[^>]{0,80}>")
_EMPTY_BRACKETS = re.compile(r"[(\[{]\s*[)\]}]")
_DASHES = "\u2013\u2014"
_EDGES = f" \t-{_DASHES}_|/,;:.!*~+#'\"\u201c\u201d\u2018\u2019"
_JOINTS = re.compile(rf"\s*[|{_DASHES};,:*~!]\s*|\s+[-/+]\s+")
_PARTS = re.compile(
    r"\b[\w-]+\s+(?:doors?|fronts?|shelf|shelves|legs?|handles?|base|frame|top)\b(?=.*\w)", re.I
)
_HEAD_ENDS = re.compile(r"\b(?:with|for|in|on|w/|without|from|of)\b|[(,|]", re.IGNORECASE)


def clean_title(title: str) -> str:
    """The title without brands, numbers, prices, shipping and counts, in lower case."""
    text = " ".join(" ".join(title_pieces(title)).split()).lower()
    return text[:MAX_TITLE_CHARACTERS].strip(_EDGES)


def title_pieces(title: str) -> list[str]:
    """What is left of the title, in the pieces that dashes, bars and commas make of it; case as written."""
    text = _TAGS.sub(" ", readable(html.unescape(html.unescape(sendable(title)))))
    text = _MARKED.sub(" ", _BY_MAKER.sub(" ", text))
    text = _brands().sub(" ", text)
    text = _EMPTY_BRACKETS.sub(" ", _DROPPED.sub(" ", text))
    pieces = [piece.strip(_EDGES) for piece in _JOINTS.split(text)]
    return [piece for piece in pieces if piece]


def object_type(title: str, vocabulary: Vocabulary) -> str:
    """The kind of thing: the last known word before "with", "for" ..., since English puts it last."""
    head = _HEAD_ENDS.split(title, maxsplit=1)[0]
    for text in (head, title):
        found = _matches(text, "object_type", vocabulary.object_type)
        if found:
            return found[-1]
    return UNKNOWN


def first_word(title: str, field: str, vocabulary: Vocabulary) -> str:
    """The first value of `field` that the title names, or `unknown`; "glass door" is no material."""
    found = _matches(_PARTS.sub(" ", title), field, vocabulary.words(field))
    return found[0] if found else UNKNOWN


def usual_material(name: str, kind: str, vocabulary: Vocabulary) -> str:
    """What such a thing is mostly made of: by a word of its name, else by its kind; or `unknown`."""
    usual = lexicon()["usual_material"]
    for material, words in usual.items():
        if material in vocabulary.material and _any_of(tuple(words)).search(name):
            return str(material)
    for material, kinds in lexicon()["usual_material_of_kind"].items():
        if material in vocabulary.material and kind in kinds:
            return str(material)
    return UNKNOWN


@cache
def lexicon() -> Mapping[str, Any]:
    return tomllib.loads(Path(__file__).with_name("lexicon.toml").read_text(encoding="utf-8"))


@cache
def _brands() -> re.Pattern[str]:
    return _any_of(tuple(lexicon()["brands"]["names"]))


def _matches(text: str, field: str, allowed: tuple[str, ...]) -> list[str]:
    pattern, values = _words(field, allowed)
    return [values[_singular_key(match.group(0), values)] for match in pattern.finditer(text.lower())]


@cache
def _words(field: str, allowed: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern that finds the longest known word, and what each word means."""
    known = lexicon()[field]
    values: dict[str, str] = {}
    for value in allowed:
        if value != UNKNOWN:
            for word in (value, *known.get(value, ())):
                values.setdefault(word, value)
    return _any_of(tuple(values)), values


@cache
def _any_of(words: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    alternatives = "|".join(re.escape(word) for word in longest_first) or r"(?!)"
    return re.compile(rf"(?<![\w-])(?:{alternatives})(?:es|s)?(?![\w-])", re.IGNORECASE)


def _singular_key(word: str, values: Mapping[str, str]) -> str:
    """The word as it stands in the lexicon: itself, or without its plural ending."""
    return next(key for key in (word, word[:-1], word[:-2]) if key in values)
