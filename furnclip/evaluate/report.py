"""The report in words and images: lines and a table for the terminal, `report.html` for a browser.

The page is one self-contained file for phones and desks, without a single outside address. Images are
JPEG data URIs, each in the page once. Product titles are shop data: the template escapes everything.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from furnclip.catalogue import ATTRIBUTES
from furnclip.evaluate.plots import ReportJson, plot_curve, plot_metrics, plot_slices
from furnclip.evaluate.showcase import ReportSection
from furnclip.evaluate.tasks import TASKS, Split
from furnclip.images import encode_jpeg

_HEADLINE = "mrr"  # decides the verdict: it sees every change of rank, recall@k only those across k
_THUMBNAIL_PX = 160


def summary_table(report: ReportJson) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of text to image, one row a model."""
    columns = ["Model", "Accuracy@1", "Accuracy@5", "MRR", "inference ms"]
    rows: list[list[object]] = []
    for label in report["labels"]:
        scores, latency = report["models"][label]["text_to_image"], report["models"][label]["latency"]
        found = []
        for metric in ("recall@1", "recall@5"):
            low, high = scores["intervals"][metric]
            found.append(f"{scores[metric]:.3f} ({low:.2f}-{high:.2f})")
        text_ms = float(latency["texts"]["1"]["p50_ms"]) if latency else None
        rows.append([label, *found, scores["mrr"], text_ms])
    return columns, rows


def comparison_lines(report: ReportJson) -> Iterator[str]:
    """One sentence for each run: is it better than the base, and how sure is that."""
    for label in report["labels"][1:]:
        test = report["paired"][label]["text_to_image"][_HEADLINE]
        yield (
            f"{label} is {_verdict(test)} than the base: MRR {test['difference']:+.3f} "
            f"({test['low']:+.3f} to {test['high']:+.3f}), {_p_text(test['p_value'])}, "
            f"{test['groups']} independent groups"
        )


def _verdict(test: Mapping[str, float]) -> str:
    """By the interval of the paired difference."""
    if test["low"] > 0:
        return "better"
    return "worse" if test["high"] < 0 else "not clearly better or worse"


def _p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def render(report: ReportJson, sections: Sequence[ReportSection], split: Split) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("furnclip.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(p_value=_p_text, verdict=_verdict)
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


def _images(sections: Sequence[ReportSection], split: Split) -> dict[int, str]:
    """Product index -> data URI, for every image that is shown."""
    examples = [example for section in sections for example in section.examples]
    shown = {index for example in examples for answer in example.answers for index, _ in answer.hits}
    shown |= {example.target for example in examples if example.target is not None}
    uris = {}
    for index in sorted(shown):
        image = split.image(index)
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        jpeg = base64.b64encode(encode_jpeg(image, 80)).decode("ascii")
        uris[index] = f"data:image/jpeg;base64,{jpeg}"
    return uris
