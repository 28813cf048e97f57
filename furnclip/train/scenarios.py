"""What each scenario trains.

    zero_shot      nothing
    linear_probe   both projections
    dual_lora      LoRA on both encoders, both projections
    vision_lora    LoRA on the vision encoder, both projections; the text encoder stays as it is
    text_lora      LoRA on the text encoder, both projections; the vision encoder stays as it is
    full           every weight

The temperature (and SigLIP's bias) trains wherever anything does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from furnclip.model.adapters import LoraShape, add_lora
from furnclip.model.clip import Clip
from furnclip.model.families import TOWERS, Tower


@dataclass(frozen=True)
class Scenario:
    """Which towers get adapters, and whether anything else trains."""

    name: str
    lora: tuple[Tower, ...] = ()
    projections: bool = True
    everything: bool = False

    @property
    def trains(self) -> bool:
        return self.projections or self.everything

    def is_live(self, tower: Tower) -> bool:
        """Whether the encoder changes, so that it has to run in every step."""
        return self.everything or tower in self.lora


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("zero_shot", projections=False),
        Scenario("linear_probe"),
        Scenario("dual_lora", lora=TOWERS),
        Scenario("vision_lora", lora=("vision",)),
        Scenario("text_lora", lora=("text",)),
        Scenario("full", everything=True),
    )
}
ABLATION = ("zero_shot", "linear_probe", "text_lora", "vision_lora", "dual_lora")


def unfreeze(clip: Clip, scenario: Scenario, shape: LoraShape, *, seed: int) -> dict[str, nn.Parameter]:
    """Prepare the model for the scenario; returns exactly the parameters that train, by name."""
    clip.module.requires_grad_(scenario.everything)
    if scenario.lora:
        add_lora(clip, scenario.lora, shape, seed=seed)
    if scenario.trains:
        for path in clip.family.projections.values():
            clip.module.get_submodule(path).requires_grad_(True)
        for name in clip.family.scalars:
            getattr(clip.module, name).requires_grad_(True)
    return {name: parameter for name, parameter in clip.module.named_parameters() if parameter.requires_grad}
