"""The plots of the report as places on a drawing; `templates/plots.html` draws them in the page's colors.

A drawing is as wide as a phone's screen. Each model has a marker of its own besides its color.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]
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
_MOST_TICKS = 5
_STEPS = (0.02, 0.05, 0.1, 0.2, 0.25, 0.5)
_TASKS = {
    "text_to_image": "text to image",
    "image_to_text": "image to text",
    "image_to_image": "image to image",
    "image_to_type": "image to type",
    "attributes_to_image": "request to image",
}


@dataclass(frozen=True)
class Tick:
    """A place on an axis and what stands there; `note` is the smaller line under it."""

    at: float
    text: str
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One model: its markers, its intervals as (from, to, y), and its line, each where there are any."""

    label: str
    markers: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float, float]] = ()
    line: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Plot:
    """One drawing, `WIDTH` wide."""

    title: str
    x_name: str
    height: float
    left: float
    columns: Sequence[Tick]
    rows: Sequence[Tick]
    series: Sequence[Series]
    chance: Sequence[tuple[float, float]] = ()

    @property
    def floor(self) -> float:
        """Where the horizontal axis lies."""
        return self.height - _BOTTOM

    top, width, right, markers = _TOP, WIDTH, WIDTH - _RIGHT, MARKERS


def plot_metrics(report: Report, metric: str, *, name: str) -> Plot:
    """One metric of every task: a point with its interval for each model."""
    models = {label: report["models"][label] for label in report["labels"]}
    first = models[report["labels"][0]]
    tasks = [task for task in _TASKS if task in first]
    names = {_TASKS[task]: f"{first[task]['queries']} in {first[task]['gallery_size']}" for task in tasks}
    rows = {label: [model[task] for task in tasks] for label, model in models.items()}
    return _interval_plot(
        names, rows, metric=metric, name=name, title=f"{name} of every task, with intervals"
    )


def plot_slices(report: Report, attribute: str, *, metric: str = "recall@5", most: int = 12) -> Plot:
    """One metric of text to image for each value of an attribute; the first have most queries."""
    values = dict(list(report["slices"][attribute]["values"].items())[:most])
    names = {name: f"{row['queries']} queries" for name, row in values.items()}
    rows = {label: [row["models"][label] for row in values.values()] for label in report["labels"]}
    return _interval_plot(names, rows, metric=metric, name=metric, title=f"{metric} by {attribute}")


def plot_curve(report: Report) -> Plot:
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

    lines = {label: places(curve) for label, curve in curves.items()}
    every = max(1, most // 5)
    return Plot(
        title="recall at k against k, text to image",
        x_name=f"k, of a gallery of {report['gallery_size']}",
        height=_CURVE_HEIGHT,
        left=_CURVE_LEFT,
        columns=[
            Tick(places([0] * most)[k - 1][0], str(k)) for k in (1, *range(10, most + 1, 10)) if k <= most
        ],
        rows=[Tick(floor - (floor - _TOP) * value / top, f"{value:g}") for value in _ticks(top)],
        series=[Series(label, line[::every], line=line) for label, line in lines.items()],
        chance=places(report["chance_curve"]),
    )


def _interval_plot(
    names: Mapping[str, str], scores: Mapping[str, Sequence[Report]], *, metric: str, name: str, title: str
) -> Plot:
    """A row for each name with its note, and in it a point with its interval for each model."""
    row_height = _ROW_GAP + _MODEL_HEIGHT * len(scores)
    shown = {_shortened(text): note for text, note in names.items()}
    left = 12 + _LETTER_WIDTH * max(map(len, shown), default=0)
    top = _top(row["intervals"][metric][1] for rows in scores.values() for row in rows)
    right = WIDTH - _RIGHT

    def x(value: float) -> float:
        return round(left + (right - left) * value / top, 1)

    def y(row: int, model: int) -> float:
        return _TOP + row_height * row + _ROW_GAP / 2 + _MODEL_HEIGHT * (model + 0.5)

    return Plot(
        title=title,
        x_name=name,
        height=_TOP + row_height * len(names) + _BOTTOM,
        left=left,
        columns=[Tick(x(value), f"{value:g}") for value in _ticks(top)],
        rows=[
            Tick(_TOP + row_height * (row + 0.5), text, note)
            for row, (text, note) in enumerate(shown.items())
        ],
        series=[
            Series(
                label,
                markers=[(x(row[metric]), y(number, model)) for number, row in enumerate(rows)],
                intervals=[
                    (x(row["intervals"][metric][0]), x(row["intervals"][metric][1]), y(number, model))
                    for number, row in enumerate(rows)
                ],
            )
            for model, (label, rows) in enumerate(scores.items())
        ],
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"


def _top(values: Iterable[float]) -> float:
    """The end of an axis that begins at zero: the largest value, a little room, at most 1."""
    return min(1.0, max(0.1, 1.04 * max(values)))


def _ticks(top: float) -> list[float]:
    step = next(step for step in _STEPS if top / step < _MOST_TICKS or step == _STEPS[-1])
    return [round(step * index, 2) for index in range(int(top / step + 1e-9) + 1)]
