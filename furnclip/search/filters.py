"""Filters: the shopper's own, read strictly, and the words that must not appear.

A filter is a subset of SQL over the product columns. It is parsed here and written anew for LanceDB, so
that nothing else of DataFusion's SQL (functions that allocate without bound, subqueries, placeholders)
reaches it, and a parenthesis in it cannot end ours:

    color = 'brown' AND NOT (material IN ('glass', 'metal') OR style IS NULL) AND lower(title) LIKE '%oak%'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import pyarrow as pa

from furnclip.errors import UsageError, nearest
from furnclip.vectors.index import DETAILS, KEYWORDS, broken_table, is_broken

_LONGEST = 100_000  # characters: thousands of product ids in one list
_MOST_CONDITIONS = 500
_DEEPEST = 20  # LanceDB's own parser gives up at some fifty parentheses
_LONGEST_EXCLUDED = 200
_FUNCTIONS = {"lower": "lower", "upper": "upper", "trim": "btrim", "length": "length"}
_COMPARISONS = {"=": "=", "==": "=", "!=": "<>", "<>": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_RESERVED = dict.fromkeys(("AND", "OR", "NOT", "IN", "BETWEEN", "LIKE", "ILIKE", "IS", "SELECT"), "") | {
    "NULL": "; what is not known is found by `column IS NULL`"
}
_TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*')
    | (?P<quoted>"[^"]+"|`[^`]+`)
    | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?!\w))
    | (?P<word>[^\W\d]\w*)
    | (?P<sign>==|<=|>=|<>|!=|[=<>(),-])""",
    re.VERBOSE,
)


def combined(where: str | None, exclude: Sequence[str], schema: pa.Schema) -> str | None:
    """One condition for a table of this `schema`; None where there is neither a filter nor a word.

    Raises `UsageError` for a filter that is not understood.
    """
    conditions = [f"({_Filter(where, schema).parse()})"] if where and where.strip() else []
    conditions += [_without(word) for word in exclude if word.strip()]
    return " AND ".join(conditions) or None


def _without(words: str) -> str:
    """True for products in which no word begins with `words`: "leather" also means "leathers"."""
    if len(words) > _LONGEST_EXCLUDED:
        raise UsageError(
            f"`{words[:40]}...` is too long to exclude: {len(words)} characters",
            hint=f"give words of at most {_LONGEST_EXCLUDED} characters, one each `--not`",
        )
    pattern = r"(^|[^\p{L}\p{N}])" + r"\s+".join(re.escape(word) for word in words.lower().split())
    quoted = pattern.replace("'", "''")
    return f"NOT regexp_like(lower({KEYWORDS}), '{quoted}')"


@contextmanager
def explained(uri: str, where: str | None) -> Iterator[None]:
    """What LanceDB raises in a search, as one of our errors."""
    try:
        yield
    except BaseException as error:
        if not is_broken(error):
            raise
        if where and "user input" in str(error):
            raise _not_understood(where, _first_line(str(error))) from None
        raise broken_table(uri, error) from None


def _not_understood(where: str, reason: str) -> UsageError:
    shown = (where if len(where) <= 100 else f"{where[:100]}...").encode("utf-8", "replace").decode("utf-8")
    return UsageError(
        f"the filter `{shown}` cannot be understood: {reason}",
        hint="""write it as SQL, texts in single quotes: --where "color = 'brown'\"""",
    )


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str

    @property
    def keyword(self) -> str:
        """A word or sign in capitals; empty for anything that is quoted."""
        return self.text.upper() if self.kind in ("word", "sign") else ""


@dataclass(frozen=True)
class _Operand:
    sql: str
    kind: str  # text, number, boolean, or empty for a type of which nothing is known


_END = _Token("end", "the end")


class _Filter:
    """Reads one filter by recursive descent; each method returns SQL that means what it has read."""

    def __init__(self, where: str, schema: pa.Schema) -> None:
        self._where = where
        self._columns = filter_columns(schema)
        self._schema = schema
        self._tokens = list(self._read_tokens())
        self._next = 0
        self._conditions = 0

    def parse(self) -> str:
        condition = self._either(0)
        if self._peek() is not _END:
            self._fail(f"`{self._peek().text}` is not expected after a condition")
        return condition

    def _read_tokens(self) -> Iterator[_Token]:
        if len(self._where) > _LONGEST:
            self._fail(f"it has {len(self._where)} characters, more than {_LONGEST}")
        if not self._where.isprintable() and re.search("[\ud800-\udfff]", self._where):
            self._fail("it holds bytes that are not UTF-8")
        position, end = 0, len(self._where.rstrip())
        while position < end:
            match = _TOKEN.match(self._where, position)
            if match:
                yield _Token(str(match.lastgroup), match.group())
                position = match.end()
            elif self._where[position].isspace():
                position += 1
            else:
                self._fail(self._bad_character(position))

    def _bad_character(self, position: int) -> str:
        character = self._where[position]
        if character in "'\"`":
            return f"the quote {character} at character {position + 1} is never closed"
        if character.isdigit() or character == ".":
            return f"the number at character {position + 1} is not one"
        return f"`{character}` at character {position + 1} has no meaning here"

    def _either(self, depth: int) -> str:
        return self._chain("OR", lambda: self._chain("AND", lambda: self._negated(depth)))

    def _chain(self, joint: str, part: Callable[[], str]) -> str:
        parts = [part()]
        while self._take(joint):
            parts.append(part())
        return f" {joint} ".join(parts)

    def _negated(self, depth: int) -> str:
        if depth > _DEEPEST:
            self._fail(f"more than {_DEEPEST} parentheses or NOTs lie inside each other")
        if self._take("NOT"):
            return f"NOT ({self._negated(depth + 1)})"
        if self._take("("):
            condition = self._either(depth + 1)
            self._expect(")")
            return f"({condition})"
        return self._condition()

    def _condition(self) -> str:
        self._conditions += 1
        if self._conditions > _MOST_CONDITIONS:
            self._fail(f"it has more than {_MOST_CONDITIONS} conditions; use `column IN ('a', 'b')`")
        left = self._operand()
        comparison = _COMPARISONS.get(self._peek().keyword)
        if comparison:
            self._next += 1
            return f"{left.sql} {comparison} {self._alike(left, self._operand())}"
        if self._take("IS"):
            negation = "NOT " if self._take("NOT") else ""
            self._expect("NULL")
            return f"{left.sql} IS {negation}NULL"
        return self._in_words(left)

    def _in_words(self, left: _Operand) -> str:
        negation = "NOT " if self._take("NOT") else ""
        if self._take("IN"):
            return f"{left.sql} {negation}IN ({self._list(left)})"
        if self._take("BETWEEN"):
            low = self._alike(left, self._operand())
            self._expect("AND")
            return f"{left.sql} {negation}BETWEEN {low} AND {self._alike(left, self._operand())}"
        for like in ("LIKE", "ILIKE"):
            if self._take(like):
                return f"{left.sql} {negation}{like} {self._pattern(left)}"
        if left.kind == "boolean" and not negation:
            return left.sql
        self._fail(f"after `{self._before()}` it needs a comparison, not {self._found()}")

    def _list(self, left: _Operand) -> str:
        self._expect("(")
        values = [self._alike(left, self._value())]
        while self._take(","):
            values.append(self._alike(left, self._value()))
        self._expect(")")
        return ", ".join(values)

    def _pattern(self, left: _Operand) -> str:
        if left.kind not in ("text", "") or self._peek().kind != "text":
            self._fail("LIKE compares a text column with a text such as '%oak%'")
        return self._value().sql

    def _alike(self, left: _Operand, right: _Operand) -> str:
        """The right side of a comparison, if it can be compared with the left one."""
        if left.kind and right.kind and left.kind != right.kind:
            self._fail(f"{left.sql} is a {left.kind} and {right.sql[:40]} is a {right.kind}")
        return right.sql

    def _operand(self) -> _Operand:
        token = self._peek()
        following = self._tokens[self._next + 1 : self._next + 2]
        if token.kind == "word" and following and following[0].text == "(":
            return self._function(token)
        if token.kind == "quoted" or (token.kind == "word" and token.keyword not in ("TRUE", "FALSE")):
            self._next += 1
            return self._column(token)
        return self._value()

    def _function(self, token: _Token) -> _Operand:
        name = token.text.lower()
        if name not in _FUNCTIONS:
            close = nearest(name, _FUNCTIONS)
            meant = f"; did you mean `{close}`?" if close else f"; known here: {', '.join(_FUNCTIONS)}"
            self._fail(f"there is no function `{token.text}`{meant}")
        self._next += 2
        argument = self._column(self._advance())
        if argument.kind not in ("text", ""):
            self._fail(f"`{name}` takes a text column, and {argument.sql} is a {argument.kind}")
        self._expect(")")
        return _Operand(f"{_FUNCTIONS[name]}({argument.sql})", "number" if name == "length" else "text")

    def _column(self, token: _Token) -> _Operand:
        if token.kind not in ("word", "quoted"):
            self._fail(f"it needs a column in place of {_shown(token)}")
        name = token.text[1:-1] if token.kind == "quoted" else token.text
        same = [column for column in self._columns if column.lower() == name.lower()]
        if not same and token.keyword in _RESERVED:
            self._fail(f"it needs a column or value in place of {_shown(token)}" + _RESERVED[token.keyword])
        if not same:
            raise _unknown_column(name, self._columns)
        column = name if name in same else same[0]
        return _Operand(f"`{column}`", _kind(self._schema.field(column).type))

    def _value(self) -> _Operand:
        if self._take("-"):
            token = self._advance()
            if token.kind == "number":
                return _Operand(f"-{token.text}", "number")
        else:
            token = self._advance()
        if token.kind in ("text", "number"):
            return _Operand(token.text, token.kind)
        if token.keyword in ("TRUE", "FALSE"):
            return _Operand(token.keyword, "boolean")
        self._fail(f"it needs a value in place of {_shown(token)}")

    def _peek(self) -> _Token:
        return self._tokens[self._next] if self._next < len(self._tokens) else _END

    def _advance(self) -> _Token:
        token = self._peek()
        self._next += 1
        return token

    def _take(self, keyword: str) -> bool:
        found = self._peek().keyword == keyword
        self._next += found
        return found

    def _expect(self, keyword: str) -> None:
        if not self._take(keyword):
            self._fail(f"`{keyword}` is missing before {self._found()}")

    def _before(self) -> str:
        return self._tokens[self._next - 1].text[:40]

    def _found(self) -> str:
        return _shown(self._peek())

    def _fail(self, reason: str) -> NoReturn:
        raise _not_understood(self._where, reason)


def _shown(token: _Token) -> str:
    return token.text if token is _END else f"`{token.text[:40]}`"


def _kind(data_type: pa.DataType) -> str:
    if pa.types.is_string(data_type) or pa.types.is_large_string(data_type):
        return "text"
    if pa.types.is_boolean(data_type):
        return "boolean"
    return "number" if pa.types.is_integer(data_type) or pa.types.is_floating(data_type) else ""


def _unknown_column(name: str, columns: Sequence[str]) -> UsageError:
    close = nearest(name, columns)
    known = f"columns: {', '.join(columns)}; texts stand in single quotes"
    return UsageError(
        f"there is no column `{name[:80]}` to filter by",
        hint=f"did you mean `{close}`? {known}" if close else known,
    )


def filter_columns(schema: pa.Schema) -> list[str]:
    """The columns that a filter may name."""
    hidden = (KEYWORDS, DETAILS)
    return [name for name in schema.names if not name.startswith("vec_") and name not in hidden]


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")[:200]
