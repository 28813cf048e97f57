"""From vectors to numbers: each query's scores, their means, intervals, slices and paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from furnclip import console
from furnclip.catalogue import ATTRIBUTES
from furnclip.config import EvaluationConfig
from furnclip.evaluate.models import ModelVectors
from furnclip.evaluate.tasks import RetrievalTask, Split, build_tasks
from furnclip.metrics import retrieval
from furnclip.metrics.bootstrap import Floats, bootstrap_interval, paired_test
from furnclip.relevance import AttributeQuery

_CUTOFFS = (1, 5, 10)
_CURVE = range(1, 51)
_SLICED = ("recall@1", "recall@5", "mrr")
_NOT_MEASURED = {
    "image_to_image": "no two products of this split share a group",
    "image_to_type": "no two products of this split are known to be of one type",
    "query_to_image": "no shopper queries are known of the test split",
    "attributes_to_image": "no type is known together with a color, material or style",
}


@dataclass(frozen=True)
class TaskScores:
    """How one model did on each of Q queries; every array is (Q,)."""

    first_ranks: npt.NDArray[np.int64]
    values: dict[str, Floats]  # metric -> its value for each query, 0 to 1


@dataclass(frozen=True)
class Measurement:
    """How every model answered every task of a split; the base model comes first."""

    split: Split
    requests: Sequence[AttributeQuery]
    models: Sequence[ModelVectors]
    tasks: dict[str, RetrievalTask]
    answers: dict[str, dict[str, TaskScores]]  # task -> label -> answers
    config: EvaluationConfig


def measure(
    split: Split, requests: Sequence[AttributeQuery], models: Sequence[ModelVectors], config: EvaluationConfig
) -> Measurement:
    """Ask every model every query."""
    tasks = build_tasks(split, requests)
    answers: dict[str, dict[str, TaskScores]] = {name: {} for name in tasks}
    with console.progress("ranking", total=len(tasks) * len(models)) as meter:
        for name, task in tasks.items():
            for model in models:
                answers[name][model.label] = _answer(task, model)
                meter.advance()
    return Measurement(split, requests, models, tasks, answers, config)


def _answer(task: RetrievalTask, model: ModelVectors) -> TaskScores:
    queries = model.vectors[task.queries][task.rows]  # (Q, D)
    gallery = model.vectors[task.gallery]  # (N, D)
    found = retrieval.every_rank(queries, gallery, task.relevant, exclude=task.exclude)
    first_ranks = np.asarray([ranks[0] for ranks in found], dtype=np.int64)
    values: dict[str, Floats] = {f"recall@{k}": (first_ranks <= k).astype(np.float64) for k in _CUTOFFS}
    values["mrr"] = 1.0 / first_ranks
    values["map"] = retrieval.average_precision(found)
    values["ndcg@10"] = retrieval.ndcg_at_k(queries, gallery, task.gains, k=10, exclude=task.exclude)
    return TaskScores(first_ranks, values)


def numbers(measured: Measurement, latency: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of the report. `latency`: figures by label."""
    split = measured.split
    base, *runs = measured.models
    tasks, answers = measured.tasks, measured.answers["text_to_image"]
    task = tasks["text_to_image"]
    relevant_counts = [len(found) for found in task.relevant]
    return {
        "split": split.name,
        "data_hash": split.dataset.data_hash,
        "gallery_size": len(split),
        "queries": len(task.rows),
        "groups": len(set(task.units)),
        "settings": measured.config.model_dump(),
        "labels": [model.label for model in measured.models],  # JSON objects have no order
        "models": {
            model.label: {
                "name": model.clip.name,
                "fingerprint": model.clip.fingerprint,
                "precision": model.clip.precision.precision,
                "latency": latency[model.label],
                **{name: _summarize(measured, name, model.label) for name in tasks},
            }
            for model in measured.models
        },
        "paired": {
            run.label: {name: _compare(measured, name, base.label, run.label) for name in tasks}
            for run in runs
        },
        "slices": {attribute: _slices(attribute, measured) for attribute in ATTRIBUTES},
        "not_measured": {name: reason for name, reason in _NOT_MEASURED.items() if name not in tasks},
        "curves": {
            label: [retrieval.recall_at_k(found.first_ranks, k) for k in _CURVE]
            for label, found in answers.items()
        },
        "chance_curve": [retrieval.chance_recall_at_k(relevant_counts, len(split), k) for k in _CURVE],
    }


def _summarize(measured: Measurement, name: str, label: str) -> dict[str, Any]:
    """Means and intervals of one task, with the sizes without which they say nothing."""
    task, answers = measured.tasks[name], measured.answers[name][label]
    result = _means(answers.values, task.units, measured.config)
    for k in (1, 5):  # the names that the project started with
        result[f"accuracy@{k}"] = result[f"recall@{k}"]
    candidates = len(measured.split) - (task.exclude is not None)
    counts = [len(found) for found in task.relevant]
    return {
        **result,
        "median_rank": float(np.median(answers.first_ranks)),
        "chance": {f"recall@{k}": retrieval.chance_recall_at_k(counts, candidates, k) for k in _CUTOFFS},
        "queries": len(task.rows),
        "gallery_size": candidates,
        "groups": len(set(task.units)),
    }


def _compare(measured: Measurement, name: str, first: str, second: str) -> dict[str, Any]:
    """Paired test of every metric of one task, second minus first."""
    units, drawn = measured.tasks[name].units, _resampling(measured.config)
    before, after = (measured.answers[name][label].values for label in (first, second))
    return {metric: asdict(paired_test(before[metric], after[metric], units, **drawn)) for metric in before}


def _slices(attribute: str, measured: Measurement) -> dict[str, Any]:
    """Text to image of each model for the queries of one type, material, color or style; whole gallery.

    Values with fewer queries than `slice_min_queries` are counted in `left_out` only.
    """
    task = measured.tasks["text_to_image"]
    values = np.asarray(measured.split.attributes[attribute])[task.rows]
    names, counts = np.unique(values[values != ""], return_counts=True)
    by_count = np.argsort(-counts, kind="stable")
    enough = [index for index in by_count if counts[index] >= measured.config.slice_min_queries]
    slices = {}
    for name in names[enough]:
        chosen = np.flatnonzero(values == name)
        units = [task.units[row] for row in chosen]
        models = {}
        for label, found in measured.answers["text_to_image"].items():
            chosen_values = {metric: found.values[metric][chosen] for metric in _SLICED}
            models[label] = _means(chosen_values, units, measured.config)
        slices[str(name)] = {"queries": len(chosen), "models": models}
    return {"values": slices, "left_out": len(names) - len(slices)}


def _means(values: Mapping[str, Floats], units: Sequence[str], config: EvaluationConfig) -> dict[str, Any]:
    result: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    for metric, of_queries in values.items():
        interval = bootstrap_interval(of_queries, units, **_resampling(config))
        result[metric] = interval.value
        intervals[metric] = [interval.low, interval.high]
    return {**result, "intervals": intervals}


def _resampling(config: EvaluationConfig) -> dict[str, Any]:
    return {"samples": config.bootstrap_samples, "confidence": config.confidence, "seed": config.seed}
