"""Which queries the report shows with images: gains, regressions, hardest, and a random sample.

Gains and regressions are picked for their size and prove nothing; the queries drawn at random are the
ones to judge by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from furnclip.evaluate.measure import Measurement
from furnclip.vectors import top_k

_TOP = 5


@dataclass(frozen=True)
class ModelAnswer:
    """The first images that a model gives, and the rank of its first relevant one."""

    label: str
    rank: int
    hits: Sequence[tuple[int, bool]]  # product, and whether it is relevant


@dataclass(frozen=True)
class Example:
    """A query, the product it is about (None for a request), and each model's answer."""

    query: str
    target: int | None
    answers: Sequence[ModelAnswer]


@dataclass(frozen=True)
class ReportSection:
    """Examples under one heading of the report."""

    title: str
    note: str
    examples: Sequence[Example]


def choose(measured: Measurement) -> list[ReportSection]:
    """The sections that have something to show, in the report's order."""
    random = np.random.default_rng(measured.config.seed)
    products = partial(_section, measured, "text_to_image")
    answers = measured.answers["text_to_image"]
    first, name = measured.models[0].label, measured.models[-1].label
    before, ranks = answers[first].first_ranks, answers[name].first_ranks
    note = "A fair sample, chosen before looking"
    sections = [products("Drawn by lot", note, random.permutation(len(ranks)))]
    if "attributes_to_image" in measured.tasks:
        note = "Short queries as a shopper types them, drawn by lot; every product of that kind is relevant"
        rows = random.permutation(len(measured.requests))
        sections.append(_section(measured, "attributes_to_image", "Requests", note, rows))
    if len(measured.models) > 1:
        change = np.log(before) - np.log(ranks)  # how many times nearer to the top, as a logarithm
        gains = [row for row in np.argsort(-change, kind="stable") if change[row] > 0]
        losses = [row for row in np.argsort(change, kind="stable") if change[row] < 0]
        sections.append(products("Gains", f"Where {name} is most ahead of {first}", gains))
        sections.append(products("Regressions", f"Where {name} is most behind {first}", losses))
    hardest = [row for row in np.argsort(-ranks, kind="stable") if ranks[row] > _TOP]
    sections.append(products("Hardest", f"Where {name} finds the relevant image last", hardest))
    return [section for section in sections if section.examples]


def _section(measured: Measurement, name: str, title: str, note: str, rows: Iterable[int]) -> ReportSection:
    """The first of a task's `rows`, as many as the settings ask for."""
    task = measured.tasks[name]
    about_product = task.queries == "captions"
    texts = measured.split.captions if about_product else [request.text for request in measured.requests]
    first_of: dict[str, int] = {}
    for row in rows:  # one query of each unit: variants of a product would fill the page
        first_of.setdefault(task.units[row] if about_product else texts[row], int(row))
    chosen = list(first_of.values())[: measured.config.examples]
    sources = task.rows[chosen]
    tops = {
        model.label: top_k(model.vectors[task.queries][sources], model.vectors[task.gallery], _TOP)[1]
        for model in measured.models
    }
    examples = []
    for place, (row, source) in enumerate(zip(chosen, sources.tolist(), strict=True)):
        relevant = set(task.relevant[row].tolist())
        answers = [
            ModelAnswer(
                label,
                rank=int(measured.answers[name][label].first_ranks[row]),
                hits=[(index, index in relevant) for index in top[place].tolist()],
            )
            for label, top in tops.items()
        ]
        examples.append(Example(texts[source], source if about_product else None, answers))
    return ReportSection(title, note, examples)
