"""The two contrastive losses, over the whole effective batch, with several positives a row.

`softmax` is CLIP's (https://arxiv.org/abs/2103.00020), `sigmoid` is SigLIP's
(https://arxiv.org/abs/2303.15343). Products that share a caption or a group are each other's
positives: as negatives they would teach the model that a right answer is wrong.

An untrained model's softmax loss is `chance_loss`, ln(batch), with any number of positives.

Letters: B effective batch, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from furnclip.errors import ConfigError
from furnclip.model.families import Family
from furnclip.relevance import positive_mask

LossName = Literal["softmax", "sigmoid"]


def right_answers(*labellings: Sequence[Hashable]) -> Tensor:
    """(B, B) booleans: the positives of a batch, see `relevance.positive_mask`."""
    return torch.from_numpy(positive_mask(*labellings))


def contrastive_loss(
    image_BD: Tensor, text_BD: Tensor, scalars: Mapping[str, Tensor], right_BB: Tensor, *, name: LossName
) -> Tensor:
    """The loss of a batch of unit vectors; `scalars` holds `logit_scale` (a logarithm) and a bias."""
    logits_BB = image_BD @ text_BD.t() * scalars["logit_scale"].exp()
    if name == "sigmoid":
        signs = right_BB.to(logits_BB.dtype) * 2 - 1
        return -logsigmoid(signs * (logits_BB + scalars["logit_bias"])).sum(dim=1).mean()
    share_BB = right_BB / right_BB.sum(dim=1, keepdim=True)  # symmetric mask, so rows serve both ways
    to_text = -(share_BB * log_softmax(logits_BB, dim=1)).sum(dim=1).mean()
    to_image = -(share_BB * log_softmax(logits_BB.t(), dim=1)).sum(dim=1).mean()
    return (to_text + to_image) / 2


def chance_loss(batch_size: int, name: LossName) -> float | None:
    """The softmax loss of a model that knows nothing; the sigmoid loss has no such mark."""
    return math.log(batch_size) if name == "softmax" else None


def checked_loss(wanted: str, family: Family) -> LossName:
    """The loss for this family of base models; another than its own is an error."""
    if wanted in ("auto", family.loss):
        return family.loss
    raise ConfigError(
        f"the {wanted} loss does not fit a {family.name} base, which was trained with {family.loss}",
        hint="leave `train.loss` at `auto`",
    )
