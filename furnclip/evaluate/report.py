"""`report.html`: one self-contained page with tables, plots and images, for phones and desks.

Out: HTML text without a single outside address. Images are JPEG data URIs, each in the page once.
Product titles are shop data: the template escapes everything.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from furnclip.catalogue import ATTRIBUTES
from furnclip.evaluate import plots
from furnclip.evaluate.showcase import Part
from furnclip.evaluate.split import Split
from furnclip.evaluate.summary import (
    HEADLINE,
    comparison_lines,
    interval_percent,
    interval_text,
    p_text,
    summary_table,
    verdict,
)
from furnclip.images import encode_jpeg

_THUMBNAIL_PX = 160
_TASKS = {
    "text_to_image": ("Text to image", "a product's caption finds its image"),
    "image_to_text": ("Image to text", "an image finds its product's caption"),
    "image_to_image": ("Image to image", "an image finds the other images of its group"),
    "image_to_type": ("Image to type", "an image finds other images of the same type"),
    "attributes_to_image": ("Request to image", "a short request finds every image of that kind"),
}
_METRICS = {
    "recall@1": "recall@1",
    "recall@5": "recall@5",
    "recall@10": "recall@10",
    "mrr": "MRR",
    "map": "mAP",
    "ndcg@10": "nDCG@10",
}
_STEPS = {
    "recall@1": "of captions find their image first",
    "recall@5": "find it among the first five",
    "recall@10": "find it among the first ten",
}
_ATTRIBUTE_NAMES = {"object_type": "type"}


def render(report: Mapping[str, Any], parts: Sequence[Part], split: Split) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("furnclip.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        figure=_figure, signed=_signed, p_value=p_text, between=interval_text, percent=_percent
    )
    labels = report["labels"]
    return environment.get_template("report.html").render(
        report=report,
        labels=labels,
        summary=summary_table(report),
        verdicts=_verdicts(report),
        interval_name=interval_percent(report),
        tasks={name: words for name, words in _TASKS.items() if name in report["models"][labels[0]]},
        task_names={name: words[0] for name, words in _TASKS.items()},
        metrics=_METRICS,
        plots=_plots(report),
        slices=_slices(report),
        parts=parts,
        images=_images(parts, split),
    )


def _verdicts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    words = {"better": "Better", "worse": "Worse"}
    kinds = {
        label: verdict(report["paired"][label]["text_to_image"][HEADLINE]) for label in report["labels"][1:]
    }
    return [
        {
            "label": label,
            "word": words.get(kinds[label], "No clear difference"),
            "kind": kinds[label].split()[0],
            "line": line,
            "steps": _steps(report, label),
        }
        for label, line in zip(kinds, comparison_lines(report), strict=True)
    ]


def _steps(report: Mapping[str, Any], label: str) -> list[dict[str, Any]]:
    before, after = (report["models"][name]["text_to_image"] for name in (report["labels"][0], label))
    return [
        {"before": before[metric], "after": after[metric], "name": name} for metric, name in _STEPS.items()
    ]


def _plots(report: Mapping[str, Any]) -> list[tuple[str, plots.Plot]]:
    """Captions and drawings."""
    return [
        ("How often the first result is relevant", plots.plot_metrics(report, "recall@1", name="recall@1")),
        ("How near the top the first relevant one is", plots.plot_metrics(report, "mrr", name="MRR")),
        ("Text to image, among the first k", plots.plot_curve(report)),
    ]


def _slices(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": _ATTRIBUTE_NAMES.get(attribute, attribute),
            "values": report["slices"][attribute]["values"],
            "left_out": report["slices"][attribute]["left_out"],
            "plot": plots.plot_slices(report, attribute),
        }
        for attribute in reversed(ATTRIBUTES)  # the type first: it tells most
        if len(report["slices"][attribute]["values"]) > 1
    ]


def _images(parts: Sequence[Part], split: Split) -> dict[int, str]:
    """Product index -> data URI, for every image that is shown."""
    shown: set[int] = set()
    for part in parts:
        for example in part.examples:
            shown |= {hit.index for answer in example.answers for hit in answer.hits}
            shown |= set() if example.target is None else {example.target}
    return {index: _data_uri(split.image(index)) for index in sorted(shown)}


def _data_uri(image: Image.Image) -> str:
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image, 80)).decode("ascii")


def _figure(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
