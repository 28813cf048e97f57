"""From vectors to numbers: each query's scores, their means, intervals, slices and paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from furnclip.catalogue import ATTRIBUTES
from furnclip.config import EvaluationConfig
from furnclip.evaluate.encode import Encoded
from furnclip.evaluate.split import Split
from furnclip.evaluate.tasks import Task
from furnclip.metrics.bootstrap import bootstrap_interval, paired_test
from furnclip.metrics.retrieval import average_precision, chance_recall_at_k, every_rank, ndcg_at_k

Floats = npt.NDArray[np.floating]
CUTOFFS = (1, 5, 10)
_TESTED = ("recall@1", "recall@5", "recall@10", "mrr", "map", "ndcg@10")
_SLICED = ("recall@1", "recall@5", "mrr")


@dataclass(frozen=True)
class Answers:
    """How one model did on each of Q queries; every array is (Q,)."""

    first_ranks: npt.NDArray[np.int64]
    values: dict[str, Floats]  # metric -> its value for each query, 0 to 1


def answer(task: Task, encoded: Encoded) -> Answers:
    """Ask one model every query of a task."""
    queries = encoded.vectors[task.queries][task.rows]  # (Q, D)
    gallery = encoded.vectors[task.gallery]  # (N, D)
    found = every_rank(queries, gallery, task.relevant, exclude=task.exclude)
    first_ranks = np.asarray([ranks[0] for ranks in found], dtype=np.int64)
    values: dict[str, Floats] = {f"recall@{k}": (first_ranks <= k).astype(np.float64) for k in CUTOFFS}
    values["mrr"] = 1.0 / first_ranks
    values["map"] = average_precision(found)
    values["ndcg@10"] = ndcg_at_k(queries, gallery, task.gains, k=10, exclude=task.exclude)
    return Answers(first_ranks, values)


def summarise(task: Task, answers: Answers, gallery_size: int, config: EvaluationConfig) -> dict[str, Any]:
    """Means and intervals of one task, with the sizes without which they say nothing."""
    result = _means(answers.values, task.units, tuple(answers.values), config)
    for k in (1, 5):  # the names that the project started with
        result[f"accuracy@{k}"] = result[f"recall@{k}"]
    candidates = gallery_size - (task.exclude is not None)
    counts = [len(found) for found in task.relevant]
    return {
        **result,
        "median_rank": float(np.median(answers.first_ranks)),
        "chance": {f"recall@{k}": chance_recall_at_k(counts, candidates, k) for k in CUTOFFS},
        "queries": len(task.rows),
        "gallery_size": candidates,
        "groups": len(set(task.units)),
    }


def compare(task: Task, first: Answers, second: Answers, config: EvaluationConfig) -> dict[str, Any]:
    """Paired test of every metric, second minus first."""
    return {
        metric: asdict(
            paired_test(
                first.values[metric],
                second.values[metric],
                task.units,
                samples=config.bootstrap_samples,
                confidence=config.confidence,
                seed=config.seed,
            )
        )
        for metric in _TESTED
    }


def slice_by_attribute(
    split: Split, task: Task, answers: Mapping[str, Answers], config: EvaluationConfig
) -> dict[str, Any]:
    """Each model on the queries of one type, material, color or style; the gallery stays whole.

    Values with fewer queries than `slice_min_queries` are counted in `left_out` only.
    """
    slices: dict[str, Any] = {}
    for attribute in ATTRIBUTES:
        values = np.asarray(split.attributes[attribute])[task.rows]
        names, counts = np.unique(values[values != ""], return_counts=True)
        order = sorted(range(len(names)), key=lambda index: (-counts[index], names[index]))
        enough = [index for index in order if counts[index] >= config.slice_min_queries]
        slices[attribute] = {
            "values": {
                str(names[index]): _slice(np.flatnonzero(values == names[index]), task, answers, config)
                for index in enough
            },
            "left_out": len(order) - len(enough),
        }
    return slices


def _slice(
    chosen: npt.NDArray[np.int64], task: Task, answers: Mapping[str, Answers], config: EvaluationConfig
) -> dict[str, Any]:
    units = [task.units[row] for row in chosen]
    models = {}
    for label, answered in answers.items():
        values = {metric: answered.values[metric][chosen] for metric in _SLICED}
        models[label] = _means(values, units, _SLICED, config)
    return {"queries": len(chosen), "models": models}


def _means(
    values: Mapping[str, Floats], units: Sequence[str], metrics: Sequence[str], config: EvaluationConfig
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    for metric in metrics:
        interval = bootstrap_interval(
            values[metric],
            units,
            samples=config.bootstrap_samples,
            confidence=config.confidence,
            seed=config.seed,
        )
        result[metric] = interval.value
        intervals[metric] = [interval.low, interval.high]
    return {**result, "intervals": intervals}
