"""What a run's folder holds, and its card.

    work/runs/NAME/run.json        the card; `"status": "finished"` means that all the rest is there
                   metrics.jsonl   one event a step and a validation
                   checkpoints/    `last` and `best`, for resuming
                   adapter/        PEFT, for scenarios with LoRA
                   model/          merged; a plain Hugging Face folder
                   README.md       the model card

Without torch, so that the arena and a text search may read a card.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from furnclip.errors import ModelError
from furnclip.journal import CARD_NAME, read_json, write_json

METRICS_NAME = "metrics.jsonl"
CHECKPOINTS, ADAPTER, MODEL, README = "checkpoints", "adapter", "model", "README.md"
PUBLISHED = (ADAPTER, MODEL, README, METRICS_NAME, CARD_NAME)
"""what goes to the bucket, the card last"""


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision of the towers and why it was taken."""

    precision: Literal["fp32", "bf16"]
    reason: str


@dataclass
class RunCard:
    """`run.json`: what was trained on what, and how good it is.

    `identity`: everything that decides the result. `share`: of the trained change that was kept (WiSE-FT).
    `verdict`: what to try, where nothing was learnt or more epochs may help. `intervals`: [value, low, high].
    """

    run: str = ""
    status: Literal["running", "finished"] = "running"
    scenario: str = ""
    identity: dict[str, Any] = field(default_factory=dict)
    tracker_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    base: dict[str, str] = field(default_factory=dict)  # name, fingerprint
    data_hash: str = ""
    started_at: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    git: str | None = None
    precision: PrecisionChoice | None = None
    samples: dict[str, int] = field(default_factory=dict)  # train, validation
    batch: dict[str, int] = field(default_factory=dict)  # effective, micro
    duplicate_caption_rate: float = 0.0
    trainable_parameters: int = 0
    parameters: int = 0
    seconds: float = 0.0
    finished_at: str = ""
    epochs_done: int = 0
    steps: int = 0
    stopped_early: bool = False
    best_epoch: int = 0
    validation: dict[str, dict[str, float]] = field(default_factory=dict)  # base, finetuned
    share: float = 0.0
    verdict: str = ""
    wise_ft: dict[str, float] = field(default_factory=dict)
    parity: float = 0.0
    model_fingerprint: str = ""
    intervals: dict[str, list[float]] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def tells_result(self) -> bool:
        """Whether it has what a finished run's card is read for: the figures of base and run side by side."""
        base, tuned = self.validation.get("base"), self.validation.get("finetuned")
        return bool(base and tuned and base.keys() == tuned.keys() and "validation" in self.samples)


def read_card(run: Path) -> RunCard | None:
    """The card of a run, or None where there is none yet. Raises `InputError` for a damaged one."""
    hint = f"restore it from a backup, or train again: `furnclip train --run {run.name} --no-resume`"
    try:
        return read_json(run / CARD_NAME, RunCard, what="the run card", hint=hint)
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_card(run: Path, card: RunCard) -> None:
    """Replace `run.json`."""
    write_json(run / CARD_NAME, asdict(card))


def latest_run(runs: Path) -> str | None:
    """The most recently finished run under `runs`, or None."""
    folders = [path for path in runs.iterdir() if path.name[0] != "."] if runs.is_dir() else []
    cards = [(path.name, read_card(path)) for path in folders]
    finished = [(card.finished_at, name) for name, card in cards if card and card.finished]
    return max(finished)[1] if finished else None


def model_folder(run: Path) -> Path:
    """The merged model of a finished run. Raises `ModelError` for one that is not finished."""
    card = read_card(run)
    if card is None or not card.finished:
        raise ModelError(
            f"the run `{run.name}` is not finished",
            hint=f"run `furnclip train --run {run.name}` again; it continues where it stopped",
        )
    return run / MODEL
