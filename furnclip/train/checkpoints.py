"""Checkpoints: the training weights, the optimizer's state and the position; nothing pickled.

Out: `work/runs/NAME/checkpoints/last/` and `best/`, each `state.safetensors` and `position.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from furnclip.errors import ModelError, is_out_of_memory
from furnclip.journal import open_regular, read_json, replacing_folder, write_json

_STATE, _POSITION = "state.safetensors", "position.json"
_OPTIMIZER_KEYS = ("exp_avg", "exp_avg_sq", "step")
_HINT = "remove that folder, or train under another `--run` name"
_Count = Annotated[int, Field(ge=0)]


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
