"""`furnclip eval`: did it get better? With intervals, paired tests and images.

In: a split of `work/shards/` and models (the base, runs under `work/runs/`). Out: `work/eval/report.json`
and `work/eval/report.html`. Every query is ranked against the whole gallery of the split; ties count against
the model. The gallery is small next to a shop's whole catalogue: the numbers rank models, and do not predict
what a shopper sees.
"""

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
from furnclip.errors import InputError, ModelMismatchError, UsageError
from furnclip.evaluate.measure import ModelVectors, encode_model, measure, measure_latency, numbers
from furnclip.evaluate.report import choose, comparison_lines, render, summary_table
from furnclip.evaluate.tasks import Split, build_requests, read_split
from furnclip.journal import read_json, write_json, write_text
from furnclip.runs import latest_run, read_card

__all__ = ["Evaluation", "comparison_lines", "evaluate", "summary_table"]

_FORMAT = "3"  # raise it when a number means something else or the page says more: reports are made again
_FEW_PRODUCTS = 30


@dataclass(frozen=True)
class Evaluation:
    """A finished report, its page, and whether it was there already."""

    report: dict[str, Any]
    html_path: Path
    was_there: bool


def evaluate(config: Config, run_names: Sequence[str] = (), *, force: bool = False) -> Evaluation:
    """Measure the base model and the runs on one split, and write the report.

    `run_names`: finished runs under `paths.runs`; none takes the latest, or the base alone where
    there is none. The report is kept when models, data and settings are the same; `force` makes it
    again. Raises `MissingStageError` without shards, `ModelError` for a run that cannot be used.
    """
    split = read_split(config)
    requests = build_requests(split, config.eval)
    names = _labels(run_names, config)
    models = [
        encode_model(name, split, requests, label=label, config=config) for label, name in names.items()
    ]
    warnings = _warnings(models, split, config)
    for warning in warnings:
        console.warn(warning)
    parts = [_FORMAT, furnclip.__version__, split.dataset.data_hash, config.eval.model_dump_json()]
    parts += [request.text for request in requests]
    for model in models:
        clip = model.clip
        parts += [model.label, clip.name, clip.fingerprint, clip.precision.precision, str(model.served)]
    identity = content_hash(*parts, *warnings)
    json_path, html_path = config.paths.eval / "report.json", config.paths.eval / "report.html"
    earlier = _read_report(json_path)
    if not force and earlier.get("identity") == identity and html_path.is_file():
        return Evaluation(earlier, html_path, was_there=True)
    measured = measure(split, requests, models, config.eval)
    latency = measure_latency(models, split, seconds=config.eval.latency_s)
    report = {
        "identity": identity,
        "warnings": warnings,
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "furnclip": furnclip.__version__,
        "served_vectors": {model.label: model.served for model in models},
        **numbers(measured, latency),
    }
    report["content_hash"] = _hash_of(report)
    write_text(html_path, render(report, choose(measured), split))
    write_json(json_path, report)
    return Evaluation(report, html_path, was_there=False)


def _labels(run_names: Sequence[str], config: Config) -> dict[str, str]:
    """Label in the report -> model name. One run is `finetuned`; several go by their names."""
    runs = list(dict.fromkeys(run_names))
    if not runs:
        latest = latest_run(config.paths.runs)
        if latest is None:
            console.note(f"no finished run under `{config.paths.runs}`: measuring the base model alone")
        runs = [latest] if latest else []
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


def _warnings(models: Sequence[ModelVectors], split: Split, config: Config) -> list[str]:
    """What may make the comparison unfair. Raises `ModelMismatchError` for a run from another base."""
    warnings = []
    if len(split) < _FEW_PRODUCTS:
        warnings.append(
            f"the {split.name} split holds {len(split)} products: differences between models mean little"
        )
    base, *runs = (model.clip for model in models)
    data_hash = split.dataset.place.manifest.data_hash
    for run in runs:
        card = read_card(config.paths.runs / run.name)
        if card is None:
            continue
        if card.base.get("fingerprint", base.fingerprint) != base.fingerprint:
            trained_from = card.base.get("name", "another model")
            raise ModelMismatchError(
                f"the run `{run.name}` was trained from `{trained_from}`, not from `{base.name}`",
                hint=f"measure it against its own base with `--model {trained_from}`",
            )
        if (card.data_hash or data_hash) != data_hash:
            warnings.append(
                f"the run `{run.name}` was trained on other shards than these: if the splits were drawn "
                "anew in between, it has seen some of the products it is measured on"
            )
    if split.name != "test":
        warnings.append(f"training chooses its settings on the {split.name} split, so these numbers flatter")
    return warnings


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
