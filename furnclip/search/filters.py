"""Filters as SQL: the shopper's own, and the words that must not appear."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from furnclip.errors import StorageError, UsageError, nearest
from furnclip.vectors.index import DETAILS, KEYWORDS


def combined(where: str | None, exclude: Sequence[str]) -> str | None:
    """One SQL condition from the shopper's and the excluded words; None where there is neither."""
    conditions = [f"({where})"] if where and where.strip() else []
    conditions += [_without(word) for word in exclude if word.strip()]
    return " AND ".join(conditions) or None


def _without(words: str) -> str:
    """True for products in which no word begins with `words`: "leather" also means "leathers"."""
    pattern = r"(^|[^\p{L}\p{N}])" + r"\s+".join(re.escape(word) for word in words.lower().split())
    quoted = pattern.replace("'", "''")
    return f"NOT regexp_like(lower({KEYWORDS}), '{quoted}')"


@contextmanager
def explained(table: Any, where: str | None) -> Iterator[None]:
    """What LanceDB says about a bad filter, as a `UsageError` that knows the columns."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        text = str(error)
        if not where:
            raise StorageError(
                f"the search table cannot be read: {_first_line(text)}", hint="run `furnclip embed` again"
            ) from None
        unknown = re.search(r"[Nn]o field named \"?([\w.]*\w)", text)
        if unknown:
            raise _unknown_column(unknown.group(1), _columns(table)) from None
        raise UsageError(
            f"the filter `{where}` cannot be understood: {_reason(text)}",
            hint="""write it as SQL, texts in single quotes: --where "color = 'brown'\"""",
        ) from None


def _unknown_column(name: str, columns: list[str]) -> UsageError:
    close = nearest(name, columns)
    known = f"columns: {', '.join(columns)}"
    return UsageError(
        f"there is no column `{name}` to filter by",
        hint=f"did you mean `{close}`? {known}" if close else known,
    )


def _columns(table: Any) -> list[str]:
    hidden = (KEYWORDS, DETAILS)
    return [name for name in table.schema.names if not name.startswith("vec_") and name not in hidden]


def _reason(text: str) -> str:
    """The parser's own words without what LanceDB wraps around them."""
    inner = re.search(r"sql parser error: ([^)]*)", text)
    return inner.group(1) if inner else _first_line(text)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")[:200]
