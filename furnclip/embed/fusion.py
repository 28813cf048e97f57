"""How much of the image and how much of the text goes into a product's fused vector.

Chosen on validation products by what searching is for: short requests ("red velvet armchair") have to
find every product of that kind, and an image has to find its like. The share with the best mean
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

from furnclip.metrics.retrieval import average_precision, every_rank
from furnclip.model import Clip
from furnclip.relevance import Attributes, attribute_queries, known_attributes, positives
from furnclip.vectors import Floats, fuse

EVEN = 0.5
WEIGHTS = tuple(step / 10 for step in range(11))
LEAST_QUERIES = 10
MOST_QUERIES = 300
_ALIKE = ("color", "object_type")
Integers = npt.NDArray[np.int64]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Choice:
    """The image weight and where it comes from."""

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
    """The image weight for these validation products; `image` and `text` are (N, D)."""
    attributes = known_attributes(products)
    requests = _requests(attributes, clip)
    images = _images(attributes, image)
    for name, queries in (("requests", requests), ("images", images)):
        if len(queries.relevant) < LEAST_QUERIES:
            reason = f"only {len(queries.relevant)} {name} to choose with, {LEAST_QUERIES} needed"
            return Choice(EVEN, reason)
    scores = {}
    for weight in WEIGHTS:
        gallery = fuse(image, text, weight)
        scores[weight] = (_precision(requests, gallery) + _precision(images, gallery)) / 2
    best = max(WEIGHTS, key=lambda weight: (round(scores[weight], 6), -abs(weight - EVEN)))
    return Choice(
        best,
        f"mean average precision {scores[best]:.3f} on {len(products)} validation products "
        f"({scores[EVEN]:.3f} at {EVEN})",
    )


def _precision(queries: _Queries, gallery: Floats) -> float:
    found = every_rank(queries.vectors, gallery, queries.relevant, exclude=queries.exclude)
    return float(average_precision(found).mean())


def _requests(attributes: Attributes, clip: Clip) -> _Queries:
    """Short attribute queries."""
    asked = _evenly(attribute_queries(attributes))
    texts = [query.text for query in asked]
    vectors = clip.encode_texts(texts) if texts else np.empty((0, clip.dimension), np.float32)
    return _Queries(vectors, [query.answers(attributes) for query in asked], None)


def _images(attributes: Attributes, image: Floats) -> _Queries:
    """Images of which the catalogue holds others of the same kind; none finds itself."""
    kinds = list(zip(*(attributes[name] for name in _ALIKE), strict=True))
    others = positives(kinds, exclude_self=True)
    rows = _evenly([row for row, found in enumerate(others) if all(kinds[row]) and len(found)])
    return _Queries(image[rows], [others[row] for row in rows], np.asarray(rows, dtype=np.int64))


def _evenly(items: list[_Item]) -> list[_Item]:
    """At most `MOST_QUERIES` of the items, spread over all of them."""
    if len(items) <= MOST_QUERIES:
        return items
    return [items[index * len(items) // MOST_QUERIES] for index in range(MOST_QUERIES)]
