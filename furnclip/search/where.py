"""The shopper's own filter: a subset of SQL, read by sqlglot, checked, and written anew for LanceDB.

Nothing else of DataFusion's SQL (functions that allocate without bound, subqueries, placeholders) reaches
LanceDB, and a parenthesis in a filter cannot end ours:

    color = 'brown' AND NOT (material IN ('glass', 'metal') OR style IS NULL) AND lower(title) LIKE '%oak%'

sqlglot takes a tenth of a second to import, so this is loaded only where there is a filter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import date
from typing import ClassVar

from sqlglot import Dialect, exp, generator, tokens
from sqlglot.dialects.dialect import rename_func
from sqlglot.errors import ParseError, TokenError

from furnclip.errors import UsageError, nearest

_LONGEST = 100_000  # characters: thousands of product ids in one list
_MOST_CONDITIONS = 500
_DEEPEST = 20  # LanceDB's own parser gives up at some fifty parentheses
_TOO_DEEP = f"more than {_DEEPEST} parentheses or NOTs lie inside each other"
_Kinds = Collection[type[exp.Expr]]
_COMPARISONS = (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.In, exp.Between, exp.Like, exp.ILike)
_CONDITIONS: _Kinds = {exp.And, exp.Or, exp.Not, exp.Paren, exp.Is, exp.Boolean, exp.Column, *_COMPARISONS}
_FUNCTIONS = {"lower": exp.Lower, "upper": exp.Upper, "trim": exp.Trim, "length": exp.Length}
_OPERANDS: _Kinds = {exp.Column, exp.Literal, exp.Boolean, exp.Neg, *_FUNCTIONS.values()}
# What each part of a filter may be made of; there are no other parts.
_PARTS: dict[type[exp.Expr], _Kinds] = {
    **dict.fromkeys((exp.And, exp.Or, exp.Not, exp.Paren), _CONDITIONS),
    **dict.fromkeys(_COMPARISONS, _OPERANDS),
    **dict.fromkeys(_FUNCTIONS.values(), (exp.Column,)),
    **dict.fromkeys((exp.Identifier, exp.Literal, exp.Boolean, exp.Null), ()),
    exp.Is: (*_OPERANDS, exp.Null),
    exp.Neg: (exp.Literal,),
    exp.Column: (exp.Identifier,),
}
# sqlglot keeps whatever refines a part, such as the table of a column, under further names.
_ARGUMENTS = {"this", "expression", "expressions", "low", "high", "negate", "is_string", "quoted"}


class _LanceDB(Dialect):
    """SQL as LanceDB takes it: names in backticks, no comments, `btrim`."""

    NORMALIZE_FUNCTIONS = "lower"

    class Tokenizer(tokens.Tokenizer):
        IDENTIFIERS: ClassVar = ["`", '"']  # the first is written, both are read
        COMMENTS: ClassVar = []

    class Generator(generator.Generator):
        TRANSFORMS: ClassVar = {**generator.Generator.TRANSFORMS, exp.Trim: rename_func("btrim")}


def rewritten(where: str, columns: Mapping[str, str]) -> str:
    """The filter for LanceDB, about these `columns`, name -> kind.

    Raises `UsageError` where it is not understood.
    """
    try:
        if len(where) > _LONGEST:
            raise ValueError(f"it has {len(where)} characters, more than {_LONGEST}")
        if re.search("[\ud800-\udfff]", where):
            raise ValueError("it holds bytes that are not UTF-8")
        tree = _parsed(where)
        if sum(isinstance(node, exp.Predicate) for node in tree.walk()) > _MOST_CONDITIONS:
            raise ValueError(f"it has more than {_MOST_CONDITIONS} conditions; use `column IN ('a', 'b')`")
        _check(tree, _CONDITIONS, columns, depth=0)
        return tree.transform(_typed).sql(_LanceDB, identify=True)
    except (ValueError, RecursionError) as error:
        reason = _TOO_DEEP if isinstance(error, RecursionError) else error
        shown = where if len(where) <= 100 else f"{where[:100]}..."
        raise UsageError(
            f"the filter `{shown.encode('utf-8', 'replace').decode()}` cannot be understood: {reason}",
            hint="""write it as SQL, texts in single quotes: --where "color = 'brown'\"""",
        ) from None


def _parsed(where: str) -> exp.Expr:
    try:
        trees = _LanceDB().parse_into(exp.Condition, where)
    except TokenError:
        raise ValueError("a quote ' or \" or ` is never closed") from None
    except ParseError as error:
        problem = error.errors[0]
        description, last = str(problem["description"]), str(problem["highlight"])[:40]
        if description.startswith("Required keyword"):
            raise ValueError(f"something is missing after `{last}`") from None
        if description.startswith("Expecting "):
            raise ValueError(f"`{description[10:]}` is missing after `{last}`") from None
        raise ValueError(f"`{last}` is not expected there") from None
    if len(trees) != 1 or trees[0] is None:
        raise ValueError("it is not one condition")
    return trees[0]


def _check(node: exp.Expr, allowed: _Kinds, columns: Mapping[str, str], *, depth: int) -> None:
    """Refuse, by `ValueError`, what is not of the subset; name columns as the table does."""
    if type(node) not in allowed or any(node.args[name] for name in node.args.keys() - _ARGUMENTS):
        raise ValueError(_misplaced(node, allowed))
    if isinstance(node, exp.Column):
        same = [column for column in columns if column.lower() == node.name.lower()]
        left = node.parent.this if isinstance(node.parent, _COMPARISONS) else node
        if not same and isinstance(left, exp.Column) and left is not node:  # `color = red`
            name, hint = node.name[:80], f"put text in quotes: {left.name} = '{node.name[:80]}'"
            raise UsageError(f"there is no column `{name}`", hint=hint)
        if not same:
            raise no_column(node.name, columns)
        node.this.set("this", node.name if node.name in same else same[0])
        node.meta["kind"] = columns[node.name]
        if allowed is _CONDITIONS and columns[node.name] != "boolean":
            raise ValueError(f"after {_shown(node)} it needs a comparison")
    depth += isinstance(node, exp.Paren | exp.Not)
    if depth > _DEEPEST:
        raise ValueError(_TOO_DEEP)
    # A chain of five hundred ANDs is a tree as many levels deep.
    chain = isinstance(node, exp.Connector)
    parts = list(node.flatten(unnest=False) if chain else node.iter_expressions())
    for part in parts:
        _check(part, _PARTS[type(node)], columns, depth=depth)
    _check_values(node, parts)


def _check_values(node: exp.Expr, parts: list[exp.Expr]) -> None:
    """Refuse, by `ValueError`, parts that are each allowed and do not go together."""
    if isinstance(node, exp.Literal) and not node.is_string:
        float(node.name)  # `1e` is a number to sqlglot
    if isinstance(node, exp.Neg) and not node.is_number:
        raise ValueError(f"{_shown(node)} is no number")
    if isinstance(node, exp.In) and len(parts) == 1:
        raise ValueError("after `IN` it needs a list such as ('a', 'b')")
    if isinstance(node, exp.Is) and not isinstance(parts[1], exp.Null):
        raise ValueError("after `IS` it needs `NULL` or `NOT NULL`")
    if isinstance(node, exp.Like | exp.ILike) and not (_kind(parts[0]) == "text" and parts[1].is_string):
        raise ValueError("LIKE compares a text column with a text such as '%oak%'")
    if isinstance(node, _COMPARISONS):
        for right in parts[1:]:
            _check_pair(node, parts[0], right)


def _check_pair(node: exp.Expr, left: exp.Expr, right: exp.Expr) -> None:
    kind = _kind(left)
    if kind == "list" and not isinstance(node, exp.EQ | exp.NEQ | exp.In):
        raise ValueError(f"{_shown(left)} is a list, which has a value (`=`, `IN`) or has not (`<>`)")
    if kind == "date" and right.is_string:
        date.fromisoformat(right.name)  # its own message says what is wrong
    elif _kind(right) != ("text" if kind == "list" else kind):
        raise ValueError(f"{_shown(left)} is a {kind} and {_shown(right)} is a {_kind(right)}")


def _typed(node: exp.Expr) -> exp.Expr:
    """A comparison with a date or a list as DataFusion writes it."""
    left = node.this if isinstance(node, _COMPARISONS) else None
    kind = left.meta.get("kind") if isinstance(left, exp.Column) else None
    if kind == "date":
        for literal in [part for part in node.iter_expressions() if part.is_string]:
            literal.replace(exp.cast(literal.copy(), "date"))
    if kind == "list":
        values = node.expressions if isinstance(node, exp.In) else [node.args["expression"]]
        conditions = [exp.Anonymous(this="array_has", expressions=[left, value]) for value in values]
        has = exp.paren(exp.or_(*conditions))
        return exp.Not(this=has) if isinstance(node, exp.NEQ) else has
    return node


def _misplaced(node: exp.Expr, allowed: _Kinds) -> str:
    if isinstance(node, exp.Func) and type(node) not in _PARTS:
        name = (node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()
        close = nearest(name, _FUNCTIONS)
        meant = f"; did you mean `{close}`?" if close else f"; known here: {', '.join(_FUNCTIONS)}"
        return f"there is no function `{name}`{meant}"
    if isinstance(node, exp.Null):
        return "nothing equals `NULL`; what is not known is found by `column IS NULL`"
    if allowed is _CONDITIONS and type(node) in _OPERANDS:
        return f"after {_shown(node)} it needs a comparison"
    return f"{_shown(node)} is not possible there"


def no_column(name: str, columns: Collection[str]) -> UsageError:
    """The error for a column that is not there, with the one that was probably meant."""
    close = nearest(name, columns)
    meant = f"did you mean `{close}`? " if close else ""
    hint = f"{meant}columns: {', '.join(columns)}; text stands in single quotes: color = 'red'"
    return UsageError(f"there is no column `{name[:80]}`", hint=hint)


def _kind(operand: exp.Expr) -> str:
    if isinstance(operand, exp.Boolean):
        return "boolean"
    if isinstance(operand, exp.Column):
        return str(operand.meta.get("kind", "text"))
    return "number" if operand.is_number or isinstance(operand, exp.Length) else "text"


def _shown(node: exp.Expr) -> str:
    return f"`{node.sql(_LanceDB)[:40]}`"
