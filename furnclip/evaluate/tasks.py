"""What is asked of a model: the products of a split, and queries, gallery and relevant items of each task.

Relevant to a product is every product of the same group or with the same caption. nDCG also has grades
between: the same type in the same color, material or style is worth 3, the same type alone 1, a relevant item
7 (2^grade - 1). A shopper query asks for every product that it was written for, on the test split alone,
since training may read those of the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from furnclip import console
from furnclip.catalogue import ATTRIBUTES
from furnclip.config import Config, EvaluationConfig
from furnclip.errors import InputError
from furnclip.images import open_image
from furnclip.metrics.retrieval import Gains, Integers
from furnclip.relevance import (
    AttributeQuery,
    asked_queries,
    attribute_queries,
    known_attributes,
    positives,
    read_queries,
    shopper_queries,
    tied_units,
)
from furnclip.shards import ShardDataset, open_shards

Side = Literal["images", "captions", "requests", "queries"]
TASKS = {
    "text_to_image": ("Text to image", "a product's caption finds its image"),
    "image_to_text": ("Image to text", "an image finds its product's caption"),
    "image_to_image": ("Image to image", "an image finds the other images of its group"),
    "image_to_type": ("Image to type", "an image finds other images of the same type"),
    "query_to_image": ("Shopper query to image", "a query in a shopper's words finds its product"),
    "attributes_to_image": ("Request to image", "a short request finds every image of that kind"),
}
_RELEVANT, _ALIKE, _SAME_TYPE = 7.0, 3.0, 1.0
_MOST_REQUESTS = 500
Item = TypeVar("Item")


@dataclass(frozen=True)
class Split:
    """The N products that are measured on, in shard order; images are read when they are needed."""

    name: str
    dataset: ShardDataset
    image_keys: tuple[tuple[str, ...], ...]  # hashes of each product's images
    seen: tuple[str, ...]  # `seen_hash` of each product
    titles: tuple[str, ...]
    captions: tuple[str, ...]
    groups: tuple[str, ...]
    attributes: dict[str, list[str]]  # attribute -> its value for each product, "" where not known
    queries: dict[str, list[int]] = field(default_factory=dict)  # shopper query -> whose it is

    def __len__(self) -> int:
        return len(self.captions)

    def image(self, index: int) -> Image.Image:
        return self.images(index)[0]

    def images(self, index: int) -> list[Image.Image]:
        return [open_image(data) for data in self.dataset[index].images]


def read_split(config: Config) -> Split:
    """The split that is set. Raises `MissingStageError` without shards, `InputError` for an empty split."""
    name = config.eval.split
    dataset = ShardDataset(open_shards(config), name)
    if not len(dataset):
        raise InputError(
            f"the {name} split holds no products",
            hint="lower `prepare.train_fraction`, or add products, and run `furnclip prepare` again",
        )
    dataset.bring()
    rows = [
        (
            tuple(f"{value:016x}" for value in text.image_hashes),
            text.seen,
            text.sample.fields.get("clean_title") or text.sample.title,
            text.sample.caption,
            text.sample.group,
            text.sample.fields,
        )
        for text in dataset.texts()
    ]
    image_keys, seen, titles, captions, groups, fields = zip(*rows, strict=True)
    asked: defaultdict[str, list[int]] = defaultdict(list)
    for row, product in enumerate(fields if name == "test" else ()):
        for query in shopper_queries(product):
            asked[query].append(row)
    queries = {query: asked[query] for query in _some(sorted(asked), config.eval.seed)}
    known = known_attributes(fields)
    return Split(name, dataset, image_keys, seen, titles, captions, groups, known, queries)


@dataclass(frozen=True)
class RetrievalTask:
    """Q queries against a gallery of N; `queries` names the vectors that ask and `rows` which of them."""

    queries: Side
    gallery: Side
    rows: Integers  # (Q,)
    relevant: list[Integers]  # Q arrays of gallery indices
    units: tuple[str, ...]  # (Q,): queries of one unit succeed and fail together
    gains: Gains
    exclude: Integers | None = None  # (Q,): the query itself, where it is in the gallery


def build_tasks(split: Split, requests: Sequence[AttributeQuery]) -> dict[str, RetrievalTask]:
    """Every one of `TASKS` that this split can be asked; a task without queries is left out."""
    relevant = positives(split.groups, split.captions)
    units = tied_units(split.groups, split.captions)
    columns = [np.asarray(split.attributes[name]) for name in ATTRIBUTES]
    codes = np.stack(  # (A, N): attribute values as numbers, -1 where not known
        [np.where(values == "", -1, np.unique(values, return_inverse=True)[1]) for values in columns]
    )
    everything = np.arange(len(split), dtype=np.int64)
    gains = _graded(codes, codes, relevant)
    tasks = {
        "text_to_image": RetrievalTask("captions", "images", everything, relevant, units, gains),
        "image_to_text": RetrievalTask("images", "captions", everything, relevant, units, gains),
    }
    keys_of = {"image_to_image": split.groups, "image_to_type": split.attributes["object_type"]}
    for name, keys in keys_of.items():
        others = positives(keys, exclude_self=True)
        rows = np.flatnonzero([key != "" and len(found) > 0 for key, found in zip(keys, others, strict=True)])
        if len(rows):
            found = [others[row] for row in rows]
            gains = _graded(codes[:, rows], codes, found)
            row_units = tuple(units[row] for row in rows)
            tasks[name] = RetrievalTask("images", "images", rows, found, row_units, gains, exclude=rows)
    if requests:
        tasks["attributes_to_image"] = _attribute_task(split, requests, codes)
    if split.queries:
        tasks["query_to_image"] = _query_task(split, codes, relevant, units)
    return tasks


def build_requests(split: Split, settings: EvaluationConfig) -> list[AttributeQuery]:
    """The short attribute queries of a split in a fixed order, at most 500: drawn evenly from more.

    With `settings.queries` those in that file; raises `InputError` where none of them can be measured.
    """
    if not settings.queries:
        return _some(attribute_queries(split.attributes), settings.seed)
    path = Path(settings.queries).expanduser()
    if not path.is_file():
        hint = "give a text file with a query a line, or the log of `furnclip serve --query-log`"
        raise InputError(f"`eval.queries` is `{path}`, which is no file", hint=hint)
    texts = read_queries(path)
    asked = asked_queries(texts, split.attributes)
    judge = f"people can judge the others: `furnclip arena --queries {path}`"
    if not asked:
        found = f"none of {len(texts)} queries in `{path}` is made of attributes of the split alone"
        raise InputError(found, hint=judge)
    console.note(f"{len(asked)} of {len(texts)} queries name attributes alone and are measured; {judge}")
    return _some(asked, settings.seed)


def _some(items: list[Item], seed: int) -> list[Item]:
    """At most `_MOST_REQUESTS` of them, in their order."""
    if len(items) <= _MOST_REQUESTS:
        return items
    chosen = np.random.default_rng(seed).choice(len(items), size=_MOST_REQUESTS, replace=False)
    return [items[index] for index in sorted(chosen)]


def _query_task(
    split: Split, codes: Integers, relevant: Sequence[Integers], units: Sequence[str]
) -> RetrievalTask:
    """What a query's products do not agree on, it does not ask for."""
    products = list(split.queries.values())
    found = [reduce(np.union1d, [relevant[row] for row in rows]) for rows in products]
    codes_of = ((codes[:, rows], codes[:, rows[0]]) for rows in products)  # (A, P) and (A,)
    wanted = [np.where((every == one[:, None]).all(axis=1), one, -1) for every, one in codes_of]
    first_units = tuple(units[rows[0]] for rows in products)
    gains = _graded(np.stack(wanted, axis=1), codes, found)
    everything = np.arange(len(products), dtype=np.int64)
    return RetrievalTask("queries", "images", everything, found, first_units, gains)


def _attribute_task(split: Split, requests: Sequence[AttributeQuery], codes: Integers) -> RetrievalTask:
    relevant = [request.answers(split.attributes) for request in requests]
    wanted = [
        [codes[row, found[0]] if name in request.wanted else -1 for row, name in enumerate(ATTRIBUTES)]
        for request, found in zip(requests, relevant, strict=True)
    ]
    rows = np.arange(len(requests), dtype=np.int64)
    units = tuple(request.wanted["object_type"] for request in requests)
    gains = _graded(np.asarray(wanted).T, codes, relevant)
    return RetrievalTask("requests", "images", rows, relevant, units, gains)


def _graded(query_codes: Integers, gallery_codes: Integers, relevant: Sequence[Integers]) -> Gains:
    """Gains from the attributes that query (A, Q) and gallery (A, N) share, and the relevant items."""

    def gains(rows: slice) -> npt.NDArray[np.floating]:
        queries = query_codes[:, rows, None]
        same = (queries == gallery_codes[:, None, :]) & (queries >= 0)  # (A, B, N)
        alike, same_type = same[:-1].any(axis=0), same[-1]  # `ATTRIBUTES` end with the type
        worth = np.where(same_type, np.where(alike, _ALIKE, _SAME_TYPE), 0.0).astype(np.float32)
        for row, items in enumerate(relevant[rows]):
            worth[row, items] = _RELEVANT
        return worth

    return gains
