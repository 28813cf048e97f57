"""What each scenario trains, and how: batch size, learning rate, weight decay.

The temperature (and SigLIP's bias) trains wherever anything does. What a setting leaves open is decided here
and nowhere else in training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from furnclip.config import TrainingConfig
from furnclip.model.adapters import add_lora
from furnclip.model.clip import Clip
from furnclip.model.towers import TOWERS, Tower

_LARGEST_BATCH = 1024
_SMALL_BASE_PARAMETERS = 20_000_000  # adapters save it no time or memory, and gain less (`docs/train.md`)
_FEW_PRODUCTS, _SOME_PRODUCTS = 1_500, 6_000
_FEW_WORDS = 6  # of a caption, "a photo of" among them: on average no more than that says nothing twice
_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.")
# Of Muon.
_MOMENTUM = 0.95
_USUAL_SIZE = 0.2  # of an element of AdamW's update, as a share of the learning rate
_QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of the Newton-Schulz iteration
_ITERATIONS = 5


@dataclass(frozen=True)
class Scenario:
    """Which towers get adapters, and whether anything else trains."""

    lora: tuple[Tower, ...] = ()
    projections: bool = True
    everything: bool = False

    def is_live(self, tower: Tower) -> bool:
        """Whether the encoder changes, so that it has to run in every step."""
        return self.everything or tower in self.lora


SCENARIOS = {
    "zero_shot": Scenario(projections=False),
    "linear_probe": Scenario(),
    "dual_lora": Scenario(lora=TOWERS),
    "vision_lora": Scenario(lora=("vision",)),
    "text_lora": Scenario(lora=("text",)),
    "full": Scenario(everything=True),
}
ABLATION = ("zero_shot", "linear_probe", "text_lora", "vision_lora", "dual_lora")


def unfreeze(clip: Clip, config: TrainingConfig) -> dict[str, nn.Parameter]:
    """Prepare the model for the scenario; returns exactly the parameters that train, by name."""
    scenario = SCENARIOS[config.scenario]
    clip.module.requires_grad_(scenario.everything)
    if scenario.lora:
        add_lora(clip, scenario.lora, config)
    if scenario.projections:
        for path in clip.family.projections.values():
            clip.module.get_submodule(path).requires_grad_(True)
        for name in clip.family.scalars:
            getattr(clip.module, name).requires_grad_(True)
    return {name: parameter for name, parameter in clip.module.named_parameters() if parameter.requires_grad}


def settled(config: TrainingConfig, clip: Clip, captions: Sequence[str]) -> TrainingConfig:
    """The settings with all that they leave open decided, by the catalogue's captions and the base.

    Swept on catalogues of 1,000, 4,000 and 14,000 products (`docs/train.md`), with bases 64 and 320 wide. For
    wider ones rates are extrapolated, not measured: LoRA's as 1 / width (https://arxiv.org/abs/2203.03466), a
    whole tower's as its square.
    """
    width, samples = int(clip.module.config.vision_config.hidden_size), len(captions)
    scenario = config.scenario
    if scenario == "auto":
        size = sum(parameter.numel() for parameter in clip.module.parameters())
        scenario = "full" if size <= _SMALL_BASE_PARAMETERS else "dual_lora"
    rate = min(2e-3, 70 / width**2) if scenario == "full" else min(3e-3, 0.5 / width)
    optimizer = "muon" if scenario == "full" else "adamw"  # adapters gain nothing from Muon
    epochs = 30 if samples <= _FEW_PRODUCTS else 20 if samples <= _SOME_PRODUCTS else 10
    # A frozen text tower reads each caption once; variants of it would cost it more than they gain.
    is_live = SCENARIOS[scenario].is_live("text")
    are_long = sum(len(caption.split()) for caption in captions) > _FEW_WORDS * samples
    dropout = 0.0 if not (is_live and are_long) else 0.25 if samples <= _SOME_PRODUCTS else 0.1
    # a catalogue gains more by steps than by negatives, up to 160 an epoch
    batch_size = min(_LARGEST_BATCH, max(samples // 160, min(128, max(32, samples // 20))))
    return config.model_copy(
        update={
            "scenario": scenario,
            "lr": config.lr or rate,
            "optimizer": optimizer if config.optimizer == "auto" else config.optimizer,
            "epochs": config.epochs or epochs,
            "word_dropout": dropout if config.word_dropout < 0 else config.word_dropout,
            "effective_batch_size": min(config.effective_batch_size or batch_size, samples),
        }
    )


def learning_rate(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Rate of the step (counted from 0): linear warmup, then a cosine down to 0."""
    warmup_steps = round(total_steps * config.warmup_fraction)
    if step < warmup_steps:
        return config.lr * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(parameters: Mapping[str, nn.Parameter], config: TrainingConfig, clip: Clip) -> Muon:
    """The optimizer, one group a parameter, with its `share` of the learning rate."""
    towers = {"vision": clip.module.config.vision_config, "text": clip.module.config.text_config}
    layers = {name: int(tower.num_hidden_layers) for name, tower in towers.items()}
    decay = config.layer_decay if config.scenario == "full" else 1.0
    groups = [
        {
            "params": [parameter],
            "name": name,
            "share": decay ** depth_below_top(name, layers),
            "weight_decay": config.weight_decay if parameter.ndim > 1 else 0.0,
            # a row of an embedding belongs to a token: there is no direction to share between them
            "orthogonal": config.optimizer == "muon" and parameter.ndim == 2 and ".embeddings." not in name,
        }
        for name, parameter in parameters.items()
    ]
    return Muon(groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-6, foreach=False)


def depth_below_top(name: str, layers: Mapping[str, int]) -> int:
    """0 for the projections, then one more a layer, embeddings last; `layers`: of each tower."""
    match = _LAYER.match(name)
    if match:
        return layers[match[1]] - int(match[2])
    tower = name.split("_model.")[0]
    below = ".embeddings." in name or "pre_layrnorm" in name
    return layers[tower] + 1 if below and tower in layers else 0


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `orthogonal` are stepped by Muon; each of those holds matrices only.

    Muon (https://kellerjordan.github.io/posts/muon/) moves a matrix by the orthogonal matrix nearest to its
    momentum. An update is scaled to the usual size of AdamW's (https://arxiv.org/abs/2502.16982): a rate fits
    both. Its momentum lies where AdamW's is, in `exp_avg`, so a checkpoint has one format.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"] if group["orthogonal"] else ():
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["weight_decay"])
                    parameter.grad = None  # spent: AdamW passes over it
        return cast(Any, super().step)(closure)

    def _move(self, matrix: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[matrix]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(matrix)
        momentum, gradient = state["exp_avg"], cast(Tensor, matrix.grad)
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        update = orthogonalized(torch.lerp(gradient, momentum, _MOMENTUM))  # Nesterov
        matrix.mul_(1 - lr * weight_decay)
        matrix.add_(update.to(matrix.dtype), alpha=-lr * _USUAL_SIZE * max(matrix.shape) ** 0.5)


def orthogonalized(matrix: Tensor) -> Tensor:
    """Nearly U V' of a matrix U S V': its singular values come out between 0.7 and 1.2, zeros stay."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    rows = matrix.t() if is_tall else matrix
    rows = rows.bfloat16() if rows.is_cuda else rows
    rows = rows / rows.norm().clamp(min=1e-7)
    first, third, fifth = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = rows @ rows.t()
        rows = torch.addmm(rows, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), rows, beta=first)
    return rows.t() if is_tall else rows
