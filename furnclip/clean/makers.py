"""Makers' names and article numbers that the catalogue itself gives away, so that titles can do without.

In: all raw rows. Out: `find_makers`, the names that open titles; `plain_title`, a row's title without such
names and without what its own columns call a brand or a number. No list of brands is needed, and a row is
judged by the whole catalogue, also when only some rows are cleaned.

A name counts as a maker's when it opens at least three titles of at least two kinds of things, hardly ever
stands elsewhere, is made of no word that describes furniture, and at least once shows that it is a name:
set apart ("Nor - oak chair"), in capitals or in CamelCase. Do not trust it for a catalogue of a few rows or
for brands that are plain words ("Habitat chair"); and where a shop writes "News - " before everything, that
word is left out of the titles as well.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from furnclip.catalogue import Product, Rejection
from furnclip.clean.prompt import Vocabulary
from furnclip.clean.titles import lexicon, object_type, title_pieces

_MIN_TITLES = 3
_MIN_KINDS = 2
_MOSTLY_FIRST = 0.9  # share of a word's titles that it opens
_TOGETHER = 0.8  # share of a name's titles in which the same word follows: then it is part of the name
_MAX_WORDS = 5
_WORD = re.compile(r"[^\s,|/;:()\[\]\"]+")
_SHAPED = re.compile(r"[A-Z]{2,}[A-Z&.]*|[A-Z][a-z]+(?:[A-Z][a-z]+)+")  # capitals or CamelCase
_ANY_NUMBER = "#0"  # goes together with the label in front of it
_LINKS = frozenset({"&", "and", "+", "of", "de", "la", "du", "von", "the"})
_COMPANY = frozenset({"home", "living", "design", "designs", "furniture", "interiors", "decor", "office"})

Name = tuple[str, ...]  # case-folded words


def find_makers(products: Iterable[Product | Rejection], vocabulary: Vocabulary) -> frozenset[Name]:
    """Names that open the catalogue's titles."""
    following: defaultdict[Name, Counter[str]] = defaultdict(Counter)  # at the start of titles
    anywhere: Counter[str] = Counter()
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    shown: set[str] = set()
    for product in products:
        if not isinstance(product, Product) or not _is_mixed(product.title):
            continue
        pieces = title_pieces(product.title)
        anywhere.update({word.casefold() for piece in pieces for word in piece.split()})
        opening = _opening(pieces[0]) if pieces else []
        if not opening:
            continue
        folded = tuple(word.casefold() for word in opening)
        for length, word in enumerate(folded):
            following[folded[:length]][word] += 1
        kinds[folded[0]].add(object_type(" ".join(pieces).lower(), vocabulary))
        is_apart = len(pieces) > 1 and len(opening) == len(pieces[0].split())
        if is_apart or _SHAPED.fullmatch(opening[0]):
            shown.add(folded[0])
    return frozenset(
        _whole(word, following)
        for word in shown
        if following[()][word] >= max(_MIN_TITLES, _MOSTLY_FIRST * anywhere[word])
        and len(kinds[word]) >= _MIN_KINDS
    )


def plain_title(product: Product, makers: frozenset[Name]) -> str:
    """The title without makers' names, and with the row's own numbers so that `clean_title` drops them."""
    own = dict(_own_names(product.fields, product.product_id))
    words = list(_WORD.finditer(product.title))
    title, place = product.title, len(words)
    while place > 0:  # from the end, so that earlier places stay true
        place -= 1
        for length in range(min(_MAX_WORDS, len(words) - place), 0, -1):
            span = words[place : place + length]
            name = tuple(word.group().casefold() for word in span)
            if name in makers or name in own:
                place -= place > 0 and words[place - 1].group() == "by"
                title = f"{title[: words[place].start()]}{own.get(name, '')} {title[span[-1].end() :]}"
                del words[place:]
                break
    return title


def _opening(piece: str) -> list[str]:
    """The words at the start that could be a name: capitalised, no numbers, nothing that describes."""
    found: list[str] = []
    for word in piece.split()[:_MAX_WORDS]:
        folded = word.casefold()
        is_name = word[:1].isupper() and folded not in _describing() and not _has_digit(word)
        if not is_name and not (found and folded in _LINKS | _COMPANY):
            break
        found.append(word)
    while found and found[-1] in _LINKS:
        found.pop()
    return found


def _whole(word: str, following: Mapping[Name, Counter[str]]) -> Name:
    """The name that starts with this word: as long as nearly always the same word follows."""
    name: Name = (word,)
    while name in following:
        [(after, count)] = following[name].most_common(1)
        if count < _TOGETHER * following[name[:-1]][name[-1]]:
            break
        name = (*name, after)
    return name if name[-1] not in _LINKS else name[:-1]


def _own_names(fields: Mapping[str, str], product_id: str) -> Iterator[tuple[Name, str]]:
    """What the row's own columns call its maker or its number, and what takes its place in the title."""
    columns = lexicon()["columns"]
    for column, cell in [*fields.items(), ("productid", product_id)]:
        kind = re.sub(r"[^a-z]", "", column.lower())
        words = tuple(word.casefold() for word in _WORD.findall(cell))
        is_maker = kind in columns["makers"] and not _describing().issuperset(words)
        is_number = kind in columns["numbers"] and _has_digit(cell) and len(cell) > 2
        if words and (is_maker or is_number):
            yield words, _ANY_NUMBER if is_number else ""


def _has_digit(text: str) -> bool:
    return any(letter.isdigit() for letter in text)


def _is_mixed(title: str) -> bool:
    """Whether capitals mean anything in this title."""
    return not title.isupper() and not title.islower()


@cache
def _describing() -> frozenset[str]:
    """Words that say what a thing is or is like, and so are no names."""
    words: set[str] = set(lexicon()["describing"]["words"])
    for field in ("object_type", "material", "style", "color"):
        for value, others in lexicon()[field].items():
            words.update(*(text.split() for text in (value, *others)))
    return frozenset(words | {f"{word}s" for word in words})
