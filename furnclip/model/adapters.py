"""LoRA adapters by full path, what training changed, and how both get to the disk.

`add_lora` puts PEFT adapters into the towers asked for. `weight_changes` says what training did to
each weight of the plain model, whatever it did it with; `shifted` adds a share of that to a fresh
base (WiSE-FT, https://arxiv.org/abs/2109.01903), which is also how adapters are merged.

Out: `adapter/` (`adapter_config.json` + `adapter_model.safetensors`, what `PeftModel.from_pretrained`
reads; projections travel as `modules_to_save`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as PeftLinear
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from furnclip.errors import ConfigError, nearest
from furnclip.model.clip import Clip
from furnclip.model.families import Tower

_ADAPTER = "default"


@dataclass(frozen=True)
class LoraShape:
    """Rank, scale numerator, dropout in front, and the names of the linear layers that get adapters."""

    r: int
    alpha: int
    dropout: float
    targets: tuple[str, ...]


class LeanLora(PeftLinear):
    """PEFT's LoRA layer with a forward pass in the precision of its input.

    PEFT widens the input to the adapter's float32 and narrows the sum again, three more passes over
    the activations for each layer; here the small matrices are narrowed instead and the sum is fused.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged or args or kwargs:
            return _tensor(super().forward(x, *args, **kwargs))
        down, up = _matrices(self)
        whole = _tensor(self.get_base_layer()(x))  # (..., V)
        inner = linear(self.lora_dropout[_ADAPTER](x), down.to(x.dtype))  # (..., r)
        total = torch.addmm(
            whole.flatten(0, -2), inner.flatten(0, -2), up.to(x.dtype).t(), alpha=self.scaling[_ADAPTER]
        )
        return total.view(whole.shape)


def add_lora(clip: Clip, towers: Sequence[Tower], shape: LoraShape, *, seed: int) -> list[str]:
    """Put adapters into the encoders of `towers`; returns the full paths of the layers adapted.

    They start as the identity. Everything but the adapters is frozen afterwards.
    """
    paths = [path for tower in towers for path in _matching(clip, tower, shape.targets)]
    config = _lora_config(shape, paths)
    if register := getattr(config, "_register_custom_module", None):  # private; without it PEFT's own layers
        register({nn.Linear: LeanLora})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, clip.module, adapter_name=_ADAPTER)
    return paths


def weight_changes(trained: nn.Module, base: nn.Module) -> dict[str, Tensor]:
    """What training added to each weight of the plain model, in float32, by the plain model's names."""
    plain = dict(base.named_parameters())
    changes = {
        name: parameter.detach().cpu().float() - plain[name].detach()
        for name, parameter in trained.named_parameters()
        if parameter.requires_grad and name in plain
    }
    for path, layer in trained.named_modules():
        if isinstance(layer, PeftLinear):
            down, up = (matrix.detach().cpu() for matrix in _matrices(layer))
            changes[f"{path}.weight"] = up @ down * layer.scaling[_ADAPTER]
    return changes


@torch.no_grad()
def shifted(base: Mapping[str, Tensor], changes: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The changed weights at `share` of the way: 0 is the base, 1 is as trained."""
    return {name: base[name] + share * change for name, change in changes.items()}


def lora_state(trained: nn.Module) -> dict[str, Tensor]:
    """The adapter matrices under the names that PEFT gives them in a file."""
    marker = f".{_ADAPTER}.weight"
    return {
        f"base_model.model.{name.removesuffix(marker)}.weight": parameter.detach().cpu().clone()
        for name, parameter in trained.named_parameters()
        if name.endswith(marker) and (".lora_A." in name or ".lora_B." in name)
    }


def save_adapter(
    folder: Path,
    *,
    lora: Mapping[str, Tensor],
    projections: Mapping[str, Tensor],
    shape: LoraShape,
    base: str,
) -> None:
    """Write a folder that `PeftModel.from_pretrained(base, folder)` reads.

    `projections`: new weights by the plain model's names; they are saved whole. Without LoRA layers
    there is nothing PEFT could load, so the projections alone go into `projections.safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not lora:
        save_file(
            {name: value.contiguous() for name, value in projections.items()},
            folder / "projections.safetensors",
        )
        return
    paths = sorted({name.split(".lora_")[0].removeprefix("base_model.model.") for name in lora})
    config = _lora_config(shape, paths)
    config.modules_to_save = sorted({name.rpartition(".")[0] for name in projections}) or None
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(folder)
    whole = {f"base_model.model.{name}": value for name, value in projections.items()}
    tensors = {name: value.contiguous() for name, value in {**lora, **whole}.items()}
    save_file(tensors, folder / "adapter_model.safetensors")


def scaled_lora(lora: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The adapter at `share` of its strength: its second matrix is scaled, so its product is too."""
    return {name: value * share if ".lora_B." in name else value for name, value in lora.items()}


def _lora_config(shape: LoraShape, paths: list[str]) -> Any:
    return LoraConfig(
        r=shape.r, lora_alpha=shape.alpha, lora_dropout=shape.dropout, target_modules=paths, bias="none"
    )


def _matching(clip: Clip, tower: Tower, targets: Sequence[str]) -> list[str]:
    """Full paths of the tower's linear layers called as one of `targets`."""
    prefix = f"{clip.family.tower(tower)}.encoder."
    layers = [
        name
        for name, layer in clip.module.named_modules()
        if name.startswith(prefix) and isinstance(layer, nn.Linear)
    ]
    known = sorted({name.rpartition(".")[2] for name in layers})
    for target in targets:
        if target not in known:
            close = nearest(target, known)
            raise ConfigError(
                f"`train.lora_targets` names `{target}`, but the {tower} tower has no such linear layer",
                hint=f"did you mean `{close}`?" if close else f"there are: {', '.join(known)}",
            )
    return [name for name in layers if name.rpartition(".")[2] in targets]


def _matrices(layer: PeftLinear) -> tuple[Tensor, Tensor]:
    """The two matrices of an adapter: (r, W) and (V, r)."""
    return _tensor(layer.lora_A[_ADAPTER].weight), _tensor(layer.lora_B[_ADAPTER].weight)


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value
