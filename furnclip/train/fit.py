"""The largest micro-batch that fits, and what to do when memory runs out after all.

`largest_micro_batch` tries sizes on a copy of the model that is thrown away: no weight, no optimiser
state and no random number of the run is touched. A GPU is asked by trying; a CPU would start to swap
instead of refusing, so there the bytes of one small graph are counted and scaled up.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from furnclip.model.families import TOWERS, Tower
from furnclip.model.memory import is_out_of_memory
from furnclip.train.encoder import Encoder
from furnclip.train.exact import measured
from furnclip.train.memory import free_bytes, storage_addresses

_SMALLEST = 8
_USED_SHARE = 0.5


def largest_micro_batch(encoder: Encoder, *, limit: int, tokens: int) -> int:
    """A power of two between 8 and `limit` (at least 1); `tokens` is the longest caption expected."""
    live = [tower for tower in TOWERS if encoder.scenario.is_live(tower)]
    if not live or limit <= _SMALLEST:
        return limit
    scratch = replace(encoder, clip=copy.copy(encoder.clip), cache=None)
    scratch.clip.module = copy.deepcopy(encoder.clip.module).train()
    if encoder.device.type == "cuda":
        return _tried(scratch, limit, tokens)
    per_sample = _graph_bytes(scratch, _SMALLEST, tokens) / _SMALLEST
    fitting = int(free_bytes(encoder.device) * _USED_SHARE / per_sample)
    return min(limit, max(1, _power_of_two(fitting)))


def _tried(scratch: Encoder, limit: int, tokens: int) -> int:
    """Double until it does not fit; the last size that did."""
    fitting, size = 1, min(_SMALLEST, limit)
    while size <= limit:
        try:
            _graph_bytes(scratch, size, tokens)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        fitting, size = size, size * 2
    torch.cuda.empty_cache()
    return fitting


def _graph_bytes(scratch: Encoder, size: int, tokens: int) -> int:
    """Bytes that the graphs of a forward and backward pass over blank pictures and long captions hold."""
    side_px = scratch.clip.image_px
    blank = np.zeros((size, side_px, side_px, 3), dtype=np.uint8)
    inputs: dict[Tower, NDArray[np.uint8] | torch.Tensor] = {
        "vision": blank,
        "text": _long_captions(scratch, size, tokens),
    }
    weights, total = storage_addresses(scratch.clip.module), 0
    for tower in TOWERS:
        if scratch.scenario.is_live(tower):
            vectors, graph_bytes = measured(scratch.live(tower, inputs[tower], seed=0), weights)
            torch.autograd.backward(vectors.sum())
            total += graph_bytes
    return total


def _long_captions(scratch: Encoder, size: int, tokens: int) -> torch.Tensor:
    """(size, T) tokens that end at the last place; what comes behind the end would cost nothing."""
    limit = int(scratch.clip.module.config.text_config.max_position_embeddings)
    length = min(tokens, limit) if scratch.clip.family.pads_to_longest else limit
    captions = torch.zeros((size, length), dtype=torch.long)
    captions[:, -1] = scratch.clip.tokenizer.eos_token_id
    return captions


def _power_of_two(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)
