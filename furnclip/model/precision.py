"""Device and precision of the towers, and packed bfloat16 for encoding on a CPU.

bfloat16 is worth it only where the hardware has it, so `auto` runs one real layer of the tower both ways and
takes it when it is clearly faster; on a busy machine the ratio wobbles, hence the margin.

A plain `nn.Linear` in bfloat16 packs its weight anew and copies its bias for every batch, and the activation
reads and writes everything once more; together a fifth of a ViT-B/32's time on two cores. oneDNN does all of
it in one pass over a packed weight. OpenAI's quick GELU, y * sigmoid(1.702 y), is silu(1.702 y) / 1.702, so
the factor goes into the two layers around it. A packed model can neither be trained, saved nor read back.
"""

from __future__ import annotations

import ctypes
import sys
import timeit
from contextlib import suppress
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from furnclip.config import torchrun_launch
from furnclip.errors import ConfigError
from furnclip.model.clip import Clip
from furnclip.model.towers import QUICK_GELU
from furnclip.runs import PrecisionChoice

_MARGIN = 1.2
_ROWS_TRIED = (16, 400)  # few first: without instructions for bfloat16 all 400 would take half a minute
_DTYPES = (torch.float32, torch.bfloat16)
_NARROW_WIDTH = 256  # below this the overhead of each call decides, not the precision
_ROWS_EXPECTED = 64 * 50  # a batch of images; other sizes work with the same packing


def choose_device(wanted: str) -> torch.device:
    """`auto` is this process's GPU (the first without `torchrun`), else Apple's, else the CPU."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torchrun_launch().local_rank % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        hint = "use `auto`, `cpu`, `cuda`, `cuda:1` or `mps`"
        raise ConfigError(f"`model.device` cannot be `{wanted}`", hint=hint) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        problem = f'there is no CUDA device for `model.device = "{wanted}"`'
        raise ConfigError(problem, hint="use `auto` or `cpu`")
    return device


def choose_precision(wanted: str, module: nn.Module, device: torch.device) -> PrecisionChoice:
    """The precision for this model here; `auto` measures one layer of the vision tower."""
    if wanted != "auto":
        return PrecisionChoice("bf16" if wanted == "bf16" else "fp32", "asked for")
    if device.type == "mps":
        return PrecisionChoice("fp32", "not measured on this device")
    towers: Any = module
    layer = towers.vision_model.encoder.layers[0]
    width = layer.layer_norm1.weight.shape[0]
    if width < _NARROW_WIDTH:
        return PrecisionChoice("fp32", f"a tower of width {width} is too narrow to gain from bf16")
    speedup = 1.0
    for rows in _ROWS_TRIED:
        shape = (rows, width, layer.mlp.fc1.weight.shape[0])
        fp32_s, bf16_s = (_layer_seconds(shape, str(device), dtype) for dtype in _DTYPES)
        speedup = fp32_s / bf16_s
        if speedup < 0.5:
            break
    reason = f"bf16 ran {speedup:.2f} times as fast as fp32"
    return PrecisionChoice("bf16" if speedup >= _MARGIN else "fp32", reason)


@cache
def _layer_seconds(shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> float:
    """How long the two products of an MLP take, forwards and backwards; shape: rows, width, inner width."""
    rows, width, inner_width = shape
    inputs = torch.zeros(rows, width, dtype=dtype, device=device, requires_grad=True)
    mlp = nn.Sequential(nn.Linear(width, inner_width), nn.GELU(), nn.Linear(inner_width, width))
    mlp.requires_grad_(False).to(device=device, dtype=dtype)

    def run() -> None:
        mlp(inputs).sum().backward()
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)

    return min(timeit.repeat(run, number=1, repeat=4))


class PackedLinear(nn.Module):
    """A linear layer, and where asked silu behind it, whose weight lies in oneDNN's own order."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, silu: bool = False) -> None:
        super().__init__()
        operators: Any = torch.ops.mkldnn
        self._run = operators._linear_pointwise
        self._weight = operators._reorder_linear_weight(weight.bfloat16(), _ROWS_EXPECTED)
        self._bias = None if bias is None else bias.bfloat16()
        self._activation = "swish" if silu else "none"

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return cast(Tensor, self._run(inputs, self._weight, self._bias, self._activation, [], ""))


@torch.inference_mode()
def can_pack(clip: Clip) -> bool:
    """Whether this processor, this build of torch and the place of the model allow it.

    The operators are private to torch: one small layer is tried both ways, and where they are gone or work
    otherwise, the plain layers stay.
    """
    if clip.device.type != "cpu":
        return False
    layer, inputs = nn.Linear(32, 16), torch.linspace(-1, 1, 96).view(3, 32).bfloat16()
    try:
        operators: Any = torch.ops.mkldnn
        if not operators._is_mkldnn_bf16_supported():
            return False
        packed = PackedLinear(layer.weight, layer.bias)(inputs)
        return torch.allclose(packed, layer.bfloat16()(inputs), atol=0.05)
    except Exception:  # an operator that is not there, or takes other arguments
        return False


@torch.inference_mode()
def pack(clip: Clip, choice: PrecisionChoice) -> Clip:
    """The towers of `clip`, in float32 until now, in packed bfloat16; returns itself."""
    for module in list(clip.module.modules()):
        mlp: Any = module
        if hasattr(mlp, "fc1") and getattr(mlp.config, "hidden_act", "") == "quick_gelu":
            mlp.fc1 = PackedLinear(mlp.fc1.weight * QUICK_GELU, mlp.fc1.bias * QUICK_GELU, silu=True)
            mlp.activation_fn = nn.Identity()
            mlp.fc2 = PackedLinear(mlp.fc2.weight / QUICK_GELU, mlp.fc2.bias)
    for parent in list(clip.module.modules()):
        for name, child in list(parent.named_children()):
            # Projections stay: `project` asks them for the type of their weight.
            if isinstance(child, nn.Linear) and parent is not clip.module:
                setattr(parent, name, PackedLinear(child.weight, child.bias))
    return clip.place(clip.device, choice)


def release_freed() -> None:
    """Give back what has been freed; where the C library is not glibc it does that by itself.

    glibc keeps freed blocks in its heap, and with small ones between them large requests do not fit in
    there: a process that frees and allocates by turns grows. Asking for the pages again costs little.
    """
    if sys.platform.startswith("linux"):
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
