"""The plots of the report as places on a drawing; `templates/plots.html` draws them in the page's colors.

A drawing is as wide as a phone's screen. Each model has a marker of its own besides its color.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from furnclip.evaluate.tasks import TASKS

ReportJson = Mapping[str, Any]
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
_TOP, _BOTTOM, _RIGHT = 8, 36, 14  # margins; the axis and its name stand at the bottom
_CURVE_HEIGHT, _CURVE_LEFT = 230, 40
_MODEL_HEIGHT, _ROW_GAP = 13, 16
_LETTER_WIDTH, _MOST_LETTERS = 6, 22
_MOST_TICKS, _MOST_SLICES = 5, 12
_STEPS = (0.02, 0.05, 0.1, 0.2, 0.25, 0.5)


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

    top, bottom, width, right, shapes = _TOP, _BOTTOM, WIDTH, WIDTH - _RIGHT, MARKERS


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

    def places(curve: Sequence[float]) -> list[tuple[float, float]]:
        across = (right - _CURVE_LEFT) / max(1, most - 1)
        return [
            (round(_CURVE_LEFT + across * index, 1), round(floor - (floor - _TOP) * value / top, 1))
            for index, value in enumerate(curve[:most])
        ]

    baseline = places([0] * most)
    lines = {label: places(curve) for label, curve in curves.items()}
    every = max(1, most // 5)
    return Plot(
        title="recall at k against k, text to image",
        x_name=f"k, of a gallery of {report['gallery_size']}",
        height=_CURVE_HEIGHT,
        left=_CURVE_LEFT,
        columns=[(baseline[k - 1][0], str(k)) for k in (1, *range(10, most + 1, 10)) if k <= most],
        rows=[(floor - (floor - _TOP) * value / top, f"{value:g}", "") for value in _ticks(top)],
        markers={label: line[::every] for label, line in lines.items()},
        lines=lines,
        chance=places(report["chance_curve"]),
    )


def _interval_plot(
    names: Mapping[str, str], scores: Mapping[str, Sequence[ReportJson]], metric: str, about: str
) -> Plot:
    """A row for each name with its note, and in it a point with its interval for each model."""
    row_height = _ROW_GAP + _MODEL_HEIGHT * len(scores)
    shown = {
        text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…": note
        for text, note in names.items()
    }
    left = 12 + _LETTER_WIDTH * max(map(len, shown), default=0)
    top = _top(row["intervals"][metric][1] for rows in scores.values() for row in rows)
    right = WIDTH - _RIGHT
    name = "MRR" if metric == "mrr" else metric

    def x(value: float) -> float:
        return round(left + (right - left) * value / top, 1)

    def y(row: int, model: int) -> float:
        return _TOP + row_height * row + _ROW_GAP / 2 + _MODEL_HEIGHT * (model + 0.5)

    return Plot(
        title=f"{name} {about}",
        x_name=name,
        height=_TOP + row_height * len(names) + _BOTTOM,
        left=left,
        columns=[(x(value), f"{value:g}") for value in _ticks(top)],
        rows=[
            (_TOP + row_height * (row + 0.5), text, note) for row, (text, note) in enumerate(shown.items())
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
