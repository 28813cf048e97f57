"""bfloat16 towers for encoding on a CPU: weights packed once, bias and activation in the product.

A plain `nn.Linear` in bfloat16 packs its weight anew and copies its bias for every batch, and the
activation reads and writes everything once more; together a fifth of a ViT-B/32's time on two cores.
oneDNN does all of it in one pass over a weight that was packed beforehand. OpenAI's quick GELU,
y * sigmoid(1.702 y), is silu(1.702 y) / 1.702, so the factor goes into the two layers around it,
before rounding.

A packed model can only encode: its weights can be neither trained, saved nor read back.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from furnclip.model.clip import Clip
from furnclip.model.precision import Choice

_QUICK_GELU = 1.702
_ROWS_EXPECTED = 64 * 50  # a batch of pictures; other sizes work with the same packing


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


def can_pack(clip: Clip) -> bool:
    """Whether this processor, this build of torch and the place of the model allow it.

    The operators are private to torch: where they are gone or work otherwise, the plain layers stay.
    """
    return clip.device.type == "cpu" and _packing_works()


@torch.inference_mode()
def _packing_works() -> bool:
    """Try one small layer both ways."""
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
def pack(clip: Clip, choice: Choice) -> Clip:
    """The towers of `clip`, in float32 until now, in packed bfloat16; returns itself."""
    for module in list(clip.module.modules()):
        mlp: Any = module
        if hasattr(mlp, "fc1") and getattr(mlp.config, "hidden_act", "") == "quick_gelu":
            mlp.fc1 = PackedLinear(mlp.fc1.weight * _QUICK_GELU, mlp.fc1.bias * _QUICK_GELU, silu=True)
            mlp.activation_fn = nn.Identity()
            mlp.fc2 = PackedLinear(mlp.fc2.weight / _QUICK_GELU, mlp.fc2.bias)
    for parent in list(clip.module.modules()):
        for name, child in list(parent.named_children()):
            # Projections stay: `project` asks them for the type of their weight.
            if isinstance(child, nn.Linear) and parent is not clip.module:
                setattr(parent, name, PackedLinear(child.weight, child.bias))
    return clip.place(clip.device, choice)
