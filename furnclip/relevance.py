"""What counts as relevant, for training, evaluation, the choice of the image weight and the arena.

Products that share a group or a caption are each other's positives: they cannot be told apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt

from furnclip.catalogue import ATTRIBUTES, says_nothing
from furnclip.journal import parse_json, read_text
from furnclip.metrics.retrieval import Integers

Attributes = Mapping[str, Sequence[str]]  # attribute -> its value for each product, "" where not known

OF_A_KIND = ("color", "object_type")  # products that share both answer a search by each other's image
_ASKED = (
    OF_A_KIND,
    ("material", "object_type"),
    ("style", "object_type"),
    ("color", "material", "object_type"),
)


def known(value: str | None) -> str:
    """The value in lower case with single spaces; empty where it is missing, or `other` of a vocabulary."""
    text = " ".join((value or "").lower().split())
    return "" if text == "other" or says_nothing(text) else text


def known_attributes(products: Sequence[Mapping[str, str | None]]) -> dict[str, list[str]]:
    """Attribute -> what is known of it for each product."""
    return {name: [known(product.get(name)) for product in products] for name in ATTRIBUTES}


def positives(*labellings: Sequence[Hashable], exclude_self: bool = False) -> list[Integers]:
    """For each product those that share one of its labels, ascending: itself too, unless excluded."""
    by_label = []
    for labels in labellings:
        places: defaultdict[Hashable, list[int]] = defaultdict(list)
        for row, label in enumerate(labels):
            places[label].append(row)
        arrays = {label: np.array(rows, dtype=np.int64) for label, rows in places.items()}
        by_label.append([arrays[label] for label in labels])
    found = [reduce(np.union1d, rows) for rows in zip(*by_label, strict=True)]
    return [rows[rows != row] for row, rows in enumerate(found)] if exclude_self else found


def positive_mask(*labellings: Sequence[Hashable]) -> npt.NDArray[np.bool_]:
    """(B, B): whether two products of a batch share a label in any of the labellings."""
    size = len(labellings[0]) if labellings else 0
    shared = np.eye(size, dtype=bool)
    for labels in labellings:
        numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
        column = np.array([numbers[label] for label in labels])
        shared |= column[:, None] == column[None, :]
    return shared


def tied_units(groups: Sequence[str], captions: Sequence[str]) -> tuple[str, ...]:
    """One name for all products that share a group or a caption, directly or by way of others."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for group, caption in zip(groups, captions, strict=True):
        parent[root(f"caption {caption}")] = root(f"group {group}")
    return tuple(root(f"group {group}") for group in groups)


def default_caption(fields: Mapping[str, str], *, title: str = "") -> str:
    """The fixed caption of a product: for `KEY.txt`, for evaluation and for text vectors.

    "a photo of a walnut mid-century sideboard": attributes that the title does not say yet, then the
    title, in lower case. `title` is used where there is no `clean_title`; without it, the column
    `title`. Empty when nothing is known.
    """
    name = known(fields.get("clean_title")) or title.strip().lower() or known(fields.get("title"))
    name = " ".join(name.split()) or known(fields.get("object_type"))
    words = [known(fields.get(attribute)) for attribute in ("style", "color", "material")]
    extra = [word for word in dict.fromkeys(words) if word and word not in name]
    described = " ".join([*extra, name]).strip()
    kind = known(fields.get("object_type"))
    if not described:
        return ""
    return f"a photo of {described}" + (f", {kind}" if kind and kind not in described else "")


@dataclass(frozen=True)
class AttributeQuery:
    """A short query made of attributes, "red velvet armchair", and what it asks for."""

    text: str
    wanted: dict[str, str]

    def answers(self, attributes: Attributes) -> Integers:
        """Products that have everything that is asked for."""
        hits = [np.asarray(attributes[name]) == value for name, value in self.wanted.items()]
        return np.flatnonzero(np.logical_and.reduce(hits))


def queries_of(product: Mapping[str, str]) -> list[AttributeQuery]:
    """The short queries that a product answers, made of what is known of it."""
    values = {name: known(product.get(name)) for name in ATTRIBUTES}
    asked = [{name: values[name] for name in names} for names in _ASKED]
    return [AttributeQuery(" ".join(wanted.values()), wanted) for wanted in asked if all(wanted.values())]


def shopper_queries(fields: Mapping[str, str]) -> list[str]:
    """What a shopper would type to find the product, as `clean` wrote it: in lower case, without repeats."""
    return list(dict.fromkeys(filter(None, map(known, fields.get("queries", "").split("|")))))


def attribute_queries(attributes: Attributes) -> list[AttributeQuery]:
    """Every query that some but at most half of the products answer, in alphabetical order."""
    asked: dict[str, AttributeQuery] = {}
    for values in zip(*attributes.values(), strict=True):
        for query in queries_of(dict(zip(attributes, values, strict=True))):
            asked.setdefault(query.text, query)
    return _telling(asked, attributes)


def _telling(asked: Mapping[str, AttributeQuery], attributes: Attributes) -> list[AttributeQuery]:
    most = len(attributes["object_type"]) / 2
    return [query for _, query in sorted(asked.items()) if 0 < len(query.answers(attributes)) <= most]


def asked_queries(texts: Sequence[str], attributes: Attributes) -> list[AttributeQuery]:
    """Those texts that name a type and, if anything else, other attributes, and so say what is right.

    "red velvet sofas" is one of them, "sofa for small rooms" is not: whether a product is right for it, only
    people can tell. As in `attribute_queries`, some but at most half of the products answer.
    """
    names = {value: name for name in ATTRIBUTES for value in attributes[name] if value}
    names |= {f"{value}s": name for value, name in names.items() if name == "object_type"}
    longest = max((len(value.split()) for value in names), default=0)
    asked: dict[str, AttributeQuery] = {}
    for text in texts:
        words, wanted = known(text).split(), dict[str, str]()
        while words:
            ends = range(min(longest, len(words)), 0, -1)
            end = next((end for end in ends if " ".join(words[:end]) in names), 0)
            if not end:
                break
            value = " ".join(words[:end])
            name = names[value]
            wanted[name] = value if value in attributes[name] else value.removesuffix("s")
            words = words[end:]
        query = AttributeQuery(known(text), wanted)
        if not words and "object_type" in wanted:
            asked[query.text] = query
    return _telling(asked, attributes)


@dataclass(frozen=True)
class _LoggedQuery:
    query: str


def read_queries(path: Path) -> list[str]:
    """Queries of a text file with one a line, or of a log of `furnclip serve` (`.jsonl`), each once."""
    hint = "save it as UTF-8 text, one query a line"
    lines = read_text(path, what="the queries file", hint=hint).removeprefix("\ufeff").splitlines()
    texts = [line.strip() for line in lines if line.strip()]
    if path.suffix == ".jsonl":
        texts = [
            parse_json(
                line, _LoggedQuery, what=f"line {number} of `{path}`", hint="correct or remove it"
            ).query
            for number, line in enumerate(texts, start=1)
        ]
    return list(dict.fromkeys(text.strip() for text in texts))
