"""What is asked of a model: the queries, the gallery and the right answers of each task.

    text_to_image        a product's caption finds its image
    image_to_text        an image finds its product's caption
    image_to_image       an image finds other images of the same group; the image itself is left out
    image_to_type        an image finds other images of the same type; the image itself is left out
    attributes_to_image  a short request, "red velvet armchair", finds every image of that kind

A right answer to a product is every product of the same group or with the same caption: nobody
could tell those apart. nDCG also knows half-right answers: the same type in the same colour,
material or style is worth 3, the same type alone 1, a right answer 7 (2^grade - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from furnclip.catalogue import ATTRIBUTES
from furnclip.evaluate.split import Split
from furnclip.metrics.retrieval import Gains
from furnclip.relevance import AttributeQuery, attribute_queries, positives

Integers = npt.NDArray[np.int64]
Side = Literal["images", "captions", "requests"]
_RIGHT, _ALIKE, _SAME_TYPE = 7.0, 3.0, 1.0
_MOST_REQUESTS = 500


@dataclass(frozen=True)
class Task:
    """Q queries against a gallery of N; `queries` says which vectors ask and `rows` which of them."""

    name: str
    queries: Side
    gallery: Side
    rows: Integers  # (Q,)
    relevant: list[Integers]  # Q arrays of gallery indices
    units: tuple[str, ...]  # (Q,): queries of one unit succeed and fail together
    gains: Gains
    exclude: Integers | None = None  # (Q,)


def build_tasks(split: Split, requests: Sequence[AttributeQuery]) -> list[Task]:
    """Every task that this split can be asked; a task without queries is left out."""
    relevant = positives(split.groups, split.captions)
    units = tied_units(split)
    codes = _codes(split)
    everything = np.arange(len(split), dtype=np.int64)
    gains = _graded(codes, codes, relevant)
    tasks = [
        Task("text_to_image", "captions", "images", everything, relevant, units, gains),
        Task("image_to_text", "images", "captions", everything, relevant, units, gains),
    ]
    tasks += _image_task("image_to_image", split.groups, units, codes)
    tasks += _image_task("image_to_type", split.attributes["object_type"], units, codes)
    if requests:
        tasks.append(_attribute_task(split, requests, codes))
    return tasks


def _image_task(name: str, keys: Sequence[str], units: Sequence[str], codes: Integers) -> list[Task]:
    """Images that look for others with their own key; no task when no key is there twice."""
    others = positives(keys, exclude_self=True)
    rows = np.asarray([row for row, found in enumerate(others) if keys[row] and len(found)], dtype=np.int64)
    if not len(rows):
        return []
    found = [others[row] for row in rows]
    gains = _graded(codes[:, rows], codes, found)
    return [Task(name, "images", "images", rows, found, tuple(units[row] for row in rows), gains, rows)]


def tied_units(split: Split) -> tuple[str, ...]:
    """One name for all products that are tied by a group or a caption, directly or by way of others."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for group, caption in zip(split.groups, split.captions, strict=True):
        parent[root(f"caption {caption}")] = root(f"group {group}")
    return tuple(root(f"group {group}") for group in split.groups)


def build_requests(split: Split, *, seed: int) -> list[AttributeQuery]:
    """The short attribute queries of a split in a fixed order, at most 500: drawn evenly from more."""
    some = attribute_queries(split.attributes)
    if len(some) <= _MOST_REQUESTS:
        return some
    chosen = np.random.default_rng(seed).choice(len(some), size=_MOST_REQUESTS, replace=False)
    return [some[index] for index in sorted(chosen)]


def _attribute_task(split: Split, requests: Sequence[AttributeQuery], codes: Integers) -> Task:
    relevant = [request.answers(split.attributes) for request in requests]
    wanted = np.full((len(ATTRIBUTES), len(requests)), -1, dtype=np.int64)
    for column, (request, found) in enumerate(zip(requests, relevant, strict=True)):
        for row, name in enumerate(ATTRIBUTES):
            if name in request.wanted:
                wanted[row, column] = codes[row, found[0]]
    return Task(
        name="attributes_to_image",
        queries="requests",
        gallery="images",
        rows=np.arange(len(requests), dtype=np.int64),
        relevant=relevant,
        units=tuple(request.wanted["object_type"] for request in requests),
        gains=_graded(wanted, codes, relevant),
    )


def _codes(split: Split) -> Integers:
    """Attribute values as numbers, -1 where not known: (A, N)."""
    rows = []
    for name in ATTRIBUTES:
        values = np.asarray(split.attributes[name])
        _, numbers = np.unique(values, return_inverse=True)
        rows.append(np.where(values == "", -1, numbers))
    return np.asarray(rows, dtype=np.int64)


def _graded(query_codes: Integers, gallery_codes: Integers, relevant: Sequence[Integers]) -> Gains:
    """Gains from the attributes that query (A, Q) and gallery (A, N) share, and the right answers."""

    def gains(rows: slice, columns: slice) -> npt.NDArray[np.floating]:
        queries, gallery = query_codes[:, rows], gallery_codes[:, columns]
        alike = np.zeros((queries.shape[1], gallery.shape[1]), dtype=bool)  # (B, C)
        same_type = alike.copy()
        for name, wanted, offered in zip(ATTRIBUTES, queries, gallery, strict=True):
            same = (wanted[:, None] == offered[None, :]) & (wanted[:, None] >= 0)
            if name == "object_type":
                same_type = same
            else:
                alike |= same
        worth = np.where(same_type, np.where(alike, _ALIKE, _SAME_TYPE), 0.0)
        for row, answers in enumerate(relevant[rows]):
            inside = answers[(answers >= columns.start) & (answers < columns.stop)]
            worth[row, inside - columns.start] = _RIGHT
        return worth

    return gains
