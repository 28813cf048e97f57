"""How much memory there is, how much of it training may use, and the largest micro-batch that fits.

`largest_micro_batch` tries sizes on a copy of the model that is thrown away: no weight, no optimizer
state and no random number of the run is touched. A GPU is asked by trying; a CPU would start to swap
instead of refusing, so there the bytes of one small graph are counted and scaled up.
"""

from __future__ import annotations

import copy
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from furnclip.errors import is_out_of_memory
from furnclip.model.towers import TOWERS, Tower
from furnclip.parallel import free_memory_bytes
from furnclip.train.encoder import Inputs, TowerEncoder
from furnclip.train.exact import measured

_KEPT_SHARE = 0.25
_SMALLEST = 8
_USED_SHARE = 0.5
_ASSUMED_BYTES = 4 * 2**30  # where the system does not tell (Windows)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now on the device; on Linux hosts also within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory_bytes() or _ASSUMED_BYTES


def kept_activations_bytes(wanted_mb: int, device: torch.device) -> int:
    """Budget for graphs that are kept between the two passes; -1 is a quarter of what is free."""
    return int(free_bytes(device) * _KEPT_SHARE) if wanted_mb < 0 else wanted_mb * 2**20


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory that this process has had on the device; None on Windows, which counts otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # the other counter begins at the peak of the process that started this one
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        return int(peak[1]) / 1024 if peak else None
    if sys.platform == "win32":
        return None
    import resource  # Unix only

    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 2**20


def storage_addresses(module: nn.Module) -> frozenset[int]:
    """Where the model's own weights lie."""
    return frozenset(parameter.untyped_storage().data_ptr() for parameter in module.parameters())


def largest_micro_batch(encoder: TowerEncoder, *, limit: int, texts: int, tokens: int) -> int:
    """A power of two between 8 and `limit` (at least 1).

    `texts`: of each product; `tokens`: the longest text expected.
    """
    live = [tower for tower in TOWERS if encoder.scenario.is_live(tower)]
    if not live or limit <= _SMALLEST:
        return limit
    scratch = replace(encoder, clip=copy.copy(encoder.clip), cache=None)
    scratch.clip.module = copy.deepcopy(encoder.clip.module).train()
    if encoder.device.type != "cuda":
        per_sample = _graph_bytes(scratch, live, _SMALLEST, texts, tokens) / _SMALLEST
        fitting = int(free_bytes(encoder.device) * _USED_SHARE / per_sample)
        return min(limit, 1 << max(0, fitting.bit_length() - 1))
    fitting, size = 1, min(_SMALLEST, limit)
    while size <= limit:
        try:
            _graph_bytes(scratch, live, size, texts, tokens)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        fitting, size = size, size * 2
    torch.cuda.empty_cache()
    return fitting


def _graph_bytes(scratch: TowerEncoder, live: list[Tower], size: int, texts: int, tokens: int) -> int:
    """Bytes that the graphs of a forward and backward pass over blank images and long captions hold."""
    clip = scratch.clip
    positions = int(clip.module.config.text_config.max_position_embeddings)
    length = min(tokens, positions) if clip.family.pads_to_longest else positions
    captions = torch.zeros((size * texts, length), dtype=torch.long)
    captions[:, -1] = clip.tokenizer.eos_token_id  # what comes behind the end would cost nothing
    blank = np.zeros((size, clip.image_px, clip.image_px, 3), dtype=np.uint8)
    inputs: dict[Tower, Inputs] = {"vision": blank, "text": captions}
    weights, total = storage_addresses(clip.module), 0
    for tower in live:
        vectors, graph_bytes = measured(scratch.live(tower, inputs[tower], seed=0), weights)
        torch.autograd.backward(vectors.sum())
        total += graph_bytes
    return total
