"""The conductor: models x split -> numbers, examples, `report.json` and `report.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import furnclip
from furnclip import console
from furnclip.catalogue import content_hash
from furnclip.config import Config
from furnclip.errors import InputError, UsageError
from furnclip.evaluate.checks import check_comparison
from furnclip.evaluate.encode import Encoded, encode_model
from furnclip.evaluate.latency import measure_latency
from furnclip.evaluate.measure import Answers, answer, compare, slice_by_attribute, summarise
from furnclip.evaluate.report import render
from furnclip.evaluate.showcase import Asked, Part, choose
from furnclip.evaluate.split import Split, read_split
from furnclip.evaluate.tasks import Task, build_requests, build_tasks
from furnclip.journal import read_json, write_json, write_text
from furnclip.metrics.retrieval import chance_recall_at_k, recall_at_k
from furnclip.model import latest_run
from furnclip.relevance import AttributeQuery

_FORMAT = "1"  # raise it when the meaning of a number changes, so that old reports are made again
_CURVE = range(1, 51)


@dataclass(frozen=True)
class Evaluation:
    """A finished report, where it lies, and whether it was there already."""

    report: dict[str, Any]
    json_path: Path
    html_path: Path
    was_there: bool


@dataclass(frozen=True)
class _Measured:
    """Everything known once the models have answered; what the report is made of."""

    split: Split
    requests: Sequence[AttributeQuery]
    tasks: Sequence[Task]
    models: Sequence[Encoded]
    answers: dict[str, dict[str, Answers]]  # task -> label -> answers
    latency: dict[str, dict[str, Any]]  # label -> figures


def evaluate(config: Config, run_names: Sequence[str] = (), *, force: bool = False) -> Evaluation:
    """Measure the base model and the runs on one split, and write the report.

    `run_names`: finished runs under `paths.runs`; none takes the latest, or the base alone where
    there is none. The report is kept when models, data and settings are the same; `force` makes it
    again. Raises `MissingStageError` without shards, `ModelError` for a run that cannot be used.
    """
    split = read_split(config)
    requests = build_requests(split, seed=config.eval.seed)
    names = _labels(run_names or _latest(config), config)
    models = [
        encode_model(name, split, requests, label=label, config=config) for label, name in names.items()
    ]
    warnings = check_comparison(models, split, config)
    for warning in warnings:
        console.warn(warning)
    identity = _identity(models, split, config, warnings)
    json_path, html_path = config.paths.eval / "report.json", config.paths.eval / "report.html"
    earlier = _read_report(json_path)
    if not force and earlier.get("identity") == identity and html_path.is_file():
        return Evaluation(earlier, json_path, html_path, was_there=True)
    measured = _measure(split, requests, models, latency_s=config.eval.latency_s)
    report = {"identity": identity, "warnings": warnings, **_numbers(measured, config)}
    report["content_hash"] = _hash_of(report)
    write_text(html_path, render(report, _parts(measured, config), split))
    write_json(json_path, report)
    return Evaluation(report, json_path, html_path, was_there=False)


def _latest(config: Config) -> list[str]:
    run = latest_run(config.paths.runs)
    if run is None:
        console.note(f"no finished run under `{config.paths.runs}`: measuring the base model alone")
    return [run] if run else []


def _labels(run_names: Sequence[str], config: Config) -> dict[str, str]:
    """Label in the report -> model name. One run is `finetuned`; several go by their names."""
    runs = list(dict.fromkeys(run_names))
    missing = [name for name in runs if not (config.paths.runs / name).is_dir()]
    if missing:
        known = sorted(path.name for path in config.paths.runs.glob("*") if path.is_dir())
        raise UsageError(
            f"there is no run `{missing[0]}` under `{config.paths.runs}`",
            hint=f"known here: {', '.join(known)}" if known else "run `furnclip train` first",
        )
    labels = {"finetuned": runs[0]} if len(runs) == 1 else {name: name for name in runs}
    if "base" in labels:
        raise UsageError(
            "a run called `base` clashes with the base model's label",
            hint="rename its folder, or evaluate it alone",
        )
    return {"base": config.model.name, **labels}


def _identity(models: Sequence[Encoded], split: Split, config: Config, warnings: Sequence[str]) -> str:
    of_models = [
        part for model in models for part in (model.label, model.name, model.fingerprint, model.precision)
    ]
    return content_hash(
        _FORMAT, furnclip.__version__, split.data_hash, config.eval.model_dump_json(), *of_models, *warnings
    )


def _read_report(path: Path) -> dict[str, Any]:
    """The report that is there, or an empty dict: one that was changed or cannot be read is made again."""
    try:
        report = read_json(path, dict[str, Any], what="the report", hint="it is made again")
    except FileNotFoundError:
        return {}
    except InputError as error:
        console.warn(f"{error.message}; it is made again")
        return {}
    if report.get("content_hash") == _hash_of(report):
        return report
    console.warn(f"the report `{path}` was changed by hand; it is made again")
    return {}


def _hash_of(report: Mapping[str, Any]) -> str:
    """A hash of everything that the report says."""
    numbers = {name: value for name, value in report.items() if name != "content_hash"}
    return content_hash(json.dumps(numbers, sort_keys=True))


def _measure(
    split: Split, requests: Sequence[AttributeQuery], models: Sequence[Encoded], *, latency_s: float
) -> _Measured:
    tasks = build_tasks(split, requests)
    answers: dict[str, dict[str, Answers]] = {}
    with console.progress("ranking", total=len(tasks) * len(models)) as meter:
        for task in tasks:
            answers[task.name] = {}
            for model in models:
                answers[task.name][model.label] = answer(task, model)
                meter.advance()
    timed = {model.label: (model.clip, model.vectors["images"]) for model in models}
    latency = measure_latency(timed, split, seconds=latency_s)
    return _Measured(split, requests, tasks, models, answers, latency)


def _numbers(measured: _Measured, config: Config) -> dict[str, Any]:
    split = measured.split
    first_task = measured.tasks[0]
    return {
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "furnclip": furnclip.__version__,
        "split": split.name,
        "data_hash": split.data_hash,
        "gallery_size": len(split),
        "queries": len(first_task.rows),
        "groups": len(set(first_task.units)),
        "settings": config.eval.model_dump(),
        "labels": [model.label for model in measured.models],  # JSON objects have no order
        "models": {model.label: _model_numbers(model, measured, config) for model in measured.models},
        "paired": _paired(measured, config),
        "slices": slice_by_attribute(split, first_task, measured.answers[first_task.name], config.eval),
        "not_measured": _not_measured(measured.tasks),
        "curves": {label: _curve(found) for label, found in measured.answers[first_task.name].items()},
        "chance_curve": _chance_curve(first_task, len(split)),
    }


def _model_numbers(model: Encoded, measured: _Measured, config: Config) -> dict[str, Any]:
    tasks = {
        task.name: summarise(task, measured.answers[task.name][model.label], len(measured.split), config.eval)
        for task in measured.tasks
    }
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "precision": model.precision,
        "latency": measured.latency[model.label],
        **tasks,
    }


def _paired(measured: _Measured, config: Config) -> dict[str, Any]:
    """Run -> task -> metric -> test against the base."""
    base, *runs = measured.models
    return {
        run.label: {
            task.name: compare(
                task,
                measured.answers[task.name][base.label],
                measured.answers[task.name][run.label],
                config.eval,
            )
            for task in measured.tasks
        }
        for run in runs
    }


def _not_measured(tasks: Sequence[Task]) -> dict[str, str]:
    reasons = {
        "image_to_image": "no two products of this split share a group",
        "image_to_type": "no two products of this split are known to be of one type",
        "attributes_to_image": "no type is known together with a color, material or style",
    }
    measured = {task.name for task in tasks}
    return {name: reason for name, reason in reasons.items() if name not in measured}


def _curve(answers: Answers) -> list[float]:
    """recall@k for k = 1 .. 50."""
    return [recall_at_k(answers.first_ranks, k) for k in _CURVE]


def _chance_curve(task: Task, gallery_size: int) -> list[float]:
    """The same for a gallery in random order."""
    counts = [len(found) for found in task.relevant]
    return [chance_recall_at_k(counts, gallery_size, k) for k in _CURVE]


def _parts(measured: _Measured, config: Config) -> list[Part]:
    by_name = {task.name: task for task in measured.tasks}

    def asked(name: str, texts: Sequence[str]) -> Asked:
        return Asked(by_name[name], measured.split, measured.models, measured.answers[name], texts)

    products = asked("text_to_image", measured.split.captions)
    requests = None
    if "attributes_to_image" in by_name:
        requests = asked("attributes_to_image", [request.text for request in measured.requests])
    return choose(products, requests, config.eval)
