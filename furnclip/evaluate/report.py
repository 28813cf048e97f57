"""The report in words and images: lines and a table for the terminal, `report.html` for a browser.

The page is one self-contained file without a single outside address. Product titles are shop data: the
template escapes everything. Gains and regressions are picked for their size and prove nothing; the queries
drawn at random are the ones to judge by. Plots are places on a drawing, which `templates/plots.html` draws.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.cells import cell_len, set_cell_size

from furnclip.catalogue import ATTRIBUTES
from furnclip.evaluate.measure import Measurement
from furnclip.evaluate.tasks import TASKS, Split
from furnclip.images import encode_jpeg
from furnclip.vectors import top_k

_HEADLINE = "mrr"  # decides the verdict: it sees every change of rank, recall@k only those across k
_UNKNOWN = "not yet known to be better or worse"
_MOST_TIMES = 100  # as many test products as there are, beyond which no shop will go
_THUMBNAIL_PX = 160
_TOP = 5
ReportJson = Mapping[str, Any]
PagePart = Mapping[str, Any]  # title, note and examples
Points = Sequence[tuple[float, float]]
WIDTH = 330
MARKERS = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",  # circle
    "M-3-3h6v6h-6z",
    "M0-4.4 4.4 0 0 4.4-4.4 0z",
    "M0-4 4 3.4h-8z",
    "M0 4 4-3.4h-8z",
    "M-1.3-4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",  # cross
)
_MARGIN_TOP, _BOTTOM, _RIGHT = 8, 36, 14  # margins; the axis and its name stand at the bottom
_CURVE_HEIGHT, _CURVE_LEFT = 230, 40
_MODEL_HEIGHT, _ROW_GAP = 13, 16
_LETTER_WIDTH, _MOST_LETTERS = 6, 22
_MOST_TICKS, _MOST_SLICES = 5, 12
_STEPS = (0.02, 0.05, 0.1, 0.2, 0.25, 0.5)


def summary_table(report: ReportJson) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of text to image, one row a model."""
    columns = ["Model", "recall@1", "recall@5", "MRR", "inference ms"]
    rows: list[list[object]] = []
    for label in report["labels"]:
        scores, latency = report["models"][label]["text_to_image"], report["models"][label]["latency"]
        found = []
        for metric in ("recall@1", "recall@5"):
            low, high = scores["intervals"][metric]
            found.append(f"{scores[metric]:.3f} ({low:.2f}-{high:.2f})")
        text_ms = float(latency["texts"]["1"]["p50_ms"]) if latency else None
        rows.append([shown_name(report, label), *found, scores["mrr"], text_ms])
    return columns, rows


def shown_name(report: ReportJson, label: str) -> str:
    """What tables and sentences call a model: a run has its own name, though the JSON says `finetuned`."""
    return str(report["models"][label]["name"]) if label == "finetuned" else label


def comparison_lines(report: ReportJson) -> Iterator[str]:
    """One sentence for each run: is it better than the base, by how much, and how sure is that."""
    for label in report["labels"][1:]:
        tests = report["paired"][label]["text_to_image"]
        test, verdict = tests[_HEADLINE], _verdict(tests[_HEADLINE])
        found, low, high = (100 * tests["recall@5"][name] for name in ("difference", "low", "high"))
        unsure = f"{_missing_products(test, report['gallery_size'])}; " if verdict == _UNKNOWN else ""
        yield (
            f"{shown_name(report, label)} is {verdict} than the base: of 100 searches, "
            f"{abs(found):.0f} {'fewer' if round(found) < 0 else 'more'} find their product among the first "
            f"five ({low:+.0f} to {high:+.0f}); {unsure}MRR {test['difference']:+.3f} ({test['low']:+.3f} to "
            f"{test['high']:+.3f}), {_p_text(test['p_value'])}, {test['groups']} groups"
        )


def _verdict(test: Mapping[str, float]) -> str:
    """By the interval of the paired difference."""
    if test["low"] > 0:
        return "better"
    return "worse" if test["high"] < 0 else _UNKNOWN


def _missing_products(test: Mapping[str, float], products: int) -> str:
    """How many more test products would tell: intervals shrink with the root of the number of groups."""
    half_width, difference = (test["high"] - test["low"]) / 2, abs(test["difference"])
    if difference * math.sqrt(_MOST_TIMES) <= half_width:
        return "the two are too alike to tell apart with any usual test split"
    missing = products * ((half_width / difference) ** 2 - 1)
    step = 10 ** max(0, math.floor(math.log10(max(1, missing))) - 1)  # two digits: it is an estimate
    return f"about {max(1, math.ceil(missing / step) * step):,} more test products would tell"


def _p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def render(report: ReportJson, sections: Sequence[PagePart], split: Split) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("furnclip.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = partial(shown_name, report)
    environment.filters.update(p_value=_p_text, verdict=_verdict, shown=names)
    labels = report["labels"]
    plots = {
        "How often the first result is relevant": plot_metrics(report, "recall@1"),
        "How near the top the first relevant one is": plot_metrics(report, "mrr"),
        "Text to image, among the first k": plot_curve(report),
    }
    slices = [
        {
            "name": "type" if attribute == "object_type" else attribute,
            "plot": plot_slices(report, attribute),
            **report["slices"][attribute],
        }
        for attribute in reversed(ATTRIBUTES)  # the type first: it tells most
        if len(report["slices"][attribute]["values"]) > 1
    ]
    return environment.get_template("report.html").render(
        report=report,
        labels=labels,
        summary=summary_table(report),
        headline=_HEADLINE,
        comparisons=zip(labels[1:], comparison_lines(report), strict=True),
        tasks={name: words for name, words in TASKS.items() if name in report["models"][labels[0]]},
        task_words=TASKS,
        plots=plots,
        slices=slices,
        sections=sections,
        titles=split.titles,
        images=_images(sections, split),
    )


def _images(sections: Sequence[PagePart], split: Split) -> dict[int, str]:
    """Product index -> data URI, for every image that is shown."""
    examples = [example for section in sections for example in section["examples"]]
    shown = {index for example in examples for answer in example["answers"] for index, _ in answer["hits"]}
    shown |= {example["target"] for example in examples} - {None}
    uris = {}
    for index in sorted(shown):
        image = split.image(index)
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        jpeg = base64.b64encode(encode_jpeg(image, 80)).decode("ascii")
        uris[index] = f"data:image/jpeg;base64,{jpeg}"
    return uris


def choose(measured: Measurement) -> list[PagePart]:
    """The sections that have something to show, in the report's order."""
    random = np.random.default_rng(measured.config.seed)
    products = partial(_section, measured, "text_to_image")
    answers = measured.answers["text_to_image"]
    first, last = measured.models[0], measured.models[-1]
    before, ranks = answers[first.label].first_ranks, answers[last.label].first_ranks
    name = last.clip.name if last.label == "finetuned" else last.label
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
        sections.append(products("Gains", f"Where {name} is most ahead of {first.label}", gains))
        sections.append(products("Regressions", f"Where {name} is most behind {first.label}", losses))
    hardest = [row for row in np.argsort(-ranks, kind="stable") if ranks[row] > _TOP]
    sections.append(products("Hardest", f"Where {name} finds the relevant image last", hardest))
    return [section for section in sections if section["examples"]]


def _section(measured: Measurement, name: str, title: str, note: str, rows: Iterable[int]) -> PagePart:
    """The first of a task's `rows`, as many as the settings ask for, and the answers."""
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
        answers = []
        for label, top in tops.items():
            rank = int(measured.answers[name][label].first_ranks[row])
            hits = [(index, index in relevant) for index in top[place].tolist()]
            answers.append({"label": label, "rank": rank, "hits": hits})
        target = source if about_product else None
        examples.append({"query": texts[source], "target": target, "answers": answers})
    return {"title": title, "note": note, "examples": examples}


@dataclass(frozen=True)
class Plot:
    """One drawing, `WIDTH` wide."""

    title: str
    x_name: str
    height: float
    left: float
    columns: Sequence[tuple[float, str]]  # ticks: place and text
    rows: Sequence[tuple[float, str, str]]  # ticks: place, text, and a smaller line under it
    markers: Mapping[str, Points]  # of each model
    intervals: Mapping[str, Sequence[tuple[float, ...]]] = field(default_factory=dict)  # from, to, y
    lines: Mapping[str, Points] = field(default_factory=dict)
    chance: Points = ()

    top, bottom, width, right, shapes = _MARGIN_TOP, _BOTTOM, WIDTH, WIDTH - _RIGHT, MARKERS


def plot_metrics(report: ReportJson, metric: str) -> Plot:
    """One metric of every task: a point with its interval for each model."""
    models = {label: report["models"][label] for label in report["labels"]}
    first = models[report["labels"][0]]
    tasks = [task for task in TASKS if task in first]
    names = {
        TASKS[task][0].lower(): f"{first[task]['queries']} in {first[task]['gallery_size']}" for task in tasks
    }
    rows = {label: [model[task] for task in tasks] for label, model in models.items()}
    return _interval_plot(names, rows, metric, "of every task, with intervals")


def plot_slices(report: ReportJson, attribute: str) -> Plot:
    """recall@5 of text to image for each value of an attribute, those with most queries first."""
    values = dict(list(report["slices"][attribute]["values"].items())[:_MOST_SLICES])
    names = {name: f"{row['queries']} queries" for name, row in values.items()}
    rows = {label: [row["models"][label] for row in values.values()] for label in report["labels"]}
    return _interval_plot(names, rows, "recall@5", f"by {attribute}")


def plot_curve(report: ReportJson) -> Plot:
    """recall@k of text to image against k, and what chance would give."""
    curves = {label: report["curves"][label] for label in report["labels"]}
    most = min(len(report["chance_curve"]), report["gallery_size"])
    top = _top(value for curve in curves.values() for value in curve[:most])
    floor, right = _CURVE_HEIGHT - _BOTTOM, WIDTH - _RIGHT

    across = np.linspace(_CURVE_LEFT, right, most).round(1).tolist()

    def places(curve: Sequence[float]) -> list[tuple[float, float]]:
        up = (round(floor - (floor - _MARGIN_TOP) * value / top, 1) for value in curve)
        return list(zip(across, up, strict=False))

    baseline = places([0] * most)
    lines = {label: places(curve) for label, curve in curves.items()}
    every = max(1, most // 5)
    return Plot(
        title="recall at k against k, text to image",
        x_name=f"k, of a gallery of {report['gallery_size']}",
        height=_CURVE_HEIGHT,
        left=_CURVE_LEFT,
        columns=[(baseline[k - 1][0], str(k)) for k in (1, *range(10, most + 1, 10)) if k <= most],
        rows=[(floor - (floor - _MARGIN_TOP) * value / top, f"{value:g}", "") for value in _ticks(top)],
        markers={label: line[::every] for label, line in lines.items()},
        lines=lines,
        chance=places(report["chance_curve"]),
    )


def _interval_plot(
    names: Mapping[str, str], scores: Mapping[str, Sequence[ReportJson]], metric: str, about: str
) -> Plot:
    """A row for each name with its note, and in it a point with its interval for each model."""
    row_height = _ROW_GAP + _MODEL_HEIGHT * len(scores)
    shown = [
        text if cell_len(text) <= _MOST_LETTERS else f"{set_cell_size(text, _MOST_LETTERS - 1).rstrip()}…"
        for text in names
    ]
    left = 12 + _LETTER_WIDTH * max(map(cell_len, shown), default=0)
    top = _top(row["intervals"][metric][1] for rows in scores.values() for row in rows)
    right = WIDTH - _RIGHT
    name = "MRR" if metric == "mrr" else metric

    def x(value: float) -> float:
        return round(left + (right - left) * value / top, 1)

    def y(row: int, model: int) -> float:
        return _MARGIN_TOP + row_height * row + _ROW_GAP / 2 + _MODEL_HEIGHT * (model + 0.5)

    return Plot(
        title=f"{name} {about}",
        x_name=name,
        height=_MARGIN_TOP + row_height * len(names) + _BOTTOM,
        left=left,
        columns=[(x(value), f"{value:g}") for value in _ticks(top)],
        rows=[
            (_MARGIN_TOP + row_height * (row + 0.5), text, note)
            for row, (text, note) in enumerate(zip(shown, names.values(), strict=True))
        ],
        markers={
            label: [(x(row[metric]), y(number, model)) for number, row in enumerate(rows)]
            for model, (label, rows) in enumerate(scores.items())
        },
        intervals={
            label: [(*map(x, row["intervals"][metric]), y(number, model)) for number, row in enumerate(rows)]
            for model, (label, rows) in enumerate(scores.items())
        },
    )


def _top(values: Iterable[float]) -> float:
    """The end of an axis that begins at zero: the largest value, a little room, at most 1."""
    return min(1.0, max(0.1, 1.04 * max(values)))


def _ticks(top: float) -> list[float]:
    step = next(step for step in _STEPS if top / step < _MOST_TICKS or step == _STEPS[-1])
    return [round(step * index, 2) for index in range(int(top / step + 1e-9) + 1)]
