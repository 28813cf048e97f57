"""Which device the towers run on, and in which precision.

bfloat16 is worth it only where the hardware has it (AVX512-BF16 or AMX on CPUs, any recent GPU), so
`auto` runs one real layer of the tower both ways and takes bfloat16 when it is clearly faster.
Known bias: one layer, a second or less; on a busy machine the ratio wobbles, hence the margin.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from torch import nn

from furnclip.config import torchrun_launch
from furnclip.errors import ConfigError
from furnclip.runs import PrecisionChoice

_MARGIN = 1.2
_NARROW_WIDTH = 256  # below this the overhead of each call decides, not the arithmetic


Choice = PrecisionChoice


def choose_device(wanted: str) -> torch.device:
    """`auto` is this process's GPU (the first without `torchrun`), else Apple's, else the CPU."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torchrun_launch().local_rank % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(
            f"`model.device` cannot be `{wanted}`", hint="use `auto`, `cpu`, `cuda`, `cuda:1` or `mps`"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f'there is no CUDA device for `model.device = "{wanted}"`', hint="use `auto` or `cpu`"
        )
    return device


def choose_precision(wanted: str, module: nn.Module, device: torch.device) -> Choice:
    """The precision for this model here; `auto` measures one layer of the vision tower."""
    if wanted != "auto":
        return Choice("bf16" if wanted == "bf16" else "fp32", "asked for")
    if device.type == "mps":
        return Choice("fp32", "not measured on this device")
    towers: Any = module
    layer = towers.vision_model.encoder.layers[0]
    width = layer.layer_norm1.weight.shape[0]
    if width < _NARROW_WIDTH:
        return Choice("fp32", f"a tower of width {width} is too narrow to gain from bf16")
    speedup = _bf16_speedup(width, layer.mlp.fc1.weight.shape[0], str(device))
    faster = speedup >= _MARGIN
    return Choice("bf16" if faster else "fp32", f"bf16 ran {speedup:.2f} times as fast as fp32")


@cache
def _bf16_speedup(width: int, inner_width: int, device: str) -> float:
    """How much faster the two products of an MLP run in bfloat16, forwards and backwards."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        inputs = torch.zeros(400, width, dtype=dtype, device=device, requires_grad=True)
        mlp = nn.Sequential(nn.Linear(width, inner_width), nn.GELU(), nn.Linear(inner_width, width))
        mlp.requires_grad_(False).to(device=device, dtype=dtype)
        seconds[dtype] = min(_seconds(mlp, inputs) for _ in range(4))
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _seconds(mlp: nn.Module, inputs: torch.Tensor) -> float:
    def wait() -> None:
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)

    wait()
    start = time.perf_counter()
    mlp(inputs).sum().backward()
    wait()
    return time.perf_counter() - start
