"""Filters: the shopper's own, read strictly, and the words that must not appear.

A filter is a subset of SQL over the product columns. It is parsed here and rewritten for LanceDB, so
that nothing else of DataFusion's SQL (functions that allocate without bound, subqueries, placeholders)
reaches it, and a parenthesis in it cannot end ours:

    color = 'brown' AND NOT (material IN ('glass', 'metal') OR style IS NULL) AND lower(title) LIKE '%oak%'
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

import pyarrow as pa

from furnclip.errors import UsageError, nearest
from furnclip.vectors import index
from furnclip.vectors.index import DETAILS, KEYWORDS

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
    with index.explained(uri):
        try:
            yield
        except (ValueError, RuntimeError, OSError) as error:
            if where and "user input" in str(error):
                reason = index.first_line(error, "no reason given")[:200]
                raise _not_understood(where, reason) from None
            raise


def _not_understood(where: str, reason: str) -> UsageError:
    shown = (where if len(where) <= 100 else f"{where[:100]}...").encode("utf-8", "replace").decode("utf-8")
    return UsageError(
        f"the filter `{shown}` cannot be understood: {reason}",
        hint="""write it as SQL, texts in single quotes: --where "color = 'brown'\"""",
    )


class _Token(NamedTuple):
    kind: str
    text: str

    @property
    def keyword(self) -> str:
        """A word or sign in capitals; empty for anything that is quoted."""
        return self.text.upper() if self.kind in ("word", "sign") else ""

    @property
    def shown(self) -> str:
        return self.text if self is _END else f"`{self.text[:40]}`"


class _Operand(NamedTuple):
    sql: str
    kind: str  # text, number, boolean, or empty for a type of which nothing is known


_END = _Token("end", "the end")


class _Filter:
    """Reads one filter by recursive descent; each method returns SQL that means what it has read."""

    def __init__(self, where: str, schema: pa.Schema) -> None:
        self._where = where
        hidden = (KEYWORDS, DETAILS)
        self._columns = [name for name in schema.names if not name.startswith("vec_") and name not in hidden]
        self._schema = schema
        self._tokens = list(self._read_tokens())
        self._next = 0
        self._conditions = 0

    def parse(self) -> str:
        condition = self._joined(0)
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
            match, character = _TOKEN.match(self._where, position), self._where[position]
            if match:
                yield _Token(str(match.lastgroup), match.group())
                position = match.end()
            elif character.isspace():
                position += 1
            elif character in "'\"`":
                self._fail(f"the quote {character} at character {position + 1} is never closed")
            elif character.isdigit() or character == ".":
                self._fail(f"the number at character {position + 1} is not one")
            else:
                self._fail(f"`{character}` at character {position + 1} has no meaning here")

    def _joined(self, depth: int) -> str:
        """Conditions with AND and OR between them, of which LanceDB knows as well which binds closer."""
        parts = [self._negated(depth)]
        while self._peek().keyword in ("AND", "OR"):
            parts += [self._advance().keyword, self._negated(depth)]
        return " ".join(parts)

    def _negated(self, depth: int) -> str:
        if depth > _DEEPEST:
            self._fail(f"more than {_DEEPEST} parentheses or NOTs lie inside each other")
        if self._take("NOT"):
            return f"NOT ({self._negated(depth + 1)})"
        if self._take("("):
            condition = self._joined(depth + 1)
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
            self._expect("(")
            values = [self._alike(left, self._value())]
            while self._take(","):
                values.append(self._alike(left, self._value()))
            self._expect(")")
            return f"{left.sql} {negation}IN ({', '.join(values)})"
        if self._take("BETWEEN"):
            low = self._alike(left, self._operand())
            self._expect("AND")
            return f"{left.sql} {negation}BETWEEN {low} AND {self._alike(left, self._operand())}"
        for like in ("LIKE", "ILIKE"):
            if self._take(like):
                if left.kind not in ("text", "") or self._peek().kind != "text":
                    self._fail("LIKE compares a text column with a text such as '%oak%'")
                return f"{left.sql} {negation}{like} {self._value().sql}"
        if left.kind == "boolean" and not negation:
            return left.sql
        before = self._tokens[self._next - 1].text[:40]
        self._fail(f"after `{before}` it needs a comparison, not {self._peek().shown}")

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
            return self._column(self._advance())
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
            self._fail(f"it needs a column in place of {token.shown}")
        name = token.text[1:-1] if token.kind == "quoted" else token.text
        same = [column for column in self._columns if column.lower() == name.lower()]
        if not same and token.keyword in _RESERVED:
            self._fail(f"it needs a column or value in place of {token.shown}" + _RESERVED[token.keyword])
        if not same:
            close = nearest(name, self._columns)
            known = f"columns: {', '.join(self._columns)}; texts stand in single quotes"
            raise UsageError(
                f"there is no column `{name[:80]}` to filter by",
                hint=f"did you mean `{close}`? {known}" if close else known,
            )
        column = name if name in same else same[0]
        return _Operand(f"`{column}`", _kind(self._schema.field(column).type))

    def _value(self) -> _Operand:
        sign = "-" if self._take("-") else ""
        token = self._advance()
        if token.kind == "number" or (token.kind == "text" and not sign):
            return _Operand(sign + token.text, token.kind)
        if token.keyword in ("TRUE", "FALSE") and not sign:
            return _Operand(token.keyword, "boolean")
        self._fail(f"it needs a value in place of {token.shown}")

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
            self._fail(f"`{keyword}` is missing before {self._peek().shown}")

    def _fail(self, reason: str) -> NoReturn:
        raise _not_understood(self._where, reason)


def _kind(data_type: pa.DataType) -> str:
    if pa.types.is_string(data_type) or pa.types.is_large_string(data_type):
        return "text"
    if pa.types.is_boolean(data_type):
        return "boolean"
    return "number" if pa.types.is_integer(data_type) or pa.types.is_floating(data_type) else ""
