"""The plots of the report as SVG text that takes its colours from the page.

Matplotlib draws with stand-in colours; they are replaced by the page's CSS variables, so one drawing
serves light and dark. Every figure is phone-sized, text is text, and each model has its own marker
besides its colour.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Report = Mapping[str, Any]
_INK, _FAINT = "#010101", "#020202"
_SERIES = ("#030301", "#030302", "#030303", "#030304", "#030305", "#030306")
_MARKERS = "osD^vP"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "furnclip",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}
_WIDTH_IN = 4.4
_WIDTH_LETTERS = 56  # of the legend, at its size
_SIGN_LETTERS = 6  # a model's line and marker, and the gap to the next
_TASKS = {
    "text_to_image": "text to picture",
    "image_to_text": "picture to text",
    "image_to_image": "picture to picture",
    "image_to_type": "picture to type",
    "attributes_to_image": "request to picture",
}


def plot_metrics(report: Report, metric: str, *, name: str) -> str:
    """One metric of every task: a point with its interval for each model."""
    models = {label: report["models"][label] for label in report["labels"]}
    first = models[report["labels"][0]]
    tasks = [task for task in _TASKS if task in first]
    return _interval_plot(
        [f"{_TASKS[task]}\n{first[task]['queries']} in {first[task]['gallery_size']}" for task in tasks],
        {label: [model[task] for task in tasks] for label, model in models.items()},
        metric=metric,
        xlabel=name,
        title=f"{name} of every task, with intervals",
    )


def plot_slices(report: Report, attribute: str, *, metric: str = "recall@5", most: int = 12) -> str:
    """One metric of text to image for each value of an attribute; the first have most queries."""
    values = dict(list(report["slices"][attribute]["values"].items())[:most])
    return _interval_plot(
        [f"{name} ({row['queries']})" for name, row in values.items()],
        {label: [row["models"][label] for row in values.values()] for label in report["labels"]},
        metric=metric,
        xlabel=metric,
        title=f"{metric} by {attribute}",
    )


def plot_curve(report: Report) -> str:
    """recall@k of text to image against k, and what chance would give."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(3.2)
        for number, label in enumerate(report["labels"]):
            curve = report["curves"][label]
            steps = range(1, min(len(curve), report["gallery_size"]) + 1)
            axes.plot(
                steps,
                curve[: len(steps)],
                color=_color(number),
                marker=_marker(number),
                markevery=0.2,
                label=label,
                linewidth=1.8,
            )
        axes.plot(steps, report["chance_curve"][: len(steps)], ":", color=_INK, label="chance", linewidth=1.2)
        axes.set_ylim(*_range_from_zero(axes, "y"))
        axes.set_xlabel(f"k, of a gallery of {report['gallery_size']}")
        axes.set_ylabel("recall@k")
        _legend(figure, axes)
        return _svg(figure, "recall at k against k, text to picture")


def _interval_plot(
    names: Sequence[str], scores: Mapping[str, Sequence[Report]], *, metric: str, xlabel: str, title: str
) -> str:
    """A row for each name, and in it a point with its interval for each model."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(0.9 + 0.22 * len(names) * (len(scores) + 0.8))
        for number, (label, rows) in enumerate(scores.items()):
            places = _places(len(names), len(scores), number)
            lows, highs = zip(*(row["intervals"][metric] for row in rows), strict=True)
            axes.hlines(places, lows, highs, color=_color(number), linewidth=2)
            values = [row[metric] for row in rows]
            axes.plot(values, places, _marker(number), color=_color(number), label=label, markersize=6)
        _rows(axes, names, xlabel=xlabel)
        _legend(figure, axes)
        return _svg(figure, title)


def _figure(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    return figure, axes


def _places(rows: int, models: int, number: int) -> list[float]:
    """Heights of one model's points: the models of a row stand under one another."""
    offset = (number - (models - 1) / 2) * 0.7 / models
    return [row + offset for row in range(rows)]


def _rows(axes: Axes, names: Sequence[str], *, xlabel: str) -> None:
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels(names, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(*_range_from_zero(axes))
    axes.set_xlabel(xlabel)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _range_from_zero(axes: Axes, side: str = "x") -> tuple[float, float]:
    """From zero, always, to a little above the largest value drawn."""
    largest = axes.dataLim.xmax if side == "x" else axes.dataLim.ymax
    top = min(1.0, max(0.1, float(largest)))
    return -0.02 * top, 1.04 * top


def _legend(figure: Figure, axes: Axes) -> None:
    """The models' names above the plot, in as many columns as the drawing is wide."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, _WIDTH_LETTERS // (max(map(len, labels)) + _SIGN_LETTERS))
    legend = figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=min(columns, len(labels)),
        borderpad=0,
        handlelength=1.4,
        columnspacing=1.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _color(number: int) -> str:
    return _SERIES[number % len(_SERIES)]


def _marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]


def _svg(figure: Figure, title: str) -> str:
    """The drawing as an `<svg>` element for a page: named, without size, coloured by the page."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Only widths are taken from matplotlib's font; the browser has the letters it lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'^<svg ([^>]*?)height="[^"]*"', r"<svg \1", text)
    text = re.sub(r'^<svg ([^>]*?)width="[^"]*"', rf'<svg role="img" aria-label="{title}" \1', text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    colors = {_INK: "var(--ink)", _FAINT: "var(--rule)"}
    colors |= {stand_in: f"var(--series-{number})" for number, stand_in in enumerate(_SERIES)}
    for stand_in, name in colors.items():
        text = text.replace(stand_in, name)
    return _unique_ids(text, title)


def _unique_ids(svg: str, title: str) -> str:
    """Ids made unique on the page: several drawings share it."""
    prefix = re.sub(r"\W+", "-", title)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
