"""The models that are compared, what they say of a split, and from that the numbers of the report.

Vectors are those that `embed` wrote, so that what is measured is what is served; else they come from the
cache of features. Latency is wall time of the public encode call, warm, without decoding the JPEG. The models
take turns, call by call, so that a busy minute of the machine hits all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from furnclip import console
from furnclip.catalogue import ATTRIBUTES, content_hash
from furnclip.config import Config, EvaluationConfig
from furnclip.errors import ModelError
from furnclip.evaluate.tasks import RetrievalTask, Side, Split, build_tasks
from furnclip.features import Encode, FeatureStore, StoredVectors, feature_keys
from furnclip.metrics import retrieval
from furnclip.metrics.bootstrap import Floats, bootstrap_interval, paired_test
from furnclip.model.clip import Clip
from furnclip.model.loading import load_clip
from furnclip.relevance import AttributeQuery
from furnclip.vectors import top_k, unit_mean
from furnclip.vectors.parquet import matrix_of

_SERVED: dict[Side, str] = {"images": "image", "captions": "text"}  # columns of the vector file
_TEXTS_AT_ONCE = 4096  # sorted by length inside `Clip`, so that little is padding
_LATENCY_BATCHES = (1, 32)
_WARM_UP_CALLS, _FEWEST_CALLS, _MOST_CALLS = 2, 5, 200
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
class ModelVectors:
    """A model and its unit vectors of a split."""

    label: str
    clip: Clip
    vectors: dict[Side, Floats]  # each (N, D); `requests` (R, D), `queries` (Q, D)
    served: int = 0  # products whose vectors are those that `embed` wrote


def encode_model(
    name: str, split: Split, requests: Sequence[AttributeQuery], *, label: str, config: Config
) -> ModelVectors:
    """Vectors of every product and request: those that `embed` wrote, else from the cache, else encoded."""
    clip = load_clip(name, config.model, runs=config.paths.runs)
    split.dataset.place.manifest.require_side(clip.image_px, model=clip.name)
    files = [config.paths.vectors, *sorted(config.paths.embeddings.glob("*.parquet"))]
    is_served, served = StoredVectors(files, clip.fingerprint).look_up(split.seen)
    left = np.flatnonzero(~is_served).tolist()
    texts = [*(split.captions[row] for row in left), *(request.text for request in requests), *split.queries]
    owners = [(row, view) for row in left for view in range(len(split.image_keys[row]))]

    def encode_texts(positions: list[int]) -> Floats:
        return clip.encode_texts([texts[position] for position in positions])

    text_keys = [content_hash(text) for text in texts]
    described = _cached("text", clip, text_keys, encode_texts, chunk_size=_TEXTS_AT_ONCE, config=config)
    with console.progress(f"{label}: images", total=len(owners)) as meter:

        def encode_images(positions: list[int]) -> Floats:
            chosen = [owners[position] for position in positions]
            vectors = clip.encode_images([split.images(row)[view] for row, view in chosen])
            meter.advance(len(positions))
            return vectors

        chunk_size, keys = config.eval.batch_size, [split.image_keys[row][view] for row, view in owners]
        views = _cached("image", clip, keys, encode_images, chunk_size=chunk_size, config=config)
    captions, asked, queries = np.split(described, np.cumsum([len(left), len(requests)]))
    counts = np.array([len(split.image_keys[row]) for row in left], dtype=np.int64)
    new: dict[Side, Floats] = {"images": unit_mean(views, counts), "captions": captions}
    vectors: dict[Side, Floats] = {"requests": asked, "queries": queries}
    for side, column in _SERVED.items():
        vectors[side] = np.empty((len(split), clip.dimension), dtype=np.float32)
        vectors[side][left] = new[side]
        if is_served.any():
            vectors[side][is_served] = matrix_of(served[column])[0]
    return ModelVectors(label, clip, vectors, served=int(is_served.sum()))


def _cached(
    kind: str, clip: Clip, keys: Sequence[str], encode: Encode, *, chunk_size: int, config: Config
) -> Floats:
    """Vectors in the order of the keys; those that are not in the cache yet are encoded and kept."""

    def encode_finite(positions: list[int]) -> Floats:
        vectors = encode(positions)
        if not np.isfinite(vectors).all():
            raise ModelError(
                f"the model `{clip.name}` gives vectors of {kind}s that are not finite",
                hint='try `precision = "fp32"` in the [model] section, or train again',
            )
        return vectors

    folder = config.paths.features
    store = FeatureStore(folder, clip.fingerprint, f"{kind}-vectors", clip.precision.precision)
    contents = feature_keys(keys)
    store.fill(contents, encode_finite, chunk_size=chunk_size)
    return store.rows(contents) if keys else np.empty((0, clip.dimension), dtype=np.float32)


def measure_latency(models: Sequence[ModelVectors], split: Split, *, seconds: float) -> dict[str, Any]:
    """Milliseconds by label, for texts, images, and a search; `seconds`: for each figure, 0: no figures."""
    figures: dict[str, dict[str, Any]] = {model.label: {} for model in models}
    if seconds <= 0:
        return figures
    for size in _LATENCY_BATCHES:
        rows = [index % len(split) for index in range(size)]
        captions, images = [split.captions[row] for row in rows], [split.image(row) for row in rows]
        work = {
            "texts": {model.label: partial(model.clip.encode_texts, captions) for model in models},
            "images": {model.label: partial(model.clip.encode_images, images) for model in models},
        }
        for name, calls in work.items():
            for label, times in _time_in_turn(calls, seconds).items():
                figures[label].setdefault(name, {})[str(size)] = times
    searches = {model.label: partial(_search, model, split.captions[0]) for model in models}
    for label, times in _time_in_turn(searches, seconds).items():
        figures[label]["search"] = times
    return figures


def _search(model: ModelVectors, caption: str) -> object:
    return top_k(model.clip.encode_texts([caption]), model.vectors["images"], 10)


def _time_in_turn(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Any]:
    """p50 and p95 of repeated calls, in milliseconds, and how many were timed, by label."""
    for call in [*calls.values()] * _WARM_UP_CALLS:
        call()
    times_ms: dict[str, list[float]] = {label: [] for label in calls}
    stop = time.perf_counter() + seconds * len(calls)
    for turn in range(_MOST_CALLS):
        if turn >= _FEWEST_CALLS and time.perf_counter() >= stop:
            break
        for label, call in calls.items():
            start = time.perf_counter()
            call()
            times_ms[label].append((time.perf_counter() - start) * 1000)
    figures = {}
    for label, taken in times_ms.items():
        p50, p95 = np.percentile(taken, [50, 95])
        figures[label] = {"p50_ms": float(p50), "p95_ms": float(p95), "calls": len(taken)}
    return figures


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
    """Text to image of each model for the queries of one type, material, color or style; whole gallery."""
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
