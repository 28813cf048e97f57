"""What a shopper's text asks for: words with their spellings in this catalogue, filters, and what is unknown.

A word that no product has is, in this order: a word of another language or a synonym (words.toml), two words
written as one or one written as two, a typing error (optimal string alignment), or unknown. "under 100",
"between 200 and 300 euros" become filters where there is a column `price`; "without glass" words kept out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from itertools import pairwise

from rapidfuzz import process
from rapidfuzz.distance import OSA

from furnclip.vectors.index import KEYWORDS
from furnclip.vectors.words import Vocabulary, code_of, codes_of, fold, knowledge, name_of, value_of, words_of

PRICE = "price"
_TYPOS = ((8, 2), (4, 1))  # from so many letters on: so many errors
_LONG = 32  # letters, from which a word is not guessed: the ways to read one grow with the square of them
_SHORT = 7  # letters, up to which hardly anybody misses the first one: "seater" is no "heater"
_NEAR_SIZE = 0.04  # of a size: beds come in steps of a twentieth
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([a-z]*)")
_CROSSED = re.compile(r"\d\s*[x\u00d7*]\s*\d")  # of bare numbers only those of "120x60" are sizes
_CODE_DIGITS, _CODE_CHARACTERS = 6, 4  # at least, of an article number beside other words
_SPELLINGS = 3  # of a mistyped word, at most
_SATURATION = 1.2  # k1 of BM25: a word that is there as often counts half of what it may
_SHORTNESS = 0.75  # b of BM25
_ALIKE = 0.5  # what words count that mean the same, against the one that was typed
_EITHER = 0.7  # what one of several things counts that are asked for
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
    either: int = 0
    """which of the things that the query names: "perfume and body mist" are two"""

    is_guess: bool = False
    """whether it is taken for a typing error other than swapped letters, which may be another word"""

    opening: str = ""
    """what a title has in the index that opens with the word as it is written, where it may be a name"""

    def reached(self, words: Sequence[str], passing: str, length: float) -> float:
        """How much of it these words have, from 0 to 1; `length`: of usual texts.

        Of a text that opens with a name the length does not matter: it is about that.
        """
        own, *others = map(words.count, self.stems)
        there = own + _ALIKE * sum(others)
        if not there and not (passing and any(f" {stem} " in passing for stem in self.stems)):
            return 0.0
        is_opened = bool(there and self.opening) and self.opening in words
        there = there or (1 if f" {self.stems[0]} " in passing else _ALIKE)
        half = _SATURATION * (1 - _SHORTNESS + _SHORTNESS * length * (not is_opened))
        return there / (there + half)


@dataclass(frozen=True)
class Query:
    """A text as it is searched. `text`: for the encoder, empty where it only says filters.

    `exact`: what leads; `articles`: what codes in it begin with, where there is nothing of `exact`.
    `where`: filters in the shopper's SQL.
    """

    text: str
    terms: tuple[Term, ...] = ()
    exact: tuple[str, ...] = ()
    articles: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    avoided: tuple[str, ...] = ()
    understood: tuple[str, ...] = ()

    @property
    def unknown(self) -> list[str]:
        """Words that no product has, however they are written."""
        return [term.word for term in self.terms if not term.stems]

    @property
    def groups(self) -> list[str]:
        """For each word that is known, the words of the index that stand for it."""
        return [" ".join(term.stems) for term in self.terms if term.stems]

    @property
    def condition(self) -> str:
        """In the table's own SQL: that a product has every known word of one of the things."""
        things: dict[int, list[str]] = {}
        for term in self.terms:
            if term.stems:
                has = f"regexp_like({KEYWORDS}, '(^| )({'|'.join(term.stems)})( |$)')"
                things.setdefault(term.either, []).append(has)
        return f"({' OR '.join(' AND '.join(words) for words in things.values())})"

    @cached_property
    def words(self) -> str:
        """The words of the index, and what the text may be exactly."""
        asked = (word for term in self.terms for word in (*term.stems, term.opening))
        return " ".join(dict.fromkeys(filter(None, [*self.exact, *self.articles, *asked])))

    @cached_property
    def kinds(self) -> str:
        """Those of its words that say what is looked for; none where there are no others."""
        kinds = [stem for term in self.terms if term.is_kind for stem in term.stems]
        return " ".join(kinds) if any(term.stems and not term.is_kind for term in self.terms) else ""

    def shares(self, keywords: Mapping[int, str]) -> dict[int, float]:
        """How much of what is asked for each row's keywords have, from 0 to 1, as by BM25.

        Words that mean the same count as one: a rare one among them is not worth more. Of several things
        that are asked for, the one that it has most of counts more than all together.
        """
        terms = [term for term in self.terms if term.stems]
        most, wholes = sum(term.weight for term in terms) or 1.0, dict[int, float]()
        for term in terms:
            wholes[term.either] = wholes.get(term.either, 0.0) + term.weight
        named = {row: text.partition("|")[0].split() for row, text in keywords.items()}
        usual = sum(map(len, named.values())) / max(1, len(named)) or 1.0
        shares = {}
        for row, words in named.items():
            passing = keywords[row].partition("|")[2] and f" {keywords[row].partition('|')[2]} "
            reached = dict.fromkeys(wholes, 0.0)
            for term in terms:
                reached[term.either] += term.weight * term.reached(words, passing, len(words) / usual)
            shares[row] = sum(reached.values()) / most
            if len(wholes) > 1:
                best = max(reached[thing] / whole for thing, whole in wholes.items() if whole)
                shares[row] += _EITHER * (best - shares[row])
        return shares


def understand(text: str, vocabulary: Vocabulary, columns: Mapping[str, str], *, literal: bool) -> Query:
    """What `text` asks of a catalogue with these words and columns, name -> kind."""
    where, avoided, said = list[str](), list[str](), list[str]()
    rest = text = _as_written(text, vocabulary)
    is_name = f"@{name_of(text)}" in vocabulary.frequencies  # "No Fear" and "Max 90" are no filters
    if not literal and not is_name:
        rest, where = _priced(rest)
        why = f"column `{PRICE}` holds texts:" if PRICE in columns else f"no column `{PRICE}` for"
        missing = [f"{why} `{condition}`" for condition in where if columns.get(PRICE) != "number"]
        where = [] if missing else where
        rest, avoided = _negated(rest, vocabulary)
        said = [*missing, *where, *(f"without {word}" for word in avoided)]
        said += [f"no product has `{word}`" for word in avoided if not _said(word, vocabulary)]
    exact, articles = _exact(text, rest, vocabulary)
    if not words_of(rest) and not (where or avoided):  # of a filter that there is no column for
        rest = text
    without = [(word, vocabulary.meanings(f"!{word}")) for word in avoided]
    said_so = [Term(f"without {word}", tuple(stems)) for word, stems in without if stems]
    terms = _weighed([*_things(rest, vocabulary), *said_so], vocabulary)
    said += [f"`{term.word}` as `{term.spelled}`" for term in terms if term.spelled]
    spelled = {term.word: term.spelled for term in terms if term.spelled}
    for first, second in pairwise(terms):  # of a compound
        spelled[first.word + second.word] = " ".join(term.spelled or term.word for term in (first, second))
    corrected = re.sub(r"[^\W_]+", lambda match: spelled.get(fold(match[0]), match[0]), rest)
    if not words_of(rest):
        corrected = text if terms or not (where or avoided) else ""
    return Query(corrected.strip(), tuple(terms), exact, articles, tuple(where), tuple(avoided), tuple(said))


def _as_written(text: str, vocabulary: Vocabulary) -> str:
    """The text with umlauts as the catalogue has them; parts of an article number stay."""

    def written(match: re.Match[str]) -> str:
        word = vocabulary.written(fold(match[0]))
        return match[0] if word == fold(match[0]) else word

    return re.sub(r"\b(?<!\d-)[^\W\d_]+(?![\w-]*\d)", written, text)


def _exact(text: str, rest: str, vocabulary: Vocabulary) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words of the index: an id, code or name that is the text, or a code in the rest of it; and what
    these begin with, for the article of a variant that there is not.

    rest: what no filter was made of; a price is no article number.
    """
    code, name = code_of(text), f"@{name_of(text)}"
    # An id has a digit or is one word; looking for others would take time.
    is_code = code and (any(map(str.isdigit, code)) or len(text.split()) == 1)
    written = [text] * bool(is_code) + [word for word in rest.split() if _is_code(word)]
    codes = dict.fromkeys(f"={code_of(each)}" for each in written)
    starts = (start for each in written for start in codes_of(each)[1:] if _is_code(start))
    articles = dict.fromkeys(f"={start}" for start in starts)
    return (*codes, *((name,) * (name in vocabulary.frequencies))), tuple(articles)


def _is_code(word: str) -> bool:
    """Whether a word within a text is an article number, and neither a year, a size nor an amount."""
    code = code_of(word)
    if code.isdigit():
        return len(code) >= _CODE_DIGITS
    is_size = _CROSSED.search(word) or ((size := _SIZE.fullmatch(code)) and size[2] in knowledge()["units"])
    return len(code) >= _CODE_CHARACTERS and any(map(str.isdigit, code)) and not is_size


# --- words


def _weighed(terms: list[Term], vocabulary: Vocabulary) -> list[Term]:
    """The terms with what each counts: rare ones more, and a sofa that is not red before what is red.

    Before a kind that was typed as the catalogue has it a guess is none: "wrist watch" is no waist pouch.
    """
    weighed = []
    kinds_typed = [vocabulary.is_kind(term.stems) and not term.is_guess for term in terms]
    for place, term in enumerate(terms):
        is_kind = vocabulary.is_kind(term.stems) and not (term.is_guess and any(kinds_typed[place:]))
        may_be_name = term.stems and not is_kind and not vocabulary.is_look(term.stems)
        opening = f"^{(term.spelled or term.word).split()[0]}" if may_be_name else ""
        weight = vocabulary.rarity(*term.stems)
        weighed.append(replace(term, weight=weight, is_kind=is_kind, opening=opening))
    kinds = sum(term.weight for term in weighed if term.is_kind)
    others = sum(term.weight for term in weighed if term.stems and not term.is_kind)
    share = _LOOKS * kinds / others if kinds and others > _LOOKS * kinds else 1.0
    return [term if term.is_kind else replace(term, weight=share * term.weight) for term in weighed]


def _things(text: str, vocabulary: Vocabulary) -> list[Term]:
    """The words of a text; of "lamp and clock" those of two things, not so of "black and white lamp"."""
    joints = "|".join(map(re.escape, knowledge()["filters"]["either"]))
    things = [list(_terms(part, vocabulary)) for part in re.split(rf"\s(?:{joints})\s", fold(text))]
    heads = [next((term for term in reversed(thing) if term.stems), None) for thing in things]
    has_kinds = any(vocabulary.is_kind(term.stems) for thing in things for term in thing)
    are_things = all(
        head and (vocabulary.is_kind(head.stems) if has_kinds else not vocabulary.is_look(head.stems))
        for head in heads
    )
    return [replace(term, either=are_things * place) for place, thing in enumerate(things) for term in thing]


def _terms(text: str, vocabulary: Vocabulary) -> Iterator[Term]:
    words = words_of(text)
    words = [forms for forms in words if not vocabulary.is_stop(forms[0])] or words
    found = [[stem for form in forms for stem in vocabulary.meanings(form)] for forms in words]
    if _CROSSED.search(text) or any(len(forms) > 1 for forms in words):
        found = [stems + _near(forms, vocabulary) for stems, forms in zip(found, words, strict=True)]
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
            spelled = vocabulary.translated(word)
            yield Term(word, tuple(dict.fromkeys(stems)), spelled)
            for other in spelled.split()[1:]:  # "couchtisch" is a coffee table, and no coffee cup
                yield Term(other, tuple(vocabulary.meanings(other)))
        else:
            yield from _guessed(word, vocabulary)
        place += 1


def _near(forms: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Sizes near to the one that is asked for, the nearest first: "120x60" looks for 118 x 61 cm too."""
    if not (match := _SIZE.fullmatch(forms[-1])) or not (value := float(match[1])):
        return []
    near = [(abs(size / value - 1), word) for size, word in _sizes(vocabulary).get(match[2] or "cm", [])]
    return [word for apart, word in sorted(near) if apart <= _NEAR_SIZE]


@lru_cache(maxsize=4)
def _sizes(vocabulary: Vocabulary) -> dict[str, list[tuple[float, str]]]:
    """The numbers with units of a catalogue, by unit."""
    found: dict[str, list[tuple[float, str]]] = {}
    for word in vocabulary.stems:
        if match := _SIZE.fullmatch(word):
            found.setdefault(match[2], []).append((float(match[1]), word))
    return found


def _guessed(word: str, vocabulary: Vocabulary) -> Iterator[Term]:
    """A word that no product has: as two words, else as those it resembles, else unknown."""

    def known(part: str) -> list[str]:
        return [stem] if (stem := vocabulary.stem(part)) in vocabulary.stems else []

    def kinds(part: str) -> list[str]:
        return stems if len(part) > 3 and vocabulary.is_kind(stems := vocabulary.meanings(part)) else []

    if len(word) > _LONG:
        yield Term(word, ())
        return
    slips = [word[:at] + word[at + 1] + word[at] + word[at + 2 :] for at in range(len(word) - 1)]
    if not (found := _parts([word], known, known)) and (typos := _typos(word, vocabulary)):
        is_guess = sorted(word) != sorted(typos[0])
        yield Term(word, tuple(dict.fromkeys(map(vocabulary.stem, typos))), typos[0], is_guess=is_guess)
        return
    found = found or _parts(slips, known, known) or _parts([word], vocabulary.meanings, kinds)
    if not found and (ends := _parts([word], lambda part: [part], kinds)):
        found = [(word, ends[1][1])]
    for part, stems in found or [(word, [])]:
        yield Term(part, tuple(stems), vocabulary.translated(ends[1][0] if part == word and found else part))


def _parts(words: Sequence[str], *known: Callable[[str], list[str]]) -> list[tuple[str, list[str]]]:
    """Two words that one of these is made of, as far as what is `known` of both goes, and their stems."""
    first, second = known
    cuts = ((word[:cut], word[cut:]) for word in words for cut in range(3, len(word) - 2))
    pairs = ([(one, first(one)), (other, second(other))] for one, other in cuts if first(one))
    return next((pair for pair in pairs if pair[1][1]), [])


def _typos(word: str, vocabulary: Vocabulary) -> list[str]:
    """The words of the catalogue that this one is most likely meant to be, the likeliest first."""
    most = next((errors for letters, errors in _TYPOS if len(word) >= letters), 0)
    if not most or not word.isalpha():
        return []
    known = vocabulary.alphabetic
    close = process.extract(word, known, scorer=OSA.distance, score_cutoff=most, limit=20, processor=None)
    ranked = sorted(
        (distance, found[0] != word[0], -vocabulary.frequencies.get(found, 0), found)
        for found, distance, _ in close
        # "osfa" is a slip for "sofa"
        if found[0] == word[0] or len(word) > _SHORT or sorted(found) == sorted(word)
    )
    return [found for distance, *_, found in ranked if distance == ranked[0][0]][:_SPELLINGS]


# --- filters


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    """`BETWEEN`, `<=` and `>=` of an amount, `not` of up to three words, and the `or` behind it."""
    units = "|".join(map(re.escape, knowledge()["units"]))
    says = {
        name: "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
        for name, words in knowledge()["filters"].items()
    }
    money = f"(?:{says['currency']})"
    amount = rf"(?:{money}\s*)?(\d[\d.,]*)(?![\d.,]|\s*(?:{units})\b)(?:\s*{money}(?!\w))?"
    shapes = {
        "BETWEEN": rf"(?:{says['between']})\s+{amount}\s*(?:{says['and']})\s*{amount}",
        "<=": rf"(?:{says['most']})\s*{amount}",
        ">=": rf"(?:{says['least']})\s*{amount}",
        "not": rf"(?:{says['not']})((?:[\s-]+\w+){{1,3}})",
    }
    patterns = {name: re.compile(rf"(?<!\w){shape}") for name, shape in shapes.items()}
    return patterns | {"or": re.compile(rf"^,?\s+(?:{says['or']})\s+")}


def _priced(text: str) -> tuple[str, list[str]]:
    """The text without what it says about the price, and that as conditions."""
    rest, where = fold(text), list[str]()
    for comparison in ("BETWEEN", "<=", ">="):
        while match := _patterns()[comparison].search(rest):
            amounts = sorted(map(value_of, match.groups()))
            where.append(f"{PRICE} {comparison} {' AND '.join(map(str, amounts))}")
            rest = f"{rest[: match.start()]} {rest[match.end() :]}"
    return (rest, where) if where else (text, [])


def _negated(text: str, vocabulary: Vocabulary) -> tuple[str, list[str]]:
    """The text without the words it does not want, and these."""
    rest, avoided, start = fold(text), list[str](), 0
    while match := _patterns()["not"].search(rest, start):
        said = (each for each in re.finditer(r"\w+", match[1]) if not vocabulary.is_stop(each[0]))
        first = next(said, None)  # "without a back"
        start = match.start() + 1
        if first and (word := first[0]).isalpha():
            typos = [] if _said(word, vocabulary) else _typos(word, vocabulary)
            avoided.append(next(iter(typos), word))
            # "without glass or metal" is without either
            says_not, behind = rest[match.start() : match.start(1)], rest[match.start(1) + first.end() :]
            behind = _patterns()["or"].sub(f" {says_not} ", behind)
            rest = f"{rest[: match.start()]} {behind}"
            start = match.start()
    return (rest, avoided) if avoided else (text, [])


def _said(word: str, vocabulary: Vocabulary) -> list[str]:
    """The stems of products that have this, or say they have not."""
    return vocabulary.meanings(word) + vocabulary.meanings(f"!{word}")
