"""LoRA adapters by full path, what training changed, and how both get to the disk.

`weight_changes` is what training did to each weight of the plain model, by adapters or directly; `shifted`
adds a share of that to a fresh base (WiSE-FT, https://arxiv.org/abs/2109.01903), which is also how adapters
are merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as PeftLinear
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from furnclip.config import TrainingConfig
from furnclip.errors import ConfigError, nearest
from furnclip.model.clip import Clip
from furnclip.model.towers import Tower, as_tensor

_ADAPTER = "default"


class LeanLora(PeftLinear):
    """PEFT's LoRA layer with a forward pass in the precision of its input.

    PEFT widens the input to the adapter's float32 and narrows the sum again, three more passes over
    the activations for each layer; here the small matrices are narrowed instead and the sum is fused.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged or args or kwargs:
            return as_tensor(super().forward(x, *args, **kwargs))
        down, up = _matrices(self)
        whole = as_tensor(self.get_base_layer()(x))  # (..., V)
        inner = linear(self.lora_dropout[_ADAPTER](x), down.to(x.dtype))  # (..., r)
        rows, scale = whole.flatten(0, -2), self.scaling[_ADAPTER]
        return torch.addmm(rows, inner.flatten(0, -2), up.to(x.dtype).t(), alpha=scale).view(whole.shape)


def add_lora(clip: Clip, towers: Sequence[Tower], config: TrainingConfig) -> list[str]:
    """Put adapters into the encoders of `towers`; returns the full paths of the layers adapted.

    They start as the identity. Everything but the adapters is frozen afterwards.
    """
    paths: list[str] = []
    linear_layers = [name for name, layer in clip.module.named_modules() if isinstance(layer, nn.Linear)]
    for tower in towers:
        layers = [name for name in linear_layers if name.startswith(f"{tower}_model.encoder.")]
        known = sorted({name.rpartition(".")[2] for name in layers})
        for target in config.lora_targets:
            if target not in known:
                close = nearest(target, known)
                hint = f"did you mean `{close}`?" if close else f"there are: {', '.join(known)}"
                problem = f"names `{target}`, but the {tower} tower has no such linear layer"
                raise ConfigError(f"`train.lora_targets` {problem}", hint=hint)
        paths += [name for name in layers if name.rpartition(".")[2] in config.lora_targets]
    lora = _lora_config(config, paths)
    if register := getattr(lora, "_register_custom_module", None):  # private; without it PEFT's own layers
        register({nn.Linear: LeanLora})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        inject_adapter_in_model(lora, clip.module, adapter_name=_ADAPTER)
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


def save_adapter(
    folder: Path, trained: Clip, projections: Mapping[str, Tensor], config: TrainingConfig, *, share: float
) -> None:
    """Write a folder that `PeftModel.from_pretrained(trained.name, folder)` reads.

    The adapters of `trained` are written at `share` of their strength: their second matrix is scaled, so
    their product is too. `projections`: new weights by the plain model's names; they are saved whole. Without
    LoRA layers there is nothing PEFT could load, so they alone go into `projections.safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in projections.items()}
    layers = {path: layer for path, layer in trained.module.named_modules() if isinstance(layer, PeftLinear)}
    if not layers:
        save_file(tensors, folder / "projections.safetensors")
        return
    lora = _lora_config(config, sorted(layers))
    lora.modules_to_save = sorted({name.rpartition(".")[0] for name in projections}) or None
    lora.base_model_name_or_path = trained.name
    lora.inference_mode = True
    lora.save_pretrained(folder)
    for path, layer in layers.items():
        down, up = (matrix.detach().cpu() for matrix in _matrices(layer))
        tensors |= {f"{path}.lora_A.weight": down.clone(), f"{path}.lora_B.weight": up * share}
    named = {f"base_model.model.{name}": value for name, value in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")


def _lora_config(config: TrainingConfig, paths: list[str]) -> Any:
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=paths,
        bias="none",
    )


def _matrices(layer: PeftLinear) -> tuple[Tensor, Tensor]:
    """The two matrices of an adapter: (r, W) and (V, r)."""
    return as_tensor(layer.lora_A[_ADAPTER].weight), as_tensor(layer.lora_B[_ADAPTER].weight)
