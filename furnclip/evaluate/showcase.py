"""Which queries the report shows with images: gains, regressions, hardest, and some by lot.

Gains and regressions are picked for their size and prove nothing; the queries drawn by lot are the
ones to judge by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from furnclip.config import EvaluationConfig
from furnclip.evaluate.encode import Encoded
from furnclip.evaluate.measure import Answers
from furnclip.evaluate.split import Split
from furnclip.evaluate.tasks import Task
from furnclip.vectors import top_k

TOP = 5


@dataclass(frozen=True)
class Hit:
    """One image in a model's answer; `right` when it answers the query."""

    index: int
    title: str
    right: bool


@dataclass(frozen=True)
class ModelAnswer:
    """The first images that a model gives, and the rank of its first right one."""

    label: str
    rank: int
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Example:
    """A query, the image it is about (None for a request), and each model's answer."""

    query: str
    product_id: str
    target: int | None
    answers: tuple[ModelAnswer, ...]


@dataclass(frozen=True)
class Part:
    """A part of the gallery in the report."""

    title: str
    note: str
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Asked:
    """One task with every model's vectors and answers: what examples are drawn from."""

    task: Task
    split: Split
    models: Sequence[Encoded]
    answers: Mapping[str, Answers]
    texts: Sequence[str]  # the queries in words, by vector row


def choose(products: Asked, requests: Asked | None, config: EvaluationConfig) -> list[Part]:
    """The parts that have something to show, in the report's order."""
    lot = np.random.default_rng(config.seed)
    first, name = products.models[0].label, products.models[-1].label
    parts = [
        _part(
            products, "Drawn by lot", "A fair sample, chosen before looking", _by_lot(products, lot), config
        )
    ]
    if requests is not None:
        note = "Short queries as a shopper types them, drawn by lot; every product of that kind is right"
        parts.append(_part(requests, "Requests", note, _by_lot(requests, lot), config))
    if len(products.models) > 1:
        change = _change(products)
        gains = [row for row in np.argsort(-change, kind="stable") if change[row] > 0]
        losses = [row for row in np.argsort(change, kind="stable") if change[row] < 0]
        parts.append(_part(products, "Gains", f"Where {name} is most ahead of {first}", gains, config))
        parts.append(_part(products, "Regressions", f"Where {name} is most behind {first}", losses, config))
    last = products.answers[name].first_ranks
    hardest = [row for row in np.argsort(-last, kind="stable") if last[row] > TOP]
    parts.append(_part(products, "Hardest", f"Where {name} finds the right image last", hardest, config))
    return [part for part in parts if part.examples]


def _by_lot(asked: Asked, lot: np.random.Generator) -> list[int]:
    return [int(row) for row in lot.permutation(len(asked.task.rows))]


def _change(asked: Asked) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """How many times nearer to the top the last model puts the first right image, as a logarithm."""
    first, last = (asked.answers[model.label].first_ranks for model in (asked.models[0], asked.models[-1]))
    return np.asarray(np.log(first) - np.log(last), dtype=np.float64)


def _part(asked: Asked, title: str, note: str, rows: Iterable[int], config: EvaluationConfig) -> Part:
    chosen: list[int] = []
    seen: set[str] = set()
    for row in rows:  # one query of each unit: variants of a product would fill the page
        key = asked.task.units[row] if asked.task.queries == "captions" else asked.texts[row]
        if key not in seen and len(chosen) < config.examples:
            seen.add(key)
            chosen.append(int(row))
    return Part(title, note, tuple(_examples(asked, chosen)))


def _examples(asked: Asked, rows: Sequence[int]) -> Iterable[Example]:
    task, split = asked.task, asked.split
    tops = {
        model.label: top_k(model.vectors[task.queries][task.rows[rows]], model.vectors[task.gallery], TOP)[1]
        for model in asked.models
    }
    for place, row in enumerate(rows):
        right = set(task.relevant[row].tolist())
        source = int(task.rows[row])
        about_product = task.queries == "captions"
        yield Example(
            query=asked.texts[source],
            product_id=split.product_ids[source] if about_product else "",
            target=source if about_product else None,
            answers=tuple(
                ModelAnswer(
                    label=model.label,
                    rank=int(asked.answers[model.label].first_ranks[row]),
                    hits=tuple(
                        Hit(int(index), split.titles[index], int(index) in right)
                        for index in tops[model.label][place]
                    ),
                )
                for model in asked.models
            ),
        )
