"""Checkpoints: the training weights, the optimiser's memory and the position; nothing pickled.

Out: `work/runs/NAME/checkpoints/last/` and `best/`, each `state.safetensors` and `position.json`,
replaced whole. Data order, captions, pictures and dropout are functions of the seed and the position,
so a run that goes on from here repeats the uninterrupted one bit for bit (on a CPU in float32).
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

from furnclip.errors import ModelError
from furnclip.journal import open_regular, read_json, replacing_folder, write_json
from furnclip.model.memory import is_out_of_memory

_STATE, _POSITION = "state.safetensors", "position.json"
_MEMORIES = ("exp_avg", "exp_avg_sq", "step")
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
    optimiser: torch.optim.Optimizer | None,
) -> None:
    """Replace `folder` by the present state; without an optimiser the weights alone."""
    tensors = {f"weight/{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items() if optimiser else ():
        assert optimiser is not None
        memory = optimiser.state.get(parameter, {})
        tensors.update({f"{key}/{name}": memory[key] for key in _MEMORIES if key in memory})
    with replacing_folder(folder) as aside:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, aside / _STATE)
        write_json(aside / _POSITION, asdict(position))


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint in `folder`; a damaged one counts, so that it is told."""
    return folder.exists()


def load_checkpoint(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer | None = None
) -> Position:
    """Put the state of `folder` into the parameters (and the optimiser); returns the position."""
    try:
        position = read_json(folder / _POSITION, Position, what="the checkpoint's position", hint=_HINT)
        open_regular(folder / _STATE, what="the checkpoint's weights").close()
        _restore(load_file(folder / _STATE), parameters, optimiser)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"the checkpoint `{folder}` cannot be read ({type(error).__name__})", hint=_HINT
        ) from None
    return position


@torch.no_grad()
def _restore(
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer | None,
) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"weight/{name}"])
        memory = {key: tensors[f"{key}/{name}"] for key in _MEMORIES if f"{key}/{name}" in tensors}
        if optimiser is not None and memory:
            state = {
                key: value if key == "step" else value.to(parameter.device) for key, value in memory.items()
            }
            optimiser.state[parameter] = state
