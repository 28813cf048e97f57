"""The short form of a report: the table and the sentences that are printed and open the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Report = Mapping[str, Any]
HEADLINE = "mrr"  # decides the verdict: it sees every change of rank, recall@k only those across k


def summary_table(report: Report) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of text to image, one row a model."""
    columns = ["Model", "Accuracy@1", "Accuracy@5", "MRR", "inference ms"]
    rows: list[list[object]] = []
    for label in report["labels"]:
        scores = report["models"][label]["text_to_image"]
        found = [f"{scores[metric]:.3f} {_brackets(scores, metric)}" for metric in ("recall@1", "recall@5")]
        rows.append([label, *found, scores["mrr"], text_latency_ms(report["models"][label])])
    return columns, rows


def _brackets(scores: Mapping[str, Any], metric: str) -> str:
    low, high = scores["intervals"][metric]
    return f"({low:.2f}-{high:.2f})"


def interval_percent(report: Report) -> str:
    """`95 % interval`, or whatever confidence was asked for."""
    return f"{report['settings']['confidence'] * 100:g} % interval"


def interval_text(limits: tuple[float, float]) -> str:
    return f"{limits[0]:.3f} to {limits[1]:.3f}"


def text_latency_ms(model: Mapping[str, Any]) -> float | None:
    """Median time to encode one query, in milliseconds, or None where it was not measured."""
    latency = model["latency"]
    return float(latency["texts"]["1"]["p50_ms"]) if latency else None


def comparison_lines(report: Report) -> Iterator[str]:
    """One sentence for each run: is it better than the base, and how sure is that."""
    for label in report["labels"][1:]:
        test = report["paired"][label]["text_to_image"][HEADLINE]
        yield (
            f"{label} is {verdict(test)} than the base: MRR {test['difference']:+.3f} "
            f"({test['low']:+.3f} to {test['high']:+.3f}), {p_text(test['p_value'])}, "
            f"{test['groups']} independent groups"
        )


def p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def verdict(test: Mapping[str, float]) -> str:
    """`better`, `worse` or `not clearly better or worse`, by the interval of the paired difference."""
    if test["low"] > 0:
        return "better"
    return "worse" if test["high"] < 0 else "not clearly better or worse"
