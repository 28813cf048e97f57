"""All scenarios one after another, and one table to choose by.

Out: a run for each scenario under `work/runs/`, and `work/runs/ablation.json`. Run again, finished
scenarios are not trained again. The figures are of the validation split, which also chose each run's
checkpoint, so they flatter all of them alike; `furnclip eval` compares runs on the test split.
"""

from __future__ import annotations

from typing import Any

from furnclip.config import Config, torchrun_launch
from furnclip.errors import UsageError
from furnclip.journal import write_json
from furnclip.train.run import train
from furnclip.train.scenarios import ABLATION

ABLATION_NAME = "ablation.json"


def train_all(config: Config, *, prefix: str = "", resume: bool = True) -> dict[str, Any]:
    """Train every scenario of the ablation; returns one row for each.

    Raises `UsageError` under torchrun: the scenarios share nothing but this process.
    """
    if torchrun_launch().count > 1:
        raise UsageError(
            "`--scenario all` runs in one process",
            hint="start each scenario with torchrun, or leave torchrun out",
        )
    rows = []
    for scenario in ABLATION:
        one = config.model_copy(update={"train": config.train.model_copy(update={"scenario": scenario})})
        card = train(one, run=f"{prefix}-{scenario}" if prefix else scenario, resume=resume)
        rows.append(ablation_row(card))
    result = {"ablation": rows, "already_done": all(row["already_done"] for row in rows)}
    write_json(config.paths.runs / ABLATION_NAME, result)
    return result


def ablation_row(card: dict[str, Any]) -> dict[str, Any]:
    """What the table says about one run."""
    return {
        "run": card["run"],
        "scenario": card["scenario"],
        "trainable_parameters": card["trainable_parameters"],
        "seconds": card["seconds"],
        "recall@1": card["intervals"]["text_to_image_recall@1"],
        "recall@5": card["intervals"]["text_to_image_recall@5"],
        "latency_ms": card["latency_ms"],
        "share": card["share"],
        "already_done": card["already_done"],
    }
