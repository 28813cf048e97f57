"""What a shopper's text asks for: words with their spellings in this catalogue, filters, and what is unknown.

A word that no product has is, in this order: a word of another language or a synonym (words.toml), two
words written as one or one written as two, a typing error (optimal string alignment, one letter in four to
seven, two in longer words), or unknown. "under 100", "between 200 and 300 euros" become filters where there
is a column `price`; "without glass", "not red" words that are kept out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

from rapidfuzz import process
from rapidfuzz.distance import OSA

from furnclip.vectors.words import Vocabulary, code_of, fold, knowledge, name_of, value_of, words_of

PRICE = "price"
_TYPOS = ((8, 2), (4, 1))  # from so many letters on: so many errors
_SHORT = 5  # letters, up to which hardly anybody misses the first one
_SPELLINGS = 3  # of a mistyped word, at most
_SATURATION = 1.2  # k1 of BM25: a word that is there as often counts half of what it may
_SHORTNESS = 0.75  # b of BM25
_LOOKS = 0.8  # what all other words weigh together at most, against those that say what is looked for


@dataclass(frozen=True)
class Term:
    """A word of the query and the words of the index that stand for it; none where it is unknown."""

    word: str
    stems: tuple[str, ...]
    spelled: str = ""
    """the word of the catalogue that a mistyped or foreign one is taken for"""
    is_kind: bool = False
    """whether it says what a product is, and not only how it looks"""

    weight: float = 1.0


@dataclass(frozen=True)
class Query:
    """A text as it is searched. `text`: for the encoder. `where`: filters in the shopper's SQL."""

    text: str
    terms: tuple[Term, ...] = ()
    exact: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    avoided: tuple[str, ...] = ()
    understood: tuple[str, ...] = ()

    @property
    def unknown(self) -> list[str]:
        """Words that no product has, however they are written."""
        return [term.word for term in self.terms if not term.stems]

    @property
    def is_unknown(self) -> bool:
        """Whether no product has any of its words."""
        return bool(self.terms) and not any(term.stems for term in self.terms)

    @property
    def groups(self) -> list[str]:
        """For each word that is known, the words of the index that stand for it."""
        return [" ".join(term.stems) for term in self.terms if term.stems]

    @cached_property
    def words(self) -> str:
        """The words of the index, and what the text may be exactly."""
        return " ".join(dict.fromkeys([*self.exact, *(stem for term in self.terms for stem in term.stems)]))

    @cached_property
    def kinds(self) -> str:
        """Those of its words that say what is looked for; none where there are no others."""
        kinds = [stem for term in self.terms if term.is_kind for stem in term.stems]
        return " ".join(kinds) if any(term.stems and not term.is_kind for term in self.terms) else ""

    def shares(self, keywords: Mapping[int, str]) -> dict[int, float]:
        """How much of what is asked for each row's keywords have, from 0 to 1, as by BM25.

        Words that mean the same count as one: a rare one among them is not worth more.
        """
        terms = [term for term in self.terms if term.stems]
        most = sum(term.weight for term in terms) or 1.0
        named = {row: text.partition("|")[0].split() for row, text in keywords.items()}
        usual = sum(map(len, named.values())) / max(1, len(named)) or 1.0
        shares = {}
        for row, words in named.items():
            half = _SATURATION * (1 - _SHORTNESS + _SHORTNESS * len(words) / usual)
            passing = f" {keywords[row].partition('|')[2]} "
            reached = 0.0
            for term in terms:
                there = sum(map(words.count, term.stems))
                there = there or any(f" {stem} " in passing for stem in term.stems)
                reached += term.weight * there / (there + half)
            shares[row] = reached / most
        return shares


def understand(text: str, vocabulary: Vocabulary, columns: Collection[str], *, literal: bool) -> Query:
    """What `text` asks of a catalogue with these words and columns."""
    where, avoided, said = list[str](), list[str](), list[str]()
    rest = text
    if not literal:
        rest, where = _priced(rest) if PRICE in columns else (rest, [])
        rest, avoided = _negated(rest, vocabulary)
        said = [*where, *(f"without {word}" for word in avoided)]
    if not words_of(rest):  # nothing is left to look for
        rest = text
    terms = _weighed(list(_terms(rest, vocabulary)), vocabulary)
    exact = _exact(text, vocabulary)
    said += [f"`{term.word}` as `{term.spelled}`" for term in terms if term.spelled]
    spelled = {term.word: term.spelled for term in terms if term.spelled}
    corrected = re.sub(r"[^\W_]+", lambda match: spelled.get(fold(match[0]), match[0]), rest)
    return Query(corrected.strip(), tuple(terms), exact, tuple(where), tuple(avoided), tuple(said))


def _exact(text: str, vocabulary: Vocabulary) -> tuple[str, ...]:
    """The words of the index that only a product has whose id, code or name is the text."""
    code, name = code_of(text), f"@{name_of(text)}"
    # An id has a digit or is one word; looking for others would take time.
    is_code = code and (any(map(str.isdigit, code)) or len(text.split()) == 1)
    return (f"={code}",) * bool(is_code) + (name,) * (name in vocabulary.frequencies)


# --- words


def _weighed(terms: list[Term], vocabulary: Vocabulary) -> list[Term]:
    """The terms with what each counts: rare ones more, and a sofa that is not red before what is red."""
    terms = [
        replace(term, weight=vocabulary.rarity(*term.stems), is_kind=vocabulary.is_kind(term.stems))
        for term in terms
    ]
    kinds = sum(term.weight for term in terms if term.is_kind)
    others = sum(term.weight for term in terms if term.stems and not term.is_kind)
    if kinds and others > _LOOKS * kinds:
        share = _LOOKS * kinds / others
        terms = [term if term.is_kind else replace(term, weight=share * term.weight) for term in terms]
    return terms


def _terms(text: str, vocabulary: Vocabulary) -> Iterator[Term]:
    words = words_of(text)
    words = [forms for forms in words if not vocabulary.is_stop(forms[0])] or words
    found = [[stem for form in forms for stem in vocabulary.meanings(form)] for forms in words]
    place = 0
    while place < len(words):
        word, stems = words[place][0], found[place]
        following = words[place + 1][0] if place + 1 < len(words) else ""
        joined = vocabulary.meanings(word + following) if following else []
        if joined and not (stems and found[place + 1]):  # "sun glasses", where no product has "sun"
            yield Term(word + following, tuple(joined))
            place += 1
        elif joined:
            found[place + 1] += joined
            yield Term(word, tuple(dict.fromkeys(stems + joined)))
        elif stems:
            yield Term(word, tuple(dict.fromkeys(stems)), vocabulary.translated(word))
        else:
            yield from _guessed(word, vocabulary)
        place += 1


def _guessed(word: str, vocabulary: Vocabulary) -> Iterator[Term]:
    """A word that no product has: as two words, else as those it resembles, else unknown."""
    for cut in range(3, len(word) - 2):
        parts = word[:cut], word[cut:]
        if all(part in vocabulary.frequencies for part in parts):
            yield from (Term(part, (vocabulary.stem(part),)) for part in parts)
            return
    typos = _typos(word, vocabulary)
    yield Term(word, tuple(dict.fromkeys(map(vocabulary.stem, typos))), typos[0] if typos else "")


def _typos(word: str, vocabulary: Vocabulary) -> list[str]:
    """The words of the catalogue that this one is most likely meant to be, the likeliest first."""
    most = next((errors for letters, errors in _TYPOS if len(word) >= letters), 0)
    if not most or not word.isalpha():
        return []
    close = process.extract(
        word, vocabulary.alphabetic, scorer=OSA.distance, score_cutoff=most, limit=20, processor=None
    )
    ranked = sorted(
        (distance, found[0] != word[0], -vocabulary.frequencies[found], found)
        for found, distance, _ in close
        # "tall" is a word of its own and no slip for "wall"; "osfa" is one for "sofa"
        if found[0] == word[0] or len(word) > _SHORT or sorted(found) == sorted(word)
    )
    nearest = [found for distance, *_, found in ranked if distance == ranked[0][0]]
    return nearest[:_SPELLINGS]


# --- filters


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    says = knowledge()["filters"]
    units = "|".join(map(re.escape, knowledge()["units"]))
    phrase = {
        name: "|".join(map(re.escape, sorted(words, key=len, reverse=True))) for name, words in says.items()
    }
    money = f"(?:{phrase['currency']})"
    amount = rf"(?:{money}\s*)?(\d[\d.,]*)(?![\d.,]|\s*(?:{units})\b)(?:\s*{money}(?!\w))?"
    words = rf"(?<!\w)(?:{phrase['not']})\s+((?:\w+\s+){{0,2}}?)(\w+)"
    return {
        "between": re.compile(rf"(?<!\w)(?:{phrase['between']})\s+{amount}\s*(?:{phrase['and']})\s*{amount}"),
        "most": re.compile(rf"(?<!\w)(?:{phrase['most']})\s*{amount}"),
        "least": re.compile(rf"(?<!\w)(?:{phrase['least']})\s*{amount}"),
        "not": re.compile(words),
    }


def _priced(text: str) -> tuple[str, list[str]]:
    """The text without what it says about the price, and that as conditions."""
    rest, where = fold(text), list[str]()
    shapes = {
        "between": f"{PRICE} BETWEEN {{0}} AND {{1}}",
        "most": f"{PRICE} <= {{0}}",
        "least": f"{PRICE} >= {{0}}",
    }
    for name, shape in shapes.items():
        while match := _patterns()[name].search(rest):
            where.append(shape.format(*sorted(value_of(number) for number in match.groups())))
            rest = f"{rest[: match.start()]} {rest[match.end() :]}"
    return (rest, where) if where else (text, [])


def _negated(text: str, vocabulary: Vocabulary) -> tuple[str, list[str]]:
    """The text without the words it does not want, and these; words that no product has stay."""
    rest, avoided, start = fold(text), list[str](), 0
    while match := _patterns()["not"].search(rest, start):
        between, word = match.groups()
        start = match.end()
        if any(not vocabulary.is_stop(each) for each in between.split()) or vocabulary.is_stop(word):
            start = match.start() + 1
        elif word.isalpha() and vocabulary.meanings(word):
            avoided.append(word)
            rest, start = f"{rest[: match.start()]} {rest[match.end() :]}", match.start()
    return (rest, avoided) if avoided else (text, [])
