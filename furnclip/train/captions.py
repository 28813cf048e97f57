"""Captions built anew each epoch from a product's fields, with attributes left out at random.

A model that has seen "oak sideboard", "brown mid-century sideboard" and "sideboard made of wood" for
one picture reads queries better than one that has seen one fixed sentence (LaCLIP,
https://arxiv.org/abs/2305.20088). At evaluation the caption is always `relevance.default_caption`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from furnclip.catalogue import ATTRIBUTES
from furnclip.relevance import known

_TEMPLATES = ("a photo of {}", "{}", "a picture of {}", "{}, product photo")


def sample_caption(
    fields: Mapping[str, str], fixed: str, *, dropout: float, random: np.random.Generator
) -> str:
    """A caption of the product; `fixed` (the caption of the shards) where the fields say nothing.

    `dropout`: chance of each attribute to be left out. The title and the type stand for each other:
    at most one of them is dropped.
    """
    attributes = {name: known(fields.get(name)) for name in ATTRIBUTES}
    kept = {name: value for name, value in attributes.items() if value and random.random() >= dropout}
    title = known(fields.get("clean_title", "")) or known(fields.get("title", ""))
    kind = kept.pop("object_type", "")
    if title and not (attributes["object_type"] and random.random() < dropout):
        kind = title
    if not kind:
        kind = attributes["object_type"] or title
    if not kind:
        return fixed
    extras = [value for value in kept.values() if value not in kind]
    random.shuffle(extras)
    words = _joined(kind, extras, after=bool(random.random() < 0.5))
    return _TEMPLATES[int(random.integers(len(_TEMPLATES)))].format(words)


def duplicate_rate(captions: Sequence[str]) -> float:
    """Share of the samples whose caption another sample has too."""
    counts = Counter(captions)
    return sum(count for count in counts.values() if count > 1) / max(1, len(captions))


def _joined(kind: str, extras: list[str], *, after: bool) -> str:
    if after and extras:
        return f"{kind}, {', '.join(extras)}"
    return " ".join([*extras, kind])
