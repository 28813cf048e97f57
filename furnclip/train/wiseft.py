"""How far to go from the base to the trained weights, chosen on validation.

WiSE-FT (https://arxiv.org/abs/2109.01903): weights between the base and the trained model often beat
both. Each share of the way is measured; share 0 is the base, so what is kept is never worse than the
base on validation. Known bias: the best of eleven measurements flatters itself on a small split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from furnclip.model.adapters import shifted
from furnclip.train.data import TrainingData
from furnclip.train.encoder import Encoder
from furnclip.train.validation import retrieval_figures

SHARES = tuple(round(share, 1) for share in np.linspace(0, 1, 11).tolist())


@dataclass(frozen=True)
class Sweep:
    """Validation figures at each share, and the share that is kept."""

    figures: dict[float, dict[str, float]]
    best: float


def sweep(
    plain: Encoder,
    changes: Mapping[str, Tensor],
    validation: TrainingData,
    *,
    shares: tuple[float, ...] = SHARES,
) -> Sweep:
    """Measure the plain model at each share of the changes; the model is left as the base.

    Of equal scores the largest share is kept: the data asked for it, the base does not mind.
    """
    parameters = dict(plain.clip.module.named_parameters())
    base = {name: parameters[name].detach().float().cpu().clone() for name in changes}
    figures: dict[float, dict[str, float]] = {}
    for share in shares:
        put_weights(plain, shifted(base, changes, share))
        figures[share] = retrieval_figures(
            plain.vectors("vision", validation), plain.vectors("text", validation), validation
        )
    put_weights(plain, base)
    best = max(figures, key=lambda share: (figures[share]["score"], share))
    return Sweep(figures, best)


@torch.no_grad()
def put_weights(plain: Encoder, weights: Mapping[str, Tensor]) -> None:
    """Write weights into the plain model, in whatever type it has."""
    parameters = dict(plain.clip.module.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)
