"""How much of the picture and how much of the text goes into a product's fused vector.

Chosen on validation products by what searching is for: short requests ("red velvet armchair") have to
find every product of that kind, and a picture has to find its like. The share with the best mean
average precision over both wins; between equals the one nearest to one half.

Known bias: requests are made of attributes that captions spell out as well, so the choice leans
towards the text. Without at least `LEAST_QUERIES` queries of each sort there is no choice: one half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from furnclip.metrics import average_precision, every_rank, right_answers
from furnclip.model import Clip
from furnclip.vectors import Floats, fuse

EVEN = 0.5
WEIGHTS = tuple(step / 10 for step in range(11))
LEAST_QUERIES = 10
MOST_QUERIES = 300
_REQUESTS = (("color", "object_type"), ("material", "object_type"), ("style", "object_type"))
_ALIKE = ("color", "object_type")
Integers = npt.NDArray[np.int64]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Choice:
    """The picture's share and where it comes from."""

    image_weight: float
    reason: str


@dataclass(frozen=True)
class _Queries:
    vectors: Floats  # (Q, D)
    relevant: list[Integers]
    exclude: Integers | None


def choose_image_weight(
    products: Sequence[Mapping[str, str | None]], image: Floats, text: Floats, clip: Clip
) -> Choice:
    """The picture's share for these validation products; `image` and `text` are (N, D)."""
    requests = _requests(products, clip)
    pictures = _pictures(products, image)
    for name, queries in (("requests", requests), ("pictures", pictures)):
        if len(queries.relevant) < LEAST_QUERIES:
            reason = f"only {len(queries.relevant)} {name} to choose with, {LEAST_QUERIES} needed"
            return Choice(EVEN, reason)
    scores = {}
    for weight in WEIGHTS:
        gallery = fuse(image, text, weight)
        scores[weight] = (_precision(requests, gallery) + _precision(pictures, gallery)) / 2
    best = max(WEIGHTS, key=lambda weight: (round(scores[weight], 6), -abs(weight - EVEN)))
    return Choice(
        best,
        f"mean average precision {scores[best]:.3f} on {len(products)} validation products "
        f"({scores[EVEN]:.3f} at {EVEN})",
    )


def _precision(queries: _Queries, gallery: Floats) -> float:
    found = every_rank(queries.vectors, gallery, queries.relevant, exclude=queries.exclude)
    return float(average_precision(found).mean())


def _requests(products: Sequence[Mapping[str, str | None]], clip: Clip) -> _Queries:
    """Phrases of attributes that several but at most half of the products answer."""
    answers: dict[str, Integers] = {}
    for names in _REQUESTS:
        phrases = [_phrase(product, names) for product in products]
        for phrase, rows in zip(phrases, right_answers(phrases, phrases), strict=True):
            if phrase and len(rows) * 2 <= len(products):
                answers.setdefault(phrase, rows)
    asked = _evenly(sorted(answers))
    vectors = clip.encode_texts(asked) if asked else np.empty((0, clip.dimension), np.float32)
    return _Queries(vectors, [answers[phrase] for phrase in asked], None)


def _pictures(products: Sequence[Mapping[str, str | None]], image: Floats) -> _Queries:
    """Pictures of which the catalogue holds others of the same kind; none finds itself."""
    kinds = [_phrase(product, _ALIKE) for product in products]
    others = right_answers(kinds, kinds, exclude_self=True)
    rows = _evenly([row for row, found in enumerate(others) if kinds[row] and len(found)])
    return _Queries(image[rows], [others[row] for row in rows], np.asarray(rows, dtype=np.int64))


def _phrase(product: Mapping[str, str | None], names: Sequence[str]) -> str:
    words = [(product.get(name) or "").strip().lower() for name in names]
    return " ".join(words) if all(word not in ("", "unknown", "other") for word in words) else ""


def _evenly(items: list[_Item]) -> list[_Item]:
    """At most `MOST_QUERIES` of the items, spread over all of them."""
    if len(items) <= MOST_QUERIES:
        return items
    return [items[index * len(items) // MOST_QUERIES] for index in range(MOST_QUERIES)]
