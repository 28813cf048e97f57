"""The offline backend: rules over the title, and the dominant color of the image. Free, deterministic.

It is the baseline that a paid model has to beat, and the fallback for rows that one could not clean.
English, German and French, and no better than the word lists of `lexicon.toml`. Style is known only where the
title says it. A color that the title does not name is taken from the image only where the product is cut out.

Names go, of a maker and of a series alike, where they open a title in capitals ("LOMMA Bookcase"), where a
column of the catalogue holds them, where `lexicon.toml` lists them, and where `find_brands` finds them: in
the whole catalogue, a name opens at least three titles of at least two kinds of things, hardly ever stands
elsewhere, is made of no word that describes furniture, and at least once is set apart ("Nor - oak chair"), in
capitals or in CamelCase. Do not trust it for a few rows or for names that are plain words ("Habitat chair").
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, lru_cache
from itertools import chain

from PIL import Image

from furnclip.catalogue import UNKNOWN, Product, Rejection, content_hash
from furnclip.clean.offline.reading import (
    TitleReading,
    color_shares,
    folded,
    has_plain_border,
    known_words,
    lexicon,
    read_pixels,
    singular,
    words_of,
)
from furnclip.clean.prompt import FIELDS, MAX_TITLE_CHARACTERS, AllowedWords, CleanAnswer, readable, sendable
from furnclip.images import open_image
from furnclip.journal import encode_event
from furnclip.relevance import known

SOURCE = "local:rules-5"
IMAGE_PX = 64  # enough to judge a color
_CLEARLY = 0.6  # share of the product's pixels that overrules the title
_HARDLY = 0.04  # share under which a color named in the title is not on the image
_TITLE_WORDS = 4  # of a title that stands in for a type in a query


@cache
def rules_identity(vocabulary: AllowedWords) -> str:
    """Hash of rules, word lists and vocabulary."""
    return content_hash(json.dumps([SOURCE, asdict(vocabulary), dict(lexicon())], sort_keys=True))


def answer_line(
    custom_id: str, title: str, image: bytes, vocabulary: AllowedWords, *, is_own_image: bool
) -> bytes:
    """The answer as one line of a result file, in the shape of the Batch API; `image` may be empty.

    Raises `BrokenImage`.
    """
    opened = open_image(image, longest_px=IMAGE_PX) if image else None
    answer = local_answer(title, opened, vocabulary, is_own_image=is_own_image)
    message = {"role": "assistant", "content": answer.model_dump_json()}
    body = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    response = {"status_code": 200, "body": body}
    return encode_event({"custom_id": custom_id, "response": response, "error": None})


def local_answer(
    title: str, image: Image.Image | None, vocabulary: AllowedWords, *, is_own_image: bool = True
) -> CleanAnswer:
    """The answer of the rules to a title from `plain_title`; `image` is None where only the title counts.

    An image that is not the product's own but its parent's does not overrule the title.
    """
    pieces = _unnamed(title)
    name = " ".join(" ".join(pieces).split()).lower()[:MAX_TITLE_CHARACTERS].strip(_EDGES)
    said = TitleReading(", ".join(pieces), vocabulary)
    kind, material = said.object_type, said.first("material")
    if material == UNKNOWN:
        material = usual_material(name, kind, vocabulary)
    color = said.first("color")
    if image is not None and (color == UNKNOWN or is_own_image):
        color = _color(color, image, vocabulary)
    if material == "wood" and color == "orange" and "brown" in vocabulary.color:
        color = "brown"  # varnished wood is orange to a camera and brown to people
    title = name or (kind if kind != UNKNOWN else "product")
    values = dict(zip(FIELDS, (title, said.first("style"), material, color, kind), strict=True))
    return CleanAnswer.model_validate(values, context=vocabulary)


def _color(named: str, image: Image.Image, vocabulary: AllowedWords) -> str:
    """The color that the title names; of a cut-out the image's, where none is named or it clearly differs."""
    pixels = read_pixels(image, IMAGE_PX)
    if not has_plain_border(pixels):
        return named
    shares = color_shares(pixels)
    ranked = [color for color in shares if color in vocabulary.color]
    if not ranked:
        return named
    if named == UNKNOWN:
        return ranked[0]
    is_contradicted = shares.get(named, 0.0) < _HARDLY and shares[ranked[0]] > _CLEARLY
    is_mixed_up = any({named, ranked[0]}.issubset(names) for names in lexicon()["colors"]["mixed_up"])
    return ranked[0] if is_contradicted and not is_mixed_up else named


_BY_MAKER = re.compile(r"\s+by\s+[A-Z][\w&.'-]*(?:\s+[A-Z][\w&.'-]*){0,3}\s*(?=$|[,(|-])")
_MARKED = re.compile(r"\b[\w&.'-]+\s?[®™©]")
_QUOTES = re.compile("(?<![0-9])[\u201c-\u201f\u00ab\u00bb]")  # a closing one behind a number means inches
_EMPTY_BRACKETS = re.compile(r"[(\[{]\s*[)\]}]")
_DASHES = "\u2013\u2014"
_EDGES = f" \t-{_DASHES}_|/,;:.!*~+#'\"\u201c\u201d\u2018\u2019"
_COMMA = r"(?<!\d),|,(?!\d)"  # not that of "120,5 cm"
_JOINTS = re.compile(rf"\s*(?:[|{_DASHES};:*~!]|{_COMMA})\s*|\s+[-/+]\s+")
_MEASURES = re.compile(r"\S*\d\S*(?:\s+(?:[x\u00d7]|[cm]?m|kg|in|inch(?:es)?|ft|zoll)\b)*")


def title_pieces(title: str) -> list[str]:
    """What is left of the title, in the pieces that dashes, bars and commas make of it; case as written."""
    text = readable(sendable(title))
    text = _MARKED.sub(" ", _BY_MAKER.sub(" ", _QUOTES.sub(" ", text)))
    text = _any_of(tuple(lexicon()["brands"]["names"])).sub(" ", text)
    text = _EMPTY_BRACKETS.sub(" ", _dropped().sub(" ", text))
    pieces = [piece.strip(_EDGES) for piece in _JOINTS.split(text)]
    return [piece for piece in pieces if piece]


def _unnamed(title: str) -> list[str]:
    """Its pieces without names in capitals at their start."""
    pieces = title_pieces(title)
    named = () if title.isupper() else map(_without_name, pieces)
    return [piece for piece in named if piece] or pieces


def _is_shouted(word: str) -> bool:
    return word.isupper() and sum(map(str.isalpha, word)) > 2 and not any(map(str.isdigit, word))


def _without_name(piece: str) -> str:
    """Without the words in capitals that open it, unless they say what the thing is or is like."""
    words = piece.split(" ")
    while words and _is_shouted(words[0]) and not _describes(words[0]):
        del words[0]
    return " ".join(words).strip(_EDGES)


def usual_material(name: str, kind: str, vocabulary: AllowedWords) -> str:
    """What such a thing is mostly made of: by a word of its name, else by its kind; or `unknown`."""
    found = [one.value for one in known_words("usual_material", vocabulary.material).find(words_of(name))]
    found += [value for value, kinds in lexicon()["usual_material_of_kind"].items() if kind in kinds]
    return next((material for material in found if material in vocabulary.material), UNKNOWN)


@cache
def _dropped() -> re.Pattern[str]:
    return re.compile("|".join(chain(*lexicon()["dropped"].values())), re.IGNORECASE)


@cache
def _any_of(words: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    alternatives = "|".join(re.escape(word) for word in longest_first) or r"(?!)"
    return re.compile(rf"(?<![\w-])(?:{alternatives})(?:es|s)?(?![\w-])", re.IGNORECASE)


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

BrandName = tuple[str, ...]  # case-folded words


def find_brands(products: Iterable[Product | Rejection], vocabulary: AllowedWords) -> frozenset[BrandName]:
    """Names that open the catalogue's titles."""
    following: defaultdict[BrandName, Counter[str]] = defaultdict(Counter)  # at the start of titles
    anywhere: Counter[str] = Counter()
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    shown: set[str] = set()
    for product in products:
        if isinstance(product, Rejection) or product.title.isupper() or product.title.islower():
            continue  # capitals mean nothing in this title
        pieces = title_pieces(product.title)
        anywhere.update({word.casefold() for piece in pieces for word in piece.split()})
        opening = _opening(pieces[0]) if pieces else []
        if not opening:
            continue
        folded = tuple(word.casefold() for word in opening)
        for length, word in enumerate(folded):
            following[folded[:length]][word] += 1
        kinds[folded[0]].add(TitleReading(", ".join(pieces), vocabulary).object_type)
        is_apart = len(pieces) > 1 and len(opening) == len(pieces[0].split())
        if is_apart or _SHAPED.fullmatch(opening[0]):
            shown.add(folded[0])
    return frozenset(
        _whole(word, following)
        for word in shown
        if following[()][word] >= max(_MIN_TITLES, _MOSTLY_FIRST * anywhere[word])
        and len(kinds[word]) >= _MIN_KINDS
    )


def plain_title(product: Product, brands: frozenset[BrandName]) -> str:
    """The title without brands, and with the row's own numbers so that `clean_title` drops them."""
    own = dict(_own_names(product.fields, product.product_id))
    title = product.variant or product.title
    words = list(_WORD.finditer(title))
    place = len(words)
    while place > 0:  # from the end, so that earlier places stay true
        place -= 1
        for length in range(min(_MAX_WORDS, len(words) - place), 0, -1):
            span = words[place : place + length]
            name = tuple(word.group().casefold() for word in span)
            if name in brands or name in own:
                place -= place > 0 and words[place - 1].group() == "by"
                title = f"{title[: words[place].start()]}{own.get(name, '')} {title[span[-1].end() :]}"
                del words[place:]
                break
    return title


def names_of(product: Product) -> list[str]:
    """What in the row's title and columns names a maker, a series or a number, not the thing."""
    own = (" ".join(name) for name, _ in _own_names(product.fields, product.product_id))
    listed = _any_of(tuple(lexicon()["brands"]["names"])).findall(product.title)
    shouted = () if product.title.isupper() else filter(_is_shouted, _WORD.findall(product.title))
    return [*own, *listed, *(word for word in shouted if not _describes(word))]


def _opening(piece: str) -> list[str]:
    """The words at the start that could be a name: capitalized, no numbers, nothing that describes."""
    found: list[str] = []
    for word in piece.split()[:_MAX_WORDS]:
        is_name = word[:1].isupper() and not _describes(word) and not any(map(str.isdigit, word))
        if not is_name and not (found and word.casefold() in _LINKS | _COMPANY):
            break
        found.append(word)
    while found and found[-1] in _LINKS:
        found.pop()
    return found


def _whole(word: str, following: Mapping[BrandName, Counter[str]]) -> BrandName:
    """The name that starts with this word: as long as nearly always the same word follows."""
    name: BrandName = (word,)
    while name in following:
        [(after, count)] = following[name].most_common(1)
        if count < _TOGETHER * following[name[:-1]][name[-1]]:
            break
        name = (*name, after)
    return name if name[-1] not in _LINKS else name[:-1]


def _own_names(fields: Mapping[str, str], product_id: str) -> Iterator[tuple[BrandName, str]]:
    """What the row's own columns call its brand or its number, and what takes its place in the title."""
    for column, cell in [*fields.items(), ("productid", product_id)]:
        if not (kind := _kind_of(column)):
            continue
        words = tuple(word.casefold() for word in _WORD.findall(cell))
        is_brand = kind == "makers" and not all(map(_describes, words))
        is_number = kind == "numbers" and any(map(str.isdigit, cell)) and len(cell) > 2
        if words and (is_brand or is_number):
            yield words, _ANY_NUMBER if is_number else ""


@cache
def _kind_of(column: str) -> str:
    """What the catalogue's column holds: `makers`, `numbers` or, in an empty text, anything else."""
    letters = re.sub(r"[^a-z]", "", column.lower())
    return next((kind for kind, columns in lexicon()["columns"].items() if letters in columns), "")


@cache
def _describing() -> frozenset[str]:
    """Words that say what a thing is or is like, and so are no names."""
    words: set[str] = set(lexicon()["describing"]["words"])
    for field in ("object_type", "material", "style", "color"):
        for value, others in lexicon()[field].items():
            words.update(*(text.strip("*").split() for text in (value, *others)))
    return frozenset(singular(folded(word)) for word in words)


@cache
def _describes(word: str) -> bool:
    """Whether it is one of these words, or each of the words that hyphens make of it is."""
    return _describing().issuperset(words_of(word))


def settled(written: Sequence[str], values: Mapping[str, str], names: Sequence[str], count: int) -> list[str]:
    """The first `count` of what was written, and of what rules make of the values where that is too little.

    names: of makers, series and numbers; a query that has one of them is dropped.
    """
    spaced = [_spaced(name) for name in names]
    kept: dict[str, None] = {}
    for query in chain(written, made(values)):
        if len(kept) >= count:
            break
        text = _spaced(query)
        if not any(name in text for name in spaced):
            kept[query] = None
    return list(kept)


@lru_cache(maxsize=10_000)
def _spaced(text: str) -> str:
    """Its words with a space on both sides; many products have the same queries."""
    return f" {' '.join(words_of(text))} "


def made(values: Mapping[str, str]) -> Iterator[str]:
    """A plain query, one with style or use, one in everyday words, and more of the kind."""
    told = {name: value for name, value in values.items() if known(value)}
    title = told.get("clean_title", "")
    kind = told.get("object_type") or _without_measures(title)
    color, material, style = (told.get(name, "") for name in ("color", "material", "style"))
    everyday = lexicon()["everyday"].get(kind) or [kind]
    name = everyday[sum(map(ord, title)) % len(everyday)]
    of_material = lexicon()["made_of"].get(material, material)
    room = _room_of(kind)
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


@lru_cache(maxsize=10_000)
def _room_of(kind: str) -> str:
    return next((room for room, kinds in lexicon()["rooms"].items() if kind in kinds), "")


def _without_measures(title: str) -> str:
    return " ".join(_MEASURES.sub(" ", title).split()[:_TITLE_WORDS])
