"""How texts become words of the search index: the same way for products and for queries.

Lower case without accents; numbers with their units in one form ("1.2 m", "120cm" and "120 x 60 cm" have
`120cm` in common); stems of one language, the catalogue's (Snowball). In German, Dutch and Swedish a
compound also counts as its last part ("Esstisch" as "tisch"), where that is a word of the catalogue.

A field's weight is how often its words are repeated, as BM25F weighs: before the saturation, not after it.

    sofa red 120cm      words of the titles, the attributes and the shop's short texts
    =p00017             an id, SKU, barcode, without signs and leading zeros
    @billy @mid_century a brand, series or model as a whole
    !slip               a word that the text says the product is without: "non-slip"
    ^vans               the word that opens the title, as it is written
    |                   behind it, words of long texts, by which nothing is excluded
"""

from __future__ import annotations

import math
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import snowballstemmer
import tomli

from furnclip.catalogue import ATTRIBUTES
from furnclip.relevance import known

Language = Literal["en", "de", "fr", "es", "it", "nl", "sv"]
_STEMMERS = {
    "en": "english", "de": "german", "fr": "french", "es": "spanish",
    "it": "italian", "nl": "dutch", "sv": "swedish",
}  # fmt: skip
_COMPOUNDING = ("de", "nl", "sv")
_LEAST_PART = 4  # letters of the last part of a compound, and three before it
_LONG_TEXT = 12  # words; a shop's column with longer texts is one of descriptions
_MOST_WORDS = 200_000  # of the vocabulary: the most frequent
_MOST_LONG_WORDS = 150  # of a description
_LEAST_START, _MOST_STARTS = 4, 8  # characters of a code's beginning that is one itself; signs looked at
_LETTERS = str.maketrans({"ø": "o", "æ": "ae", "œ": "oe", "ł": "l", "đ": "d"})
_SPREAD = re.compile("(?<=[aou])e|(?<=a)a")  # of an umlaut or ring that was typed without: "Buecher"
_POSSESSIVE = re.compile(r"(?<=\w)['\u2019]s\b")
_NUMBER = r"\d+(?:[.,]\d+)?"


@cache
def knowledge() -> dict[str, Any]:
    """What words.toml says; the stop words as sets."""
    said = tomli.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
    return said | {"stop": {name: frozenset(words.split()) for name, words in said["stop"].items()}}


@cache
def _pattern() -> re.Pattern[str]:
    units = "|".join(map(re.escape, sorted(knowledge()["units"], key=len, reverse=True)))
    size = rf"(?<![^\W_])({_NUMBER}(?:\s*[x\u00d7*]\s*{_NUMBER}){{0,3}})(?:\s*({units}))?(?![^\W_])"
    return re.compile(size + r"|[^\W_]+(?:-[^\W_]+)*")


def fold(text: str) -> str:
    """Lower case without accents: "Größe" is "grosse"."""
    folded = text.casefold()
    if folded.isascii():
        return folded
    spread = unicodedata.normalize("NFKD", folded.translate(_LETTERS))
    return "".join(letter for letter in spread if not unicodedata.combining(letter))


def words_of(text: str) -> list[tuple[str, ...]]:
    """The words of a text, folded, each in all its forms: `120` and `120cm`, `wall` and `wallmounted`."""
    found: list[tuple[str, ...]] = []
    for match in _pattern().finditer(_POSSESSIVE.sub("", fold(text))):
        size, unit = match.groups()
        if size is None:
            first, *others = match[0].split("-")
            joined = match[0].replace("-", "")
            if not others:
                found.append((first,))
            elif len(first) == 1:  # a t-shirt is no shirt
                found.append((joined,))
            else:
                found += [(first, joined), *((other,) for other in others)]
            continue
        base, times = knowledge()["units"].get(unit, ("", 1))
        for number in re.findall(_NUMBER, size):
            value = value_of(number)
            found.append((f"{value:.10g}", *([f"{value * times:.10g}{base}"] if base else [])))
    return found


def said_of(text: str) -> list[tuple[str, ...]]:
    """The words of a product's text, with `!` in front of those that it says it is without."""
    found, is_without = [], False
    for forms in words_of(text):
        if is_without and not any(forms[0] in knowledge()["stop"][language] for language in _STEMMERS):
            forms, is_without = tuple(f"!{form}" for form in forms if form.isalpha()) or forms, False
        found.append(forms)
        is_without = is_without or forms[0] in knowledge()["filters"]["not"]
    return found


def value_of(number: str) -> float:
    """A number as written, with a point or a comma: 1,200.5 and 1.200,5 alike."""
    *whole, last = re.split("[.,]", number.strip(".,"))
    if not whole or (len(last) == 3 and whole != ["0"]):  # three digits behind the sign are thousands
        return float("".join(whole) + last)
    return float(f"{''.join(whole)}.{last}")


def code_of(text: object) -> str:
    """An id, SKU or barcode as it is compared: letters and digits, without leading zeros."""
    if isinstance(text, float):
        text = f"{text:.0f}"
    return "".join(filter(str.isalnum, fold(str(text)))).lstrip("0")


def codes_of(text: str) -> list[str]:
    """The code, and what it begins with: "SH-1004/B" is a variant of "SH-1004"."""
    starts = (code_of(text[: sign.start()]) for sign in islice(re.finditer(r"\W", text), _MOST_STARTS))
    starts = (start for start in starts if len(start) >= _LEAST_START and any(map(str.isdigit, start)))
    return list(dict.fromkeys((code_of(text), *starts)))


def name_of(text: str) -> str:
    """A brand, series or model as it is compared."""
    return "_".join(word for forms in words_of(text) for word in forms[:1])


@cache
def _stemmer(language: str) -> tuple[Any, threading.Lock]:
    return snowballstemmer.stemmer(_STEMMERS[language]), threading.Lock()


@lru_cache(maxsize=500_000)
def stem(word: str, language: str) -> str:
    """The stem of a folded word."""
    if word[:1] == "!":
        return "!" + stem(word[1:], language)
    if not word.isalpha():
        return word
    if language == "en":  # plurals without -s, of compounds too: "bookshelves"
        plurals = knowledge()["irregular"].items()
        word = next((word.removesuffix(end) + one for end, one in plurals if word.endswith(end)), word)
    stemmer, lock = _stemmer(language)
    with lock:  # a stemmer works on its own attributes
        return str(stemmer.stemWord(word))


@cache
def _function_words() -> frozenset[str]:
    """The words of any language that say nothing about a product, or are part of a filter."""
    phrases = " ".join(chain.from_iterable(knowledge()["filters"].values()))
    return frozenset(phrases.split()).union(*knowledge()["stop"].values())


@cache
def _same() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Word of another language -> the value of cleaned columns, and all words for it."""
    values = [(value, tuple(names.split())) for value, names in knowledge()["same"].items()]
    return {name: (value, names) for value, names in values for name in (*value.split()[:1], *names)}


@cache
def _same_stems(letter: str) -> dict[tuple[str, str], tuple[str, tuple[str, ...]]]:
    """The same by language and stem, for inflections that words.toml does not list.

    Of the words with this first letter: stemming all of them takes a tenth of a second.
    """
    words = [(word, names) for word, names in reversed(_same().items()) if word.startswith(letter)]
    return {(language, stem(word, language)): names for language in _STEMMERS for word, names in words}


@lru_cache(maxsize=10_000)
def _names_of(word: str, language: str) -> tuple[str, tuple[str, ...]]:
    """What words.toml knows for a word however it is inflected, in this language first."""
    stems, known = ((each, stem(word, each)) for each in (language, *_STEMMERS)), _same_stems(word[:1])
    found = (known[key] for key in stems if key in known)
    return _same().get(word) or next(found, ("", ()))


@dataclass(frozen=True)
class Field:
    """A column of texts and how its words count; `kind`: text, long, code or name."""

    column: str
    kind: Literal["text", "long", "code", "name"]
    weight: int
    is_type: bool = False  # whether it says what a product is
    is_look: bool = False  # or how it looks
    unit: str = ""  # of a column of numbers, as its name says: `width_cm`

    def texts(self, row: Mapping[str, Any]) -> list[str]:
        """What a product has there; of a size also the whole number that shoppers type."""
        value = row.get(self.column)
        if self.kind != "code" and isinstance(value, float) and math.isfinite(value):
            return [f"{size} {self.unit}" for size in dict.fromkeys((f"{value:.10g}", f"{value:.0f}"))]
        return texts_of(value)


_OURS = (
    Field("product_id", "code", 1),
    Field("title", "text", 2),
    Field("clean_title", "text", 2),
    Field("object_type", "text", 2, is_type=True),
    *(Field(name, "text", 1, is_look=True) for name in ATTRIBUTES if name != "object_type"),
)


def fields_of(columns: Mapping[str, str]) -> list[Field]:
    """The fields that are indexed, of furnclip's own columns and the shop's `columns`, name -> kind."""
    fields = list(_OURS)
    for column, kind_of_column in columns.items():
        parts = {column, *column.split("_")}
        says = {kind for kind, words in knowledge()["columns"].items() if parts & set(words.split())}
        unit = next((part for part in column.split("_") if part in knowledge()["units"]), "")
        if "not_text" in says:
            continue
        if "code" in says:
            fields.append(Field(column, "code", 1))
        elif kind_of_column == "number" and (unit or "size" in says):
            fields.append(Field(column, "text", 1, unit=unit))
        elif kind_of_column in ("text", "list"):
            is_name, is_kind = "name" in says, "kind" in says
            is_type = is_kind and not is_name and "type" in says
            kind = Field(column, "name" if is_name else "text", 2, is_type)
            fields.append(kind if is_name or is_kind else Field(column, "long", 1))
    return fields


class Vocabulary:
    """The words of a catalogue, how many products have each, and its language."""

    def __init__(self, products: int, frequencies: Mapping[str, int], language: str) -> None:
        self.products, self.language = products, language
        self.frequencies = dict(frequencies)

    @cached_property
    def _marked(self) -> dict[str, set[str]]:
        """`+`: the stems of words for what a product is, `~`: of those for how it looks."""
        return {mark: {self.stem(word[1:]) for word in self.frequencies if word[:1] == mark} for mark in "+~"}

    @cached_property
    def stems(self) -> Counter[str]:
        """How many products have a word of each stem."""
        found: Counter[str] = Counter()
        for word, count in self.frequencies.items():
            found[self.stem(word)] += count
        return found

    @classmethod
    def gather(cls, rows: Iterable[Mapping[str, Any]], fields: Sequence[Field], language: str) -> Vocabulary:
        """The vocabulary of these rows; an empty `language` is found out."""
        products, counts = _counted(rows, fields)
        if not language:  # the one most of whose function words it has; English where none tells
            said = {each: sum(counts[word] for word in knowledge()["stop"][each]) for each in _STEMMERS}
            language = max(said, key=lambda each: (said[each], each == "en"))
        return cls(products, dict(counts.most_common(_MOST_WORDS)), language)

    def changed(
        self, gone: Sequence[Mapping[str, Any]], come: Sequence[Mapping[str, Any]], fields: Sequence[Field]
    ) -> Vocabulary:
        """This vocabulary without the words of some rows, and with those of others."""
        counts = Counter(self.frequencies)
        counts.subtract(_counted(gone, fields)[1])
        counts.update(_counted(come, fields)[1])
        left = sorted((item for item in counts.items() if item[1] > 0), key=itemgetter(1), reverse=True)
        products = self.products - len(gone) + len(come)
        return Vocabulary(products, dict(left[:_MOST_WORDS]), self.language)

    @cached_property
    def alphabetic(self) -> list[str]:
        """The words that are not numbers, and the singular of those that are only there in the plural."""
        ones = (word[:-1] for word in self.frequencies if word[-1:] == "s")
        ones = (one for one in ones if self.stem(one) == self.stem(f"{one}s"))
        return list(dict.fromkeys(filter(str.isalpha, (*self.frequencies, *ones))))

    def rarity(self, *stems: str) -> float:
        """The inverse document frequency of BM25 of words that mean the same."""
        count = min(sum(self.stems.get(stem, 0) for stem in stems), self.products)
        return math.log(1 + (self.products - count + 0.5) / (count + 0.5))

    def stem(self, word: str) -> str:
        """The stem of a folded word in the catalogue's language."""
        return stem(word, self.language)

    def tokens(self, text: str) -> list[str]:
        """The words of a product's text as the index has them, in order."""
        found = []
        for forms in said_of(text):
            found += [self.stem(form) for form in forms]
            if self.language in _COMPOUNDING:  # the longest last part that is a word of the catalogue
                word = forms[0]
                parts = (self.stem(word[start:]) for start in range(3, len(word) - _LEAST_PART + 1))
                longest = (part for part in parts if part in self.stems and part != self.stem(word))
                found += islice(longest, 1)
        return found

    @cached_property
    def _spread(self) -> dict[str, str]:
        """Words that have umlauts spelled out, by what is left without; of several the most frequent."""
        words = [word for word in reversed(self.frequencies) if word.isalpha() and _SPREAD.search(word)]
        return {_SPREAD.sub("", word): word for word in words}

    def written(self, word: str) -> str:
        """A folded word as the catalogue has it: "buecherregal" as "bucherregal", or the other way."""
        short = _SPREAD.sub("", word)
        if word in self.frequencies or len(short) < 3:
            return word
        if short != word and (short in _function_words() or self.stem(short) in self.stems):
            return short
        return word if self.stem(word) in self.stems else self._spread.get(short, word)

    def meanings(self, word: str) -> list[str]:
        """The stems in the index that mean a folded word; none where no product has it."""
        own = self.stem(word)
        is_known = own in self.stems
        value, names = _names_of(word, self.language)
        others = map(self.stem, value.split()[:1] if is_known else (*value.split()[:1], *names))
        return list(dict.fromkeys([own] * is_known + [other for other in others if other in self.stems]))

    def translated(self, word: str) -> str:
        """What a foreign word or synonym that no product has is called here; else nothing."""
        value, names = _names_of(word, self.language)
        there = (name for name in (value, *names) if self.stems.keys() >= set(map(self.stem, name.split())))
        return "" if self.stem(word) in self.stems else next(there, "")

    def is_kind(self, stems: Iterable[str]) -> bool:
        """Whether one of these stems stands in the columns that say what a product is."""
        return not self._marked["+"].isdisjoint(stems)

    def is_look(self, stems: Iterable[str]) -> bool:
        """Whether one of these stems stands in the columns of color, material and style."""
        return not self._marked["~"].isdisjoint(stems)

    def is_stop(self, word: str) -> bool:
        """Whether a folded word says nothing about a product, in English, here or where it is unknown."""
        known = knowledge()["stop"] if self.stem(word) not in self.stems else ("en", self.language)
        return any(word in knowledge()["stop"][language] for language in known)

    def keywords(self, row: Mapping[str, Any], fields: Iterable[Field]) -> str:
        """Everything that a product is found by, for the index."""
        named, long = list[str](), list[str]()
        for field in fields:
            for text in field.texts(row):
                if field.kind == "code":
                    named += [f"={code}" for code in codes_of(text)]
                    continue
                tokens = self.tokens(text)
                if field.kind == "long" and (field.column == "description" or len(tokens) > _LONG_TEXT):
                    long += tokens[:_MOST_LONG_WORDS]
                    continue
                named += tokens * field.weight
                if field.column == "title":  # it opens with a brand or series, or the kind
                    named += [*tokens[:1], *(f"^{forms[0]}" for forms in words_of(text)[:1])]
                named += ["@" + name_of(text)] * (field.kind == "name")
        return " ".join([*named, "|", *long])


def _counted(rows: Iterable[Mapping[str, Any]], fields: Sequence[Field]) -> tuple[int, Counter[str]]:
    """How many rows there are, and how many have each word; `+`: a word for what it is, `~`: how it looks."""
    counts: Counter[str] = Counter()
    names = [field.column for field in fields if field.kind == "name"]
    products, texts = 0, [field for field in fields if field.kind != "code"]
    for row in rows:
        products += 1
        counts.update(
            {
                mark + form
                for field in texts
                for mark in ("", *"+"[: field.is_type], *"~"[: field.is_look])
                for text in field.texts(row)
                for forms in said_of(text)
                for form in forms
            }
        )
        counts.update({f"@{name_of(text)}" for name in names for text in texts_of(row.get(name))})
    return products, counts


def texts_of(value: Any) -> list[str]:
    """The texts of a cell; none where it is empty or says that nothing is known."""
    values = value if isinstance(value, list) else [value]
    return [
        code if isinstance(each, float) and (code := f"{each:.0f}") else str(each)
        for each in values
        if each is not None and not isinstance(each, bool) and known(str(each))
    ]
