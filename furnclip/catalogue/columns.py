"""Typed columns: what kind of value a catalogue's column holds, and the name by which a filter finds it.

A column is of a kind when nearly all of its cells are (`_MOST`): one "on request" among a thousand prices
does not make them text; such cells are counted. Money is a number without its sign; the availability of a
feed, or a quantity, is the boolean `in_stock`. Digits that are a name (an article number, "007") stay text.

Names: lower case, without accents, `_` for all else. A name that is taken, furnclip's own or a word of SQL
gets `raw_` in front, as in `cleaned.csv`; where that is taken too, a number follows.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache, lru_cache
from itertools import chain, count
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import tomli

from furnclip.catalogue.text import plain_text

Kind = Literal["text", "number", "boolean", "date", "list"]
Written = Literal["", ",", ".", "day", "month"]
Value = str | float | bool | date | list[str]
_MOST = 0.95  # of a column's cells have to be of its kind
_MOST_PRICES = 0.5  # of one that is called a price: "on request" is usual for kitchens and the like
_CERTAIN_CELLS = 200  # so many misfits settle a column that is mostly text
_LISTED = 0.1  # of a column's cells have a `|` in them, where it holds lists
_LONGEST_ITEM = 100
_LONGEST_CELL = 80  # of a number, boolean or date
_AMOUNT = re.compile(
    r"(?P<before>[^\d,+-]*?)(?P<sign>[+-]?) ?(?P<unit>[^\d.,+-]*)"
    r"(?P<digits>\d[\d.,' ]*?|[.,]\d+)(?P<no_cents>[.,]-{1,2})? ?(?P<after>[^\d,+-]*)",
    re.ASCII,
)
_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d+)?[eE][+-]?\d+", re.ASCII)
_NAME_DIGITS = re.compile(r"[+-]?0\d.*|\d{16,}")  # an article number, not a number
_TIME = r"(?:[T ]\d\d:\d\d[\d:.]* ?(?:Z|UTC|[+-]\d\d:?\d\d)?)?"
_YEAR_FIRST = re.compile(rf"(\d{{4}})-(\d\d?)-(\d\d?){_TIME}", re.ASCII)
_YEAR_LAST = re.compile(rf"(\d\d?)([./-])(\d\d?)\2(\d{{4}}){_TIME}", re.ASCII)
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SCHEMA_ORG = re.compile(r"https?://schema\.org/")
_PLAIN_SIGNS = {ord(blank): " " for blank in "\u00a0\u202f\u2009\t"} | {0x2019: "'", 0x2212: "-", 0x2013: "-"}
_KINDS: dict[str, Kind] = {
    "description": "text",
    "price": "number",
    "in_stock": "boolean",
    "quantity": "number",
}


@cache
def known_names() -> dict[str, dict[str, list[str]]]:
    """The tables of `names.toml`."""
    return tomli.loads(Path(__file__).with_name("names.toml").read_text(encoding="utf-8"))


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """A column's name as SQL can have it: `[a-z0-9_]*`, empty where nothing is left.

    >>> plain_name("g:Größe (cm)")
    'grosse_cm'
    """
    text = unicodedata.normalize("NFKD", name.strip().removeprefix("g:")).casefold()
    text = "".join(sign for sign in text if not unicodedata.combining(sign))
    return re.sub("[^a-z0-9]+", "_", text).strip("_")


def short_name(name: str) -> str:
    """The plain name without what some exports add to it: units, examples, languages, positions.

    >>> short_name("item_name[language_tag=en_US]#1.value"), short_name("Price (tax excl.)")
    ('item_name', 'price')
    """
    apart = _CAMEL_CASE.sub("_", name)
    return plain_name(re.split(r"[\[#(]", apart)[0]) or plain_name(apart)


def known_as(wanted: Sequence[str], names: Collection[str], role: str) -> list[str]:
    """Short names that are one of the wanted; then those that have one in them as whole words.

    English ones first, then the one with the lowest number; none with a word of `unlike` in `names.toml`.
    """
    unlike, english = set(known_names()["unlike"][role]), set(known_names()["words"]["english"])
    words = {name: set(name.split("_")) for name in names}
    found = [name for name in wanted if name in words]
    longer = [name for name in names if not words[name] & unlike]
    longer.sort(
        key=lambda name: (not words[name] & english, int("0" + name[len(name.rstrip("0123456789")) :][:9]))
    )
    found += [name for known in wanted for name in longer if f"_{known}_" in f"_{name}_"]
    return list(dict.fromkeys(found))


@cache
def _words(name: str) -> frozenset[str]:
    return frozenset(word.casefold() for word in known_names()["words"][name])


def says_nothing(text: str) -> bool:
    """Whether a cell, without spaces around it, is empty or says that the value is not known."""
    return not text or text.casefold() in _words("nothing")


def names_nothing(text: str) -> bool:
    """Whether a cell, without spaces around it, names no other product."""
    return text == "0" or says_nothing(text)


@dataclass(frozen=True)
class Column:
    """One column: `source` is what the catalogue calls it, `name` what a filter does.

    `written`: the decimal sign, or which of day and month comes first, where cells alone do not tell it.
    `unread`: cells that are not of its kind.
    """

    source: str
    name: str
    kind: Kind
    written: Written = ""
    unread: int = 0

    def value(self, cell: str) -> Value | None:
        """The cell as a value of the kind, or None; of several the lowest, the first day, or any."""
        text = cell.strip()
        if says_nothing(text):
            return None
        if self.kind == "text":
            return plain_text(text) or None
        if self.kind == "list":
            return _items(text, "|" if "|" in text else ",") or None
        values: list[Any] = [self._one(part) for part in _items(text, "|")]
        if not values or None in values:
            return None
        lowest: float | bool | date = any(values) if self.kind == "boolean" else min(values)
        return lowest

    def _one(self, text: str) -> float | bool | date | None:
        if len(text) > _LONGEST_CELL:
            return None
        if self.kind == "boolean":
            return _boolean(text)
        return _date(text, self.written) if self.kind == "date" else _amount(text, self.written)[0]


def _items(text: str, separator: str) -> list[str]:
    return list(filter(None, (plain_text(item.strip()) for item in text.split(separator))))


def _amount(text: str, decimal: str = "") -> tuple[float | None, str]:
    """An amount of money, or a number, and its decimal sign if certain; else `decimal`, or a point, is it."""
    if _SCIENTIFIC.fullmatch(text):
        number = float(text)
        return (number if math.isfinite(number) else None), "."
    match = _AMOUNT.fullmatch(text.translate(_PLAIN_SIGNS))
    if not match or not all(map(_is_money, match.group("before", "unit", "after"))):
        return None, ""
    parts, signs = re.split("[.,' ]", match["digits"]), re.findall("[.,' ]", match["digits"])
    last, certain, fraction = "".join(signs[-1:]), (match["no_cents"] or "")[:1], ""
    if last in (".", ","):
        if signs.count(last) > 1:
            certain = "," if last == "." else "."
        elif len(signs) > 1 or len(parts[-1]) != 3 or parts[0] in ("", "0") or len(parts[0]) > 3:
            certain = last
        if last == (certain or decimal or "."):
            fraction = parts.pop()
            signs.pop()
    are_thousands = len(set(signs)) <= 1 and all(len(part) in (2, 3) for part in parts[1:-1])
    if signs and not (are_thousands and len(parts[-1]) == 3 and 1 <= len(parts[0]) <= 3):
        return None, ""
    return float(f"{match['sign']}{''.join(parts) or 0}.{fraction or 0}"), certain


def _is_money(text: str) -> bool:
    """Whether a text is the sign of a currency, or nothing."""
    word = text.strip("* ")  # an asterisk stands for a note
    return (
        not word or word.casefold() in _words("money") or all(unicodedata.category(c) == "Sc" for c in word)
    )


def _boolean(text: str) -> bool | None:
    word = _SCHEMA_ORG.sub("", text).casefold()
    spaced = word.replace("_", " ").replace("-", " ")
    if word in _words("yes") or spaced in _words("in_stock"):
        return True
    if word in _words("no") or spaced in _words("out_of_stock"):
        return False
    number, _ = _amount(text)
    return None if number is None else number > 0


@lru_cache(maxsize=256)
def is_published(cell: str) -> bool:
    """Whether a cell says that a product can be seen in the shop; an empty one does."""
    return any(_shows(part) is not False for part in cell.split("|"))


def tells_published(cell: str) -> bool:
    """Whether all that a cell says is that a product can be seen in the shop, or cannot."""
    return all(_shows(part) is not None for part in cell.split("|"))


def needs_parent(cell: str) -> bool:
    """Whether a cell says that a product is seen as a variation of another alone."""
    return cell.strip().casefold() in _words("with_parent")


def _shows(text: str) -> bool | None:
    """Whether the shop shows products of which this is said; None where it is no word for that."""
    word = text.strip().casefold()
    if needs_parent(word) or word in _words("unpublished") or word in _words("no"):
        return False
    if word in _words("published") or word in _words("yes"):
        return True
    number = _amount(word)[0]  # 2 stands for off, as in Magento
    return None if number is None or number > 2 else number == 1


def _date(text: str, first: str = "") -> date | None:
    """A day. Of 04.05.2026 the point tells that the day is first; of 04/05/2026 only the column can tell."""
    if match := _YEAR_FIRST.fullmatch(text):
        year, month, day = map(int, match.groups()[:3])
    elif match := _YEAR_LAST.fullmatch(text):
        day, month, year = int(match[1]), int(match[3]), int(match[4])
        if match[2] != "." and first != "day":
            if first != "month":
                return None
            day, month = month, day
    else:
        return None
    try:
        return date(year, month, day)
    except ValueError:
        return None


@dataclass
class _Counts:
    """What the cells of one column look like."""

    cells: int = 0
    fits: Counter[str] = field(default_factory=Counter)
    signs: Counter[str] = field(default_factory=Counter)
    """decimal signs that are certain, and `day` and `month` where such a one comes first for certain"""
    amounts: int = 0  # numbers that are not -1, 0 or 1
    names: int = 0  # numbers whose digits are a name

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> _Counts:
        return cls(**{**told, "fits": Counter(told["fits"]), "signs": Counter(told["signs"])})

    def __add__(self, other: _Counts) -> _Counts:
        return _Counts(**{name: value + vars(other)[name] for name, value in vars(self).items()})

    def add(self, text: str, times: int) -> None:
        self.cells += times
        kinds = {self._kind_of(part, times) for part in _items(text, "|")}
        kind = kinds.pop() if len(kinds) == 1 else ""
        if not kind and "|" in text and all(len(item) <= _LONGEST_ITEM for item in text.split("|")):
            kind = "list"
        self.fits[kind] += times * bool(kind)

    def _kind_of(self, text: str, times: int) -> str:
        """What a value could be, noted with what it tells of the others; empty for a text."""
        if len(text) > _LONGEST_CELL:
            return ""
        number, sign = _amount(text)
        if number is not None:
            self.signs[sign] += times
            self.names += times * (_NAME_DIGITS.fullmatch(text) is not None)
            self.amounts += times * (number not in (-1, 0, 1))
            return "number"
        if _boolean(text) is not None:
            return "boolean"
        orders = {order for order in ("day", "month") if _date(text, order)}
        certain = orders if len(orders) == 1 else set() if _date(text) or not orders else {"either"}
        self.signs.update(dict.fromkeys(certain, times))
        return "date" if orders else ""

    @property
    def is_settled(self) -> bool:
        """Whether this will stay text whatever comes."""
        return self.cells >= _CERTAIN_CELLS and 2 * max(self.fits.values(), default=0) < self.cells * _LISTED

    def kind(self, source: str) -> Kind:
        """The kind of the column that the catalogue calls `source`."""
        name, names = plain_name(source), known_names()
        kinds, last, first = names["kinds"], name.rpartition("_")[2], name.partition("_")[0]
        if short_name(source) in names["columns"]["description"]:
            return "text"
        if name in kinds["list"]:
            return "list"
        asks = source.rstrip().endswith("?") or short_name(source) in names["columns"]["in_stock"]
        asks = asks or name in kinds["boolean"] or first in kinds["boolean"]
        is_binary = asks and not self.amounts and self._are_most("boolean", "number")
        if is_binary or self.fits["boolean"] == self.cells:
            return "boolean"
        if self._are_most("number") and not self.names and last not in kinds["text"]:
            return "number"
        if (
            short_name(source) in names["columns"]["price"]
            and self.fits["number"] > _MOST_PRICES * self.cells
        ):
            return "number"
        orders = [order for order in ("day", "month") if self.signs[order]]
        if self._are_most("date") and len(orders) == (1 if self.signs["either"] else len(orders) > 0):
            return "date"
        return "list" if self.fits["list"] >= _LISTED * self.cells else "text"

    def _are_most(self, *kinds: str) -> bool:
        return sum(self.fits[kind] for kind in kinds) >= _MOST * self.cells

    def written(self, kind: Kind) -> Written:
        """How the column writes what its cells alone do not tell."""
        signs: list[Written] = [",", "."] if kind == "number" else ["day", "month"] if kind == "date" else []
        found = [sign for sign in signs if self.signs[sign]]
        return found[0] if len(found) == 1 else ""


class ColumnTypes:
    """The kinds of a catalogue's columns, told by its rows; memory does not grow with them."""

    def __init__(self, told: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> None:
        """`told`: what `as_dict` has said of other rows."""
        self._counts = {source: _Counts.of(counts) for source, counts in told.items()}

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """For JSON."""
        return {source: vars(counts) for source, counts in self._counts.items()}

    def __add__(self, other: ColumnTypes) -> ColumnTypes:
        """The types of the rows of both."""
        both = ColumnTypes(self.as_dict())
        for source, counts in other._counts.items():
            both._counts[source] = both._counts.get(source, _Counts()) + counts
        return both

    def add(self, fields: Mapping[str, str], times: int = 1) -> None:
        """One row, as its cells are written; -1 times takes it away again."""
        for source, cell in fields.items():
            counts = self._counts.setdefault(source, _Counts())
            if counts.is_settled:
                continue
            text = cell.strip()
            if not says_nothing(text.strip("| ")):
                counts.add(text, times)

    def columns(self, reserved: Collection[str] = ()) -> list[Column]:
        """Every column that has a value, in order, by free names; a quantity may give `in_stock` as well."""
        kinds = {source: counts.kind(source) for source, counts in self._counts.items() if counts.cells}
        taken = {*reserved, *known_names()["words"]["sql"]}
        usual = {
            name: source for name, kind in _KINDS.items() if (source := _find(name, kind, kinds)) is not None
        }
        quantity = usual.pop("quantity", None)
        quantity = None if "in_stock" in usual else quantity
        names = {source: _free_name(name, taken) for name, source in usual.items()}
        is_stocked = "" if quantity is None else _free_name("in_stock", taken)
        found = []
        for number, (source, kind) in enumerate(kinds.items(), start=1):
            counts = self._counts[source]
            name = names.get(source) or _free_name(plain_name(source) or f"column_{number}", taken)
            unread = counts.cells - counts.fits[kind] if kind in ("number", "date") else 0
            found.append(Column(source, name, kind, counts.written(kind), unread))
            if source == quantity:
                found.append(Column(source, is_stocked, "boolean", unread=unread))
        return found


def _find(name: str, kind: Kind, kinds: Mapping[str, Kind]) -> str | None:
    """The column that has this usual name; None where none of its kind has."""
    by_name = {short_name(source): source for source in reversed(list(kinds)) if kinds[source] == kind}
    found = known_as(known_names()["columns"][name], list(reversed(by_name)), name)
    return by_name[found[0]] if found else None


def _free_name(name: str, taken: set[str]) -> str:
    """The name, or the nearest that is not taken; it is taken then."""
    name = f"_{name}" if name[:1].isdigit() else name
    wanted = name if name not in taken else f"raw_{name}"
    free = next(free for free in chain([wanted], (f"{wanted}_{n}" for n in count(2))) if free not in taken)
    taken.add(free)
    return free
