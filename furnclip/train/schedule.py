"""The optimiser's groups and its learning rate as a function of the step, with nothing to remember."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import nn

from furnclip.config import TrainingConfig

_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.")


def learning_rate(step: int, *, total_steps: int, peak: float, warmup_fraction: float) -> float:
    """Rate of the step (counted from 0): a straight climb, then a cosine down to 0."""
    warmup_steps = round(total_steps * warmup_fraction)
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimiser(
    parameters: Mapping[str, nn.Parameter], config: TrainingConfig, *, layers: Mapping[str, int]
) -> torch.optim.AdamW:
    """AdamW over the parameters, one group each, with its share of the learning rate.

    `layers`: number of encoder layers of each tower, for the layer-wise decay of `full`.
    """
    decay = config.layer_decay if config.scenario == "full" else 1.0
    groups = [
        {
            "params": [parameter],
            "name": name,
            "share": decay ** depth_below_top(name, layers),
            "weight_decay": config.weight_decay if parameter.ndim > 1 else 0.0,
        }
        for name, parameter in parameters.items()
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-6, foreach=False)


def depth_below_top(name: str, layers: Mapping[str, int]) -> int:
    """0 for the projections and what lies above the encoder, then one more a layer, embeddings last."""
    match = _LAYER.match(name)
    if match:
        return layers[match[1]] - int(match[2])
    tower = name.split("_model.")[0]
    below = ".embeddings." in name or "pre_layrnorm" in name
    return layers[tower] + 1 if below and tower in layers else 0


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["share"]


def group_of(name: str) -> str:
    """The name under which a parameter's gradient is logged."""
    if name.startswith("logit_"):
        return "scalars"
    if "projection" in name or name.endswith("head.weight") or name.endswith("head.bias"):
        return "projections"
    kind = "lora" if ".lora_" in name else "weights"
    return f"{name.split('_model.')[0]}_{kind}"


def gradient_norms(parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Norm of the gradient of each group, and of all together under `all`."""
    squares: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            square = parameter.grad.detach().float().square().sum()
            key = group_of(name)
            squares[key] = squares[key] + square if key in squares else square
    norms = {key: float(value) ** 0.5 for key, value in sorted(squares.items())}
    return {**norms, "all": sum(norm**2 for norm in norms.values()) ** 0.5}
