"""What a run writes while it trains: checkpoints, `metrics.jsonl`, a progress bar, W&B if asked for.

A checkpoint is `work/runs/NAME/checkpoints/last/` or `best/`: the training weights and the optimizer's state
in `state.safetensors`, the position in `position.json`; nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from configparser import ConfigParser
from configparser import Error as ParserError
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from furnclip import console
from furnclip.config import Config, environment_variables
from furnclip.errors import ConfigError, InputError, ModelError, is_out_of_memory
from furnclip.journal import (
    encode_event,
    open_regular,
    read_journal,
    read_json,
    read_text,
    replacing_folder,
    write_bytes,
    write_json,
)
from furnclip.runs import METRICS_NAME

_STATE, _POSITION = "state.safetensors", "position.json"
_OPTIMIZER_KEYS = ("exp_avg", "exp_avg_sq", "step")
_HINT = "remove that folder, or train under another `--run` name"
_WANDB = "https://api.wandb.ai"
_Count = Annotated[int, Field(ge=0)]
Tracker = Callable[[Mapping[str, Any]], None]


@dataclass
class Position:
    """How far a run has come: the next step to take, and the best validation so far."""

    epoch: _Count = 0
    step_in_epoch: _Count = 0
    step: _Count = 0
    best_score: float | None = None
    best_epoch: _Count = 0
    stale_epochs: _Count = 0
    stopped_early: bool = False
    base_validation: dict[str, float] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    position: Position,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Replace `folder` by the present state; without an optimizer the weights alone."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter, {}) if optimizer else {}
        tensors |= {f"{key}/{name}": state[key] for key in _OPTIMIZER_KEYS if key in state}
        tensors[f"weight/{name}"] = parameter.detach()
    with replacing_folder(folder) as aside:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, aside / _STATE)
        write_json(aside / _POSITION, asdict(position))


@torch.no_grad()
def load_checkpoint(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer | None = None
) -> Position:
    """Put the state of `folder` into the parameters (and the optimizer); returns the position."""
    try:
        position = read_json(folder / _POSITION, Position, what="the checkpoint's position", hint=_HINT)
        open_regular(folder / _STATE, what="the checkpoint's weights").close()
        tensors = load_file(folder / _STATE)
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            state = {key: tensors.get(f"{key}/{name}") for key in _OPTIMIZER_KEYS}
            if optimizer is not None:
                optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in state.items()
                    if value is not None
                }
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"the checkpoint `{folder}` cannot be read ({type(error).__name__})", hint=_HINT
        ) from None
    return position


class WandbTracker:
    """Weights & Biases. The id is the run's own, so a resumed run keeps its page and no other run gets it."""

    def __init__(self, config: Config, run: Path, tracker_id: str) -> None:
        import wandb  # an extra, and slow to load

        _check_settings_of_folder(Path.cwd() / "wandb" / "settings")
        self._run = wandb.init(
            project=config.train.wandb_project,
            name=run.name,
            id=tracker_id,
            dir=str(run),
            mode="online" if config.train.wandb == "online" else "offline",
            resume="allow",
            config=json.loads(config.train.model_dump_json()),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, event: Mapping[str, Any]) -> None:
        """The numbers of an event under `EVENT/NAME`, nested ones under `EVENT/GROUP/NAME`."""
        figures: dict[str, Any] = {}
        for name, value in event.items():
            nested = isinstance(value, Mapping)
            figures |= {f"{name}/{inner}": each for inner, each in value.items()} if nested else {name: value}
        step, kind = figures.pop("step"), figures.pop("event")
        numbers = {f"{kind}/{name}": value for name, value in figures.items() if value is not None}
        self._run.log(numbers, step=step)

    def log_model(self, folder: Path) -> None:
        """Keep the merged model as an artifact."""
        self._run.log_artifact(str(folder), name=f"{self._run.name}-model", type="model")

    def close(self) -> None:
        self._run.finish()


def _check_settings_of_folder(path: Path) -> None:
    """W&B sends its key to the address in this file of the current folder, whoever wrote it.

    Raises `ConfigError` for anything but what `wandb init` writes for W&B's own service.
    """
    parser = ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(read_text(path, what="W&B's settings", hint="move it away"))
        found = {name: value for section in parser.sections() for name, value in parser[section].items()}
    except FileNotFoundError:
        return
    except ParserError as error:
        raise ConfigError(f"`{path}` cannot be read: {error.message}", hint="move it away") from None
    harmless = {"entity": found.get("entity"), "project": found.get("project"), "base_url": _WANDB}
    if "WANDB_BASE_URL" in environment_variables():  # it overrules the file
        harmless["base_url"] = found.get("base_url")
    for name, value in found.items():
        if harmless.get(name) != value:
            raise ConfigError(
                f"`{path}` sets `{name}`, which could send your W&B key to another server",
                hint="move the file away; for a server of your own set WANDB_BASE_URL in your shell",
            )


def forget_after(run: Path, step: int) -> None:
    """Drop events of steps that the checkpoint does not know of; they will happen again."""
    path, kept = run / METRICS_NAME, []
    for event in read_journal(path):
        if not isinstance(event.get("step"), int):
            raise InputError(
                f"`{path}` has an event without its `step`",
                hint="restore the file from a backup, or start the run over with `--no-resume`",
            )
        if event["step"] <= step:
            kept.append(encode_event(event))
    if path.exists():
        write_bytes(path, b"".join(kept))


def progress_tracker(meter: console.Meter, *, epochs: int, total_steps: int) -> Tracker:
    """A tracker that moves a progress bar, with the latest figures beside it."""

    def show(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            chance = f" (chance {event['chance']:.2f})" if event["chance"] else ""
            figures = f"epoch {event['epoch'] + 1}/{epochs}, loss {event['loss']:.3f}{chance}"
        else:
            figures = f"validation recall@1 {event['text_to_image_recall@1']:.3f}"
        meter.show(event["step"], total_steps, figures)

    return show
