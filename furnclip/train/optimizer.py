"""Muon for the matrices of a model, AdamW for the rest.

Muon (https://kellerjordan.github.io/posts/muon/) moves a matrix by the orthogonal matrix nearest to its
momentum, so that rare directions learn as fast as common ones. In the few hundred steps of a small catalogue
nothing else tried is worth as much (`docs/train.md`). An update is scaled to the usual size of
AdamW's (https://arxiv.org/abs/2502.16982), so both share one learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

_MOMENTUM = 0.95
_USUAL_SIZE = 0.2  # of an element of AdamW's update, as a share of the learning rate
_QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of the Newton-Schulz iteration
_ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `orthogonal` are stepped by Muon; each of those holds matrices only.

    Its momentum lies where AdamW's is, in `exp_avg`, so a checkpoint has one format.
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
    """Nearly U V' of a matrix U S V': its singular values come out between 0.7 and 1.2, zeros stay.

    In bfloat16 on a GPU, in the matrix's own type elsewhere.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    rows = matrix.t() if is_tall else matrix
    rows = rows.bfloat16() if rows.is_cuda else rows
    rows = rows / rows.norm().clamp(min=1e-7)
    first, third, fifth = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = rows @ rows.t()
        rows = torch.addmm(rows, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), rows, beta=first)
    return rows.t() if is_tall else rows
