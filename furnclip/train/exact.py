"""The contrastive loss of a large batch, and its exact gradient on a small machine.

`softmax` is CLIP's loss (https://arxiv.org/abs/2103.00020), `sigmoid` is SigLIP's
(https://arxiv.org/abs/2303.15343), both with several positives a row.

The loss over 1024 samples is not the mean of 16 losses over 64. GradCache (https://arxiv.org/abs/2101.06983)
gets the true one in constant memory: encode all micro-batches without a graph, take the loss and its gradient
with respect to the vectors, then encode each micro-batch again with a graph and push its share of that
gradient through. Micro-batches whose graphs fit into `Memory` keep them; that changes the time, not one bit.

Letters: B effective batch, b micro-batch, F texts of a product, D dimension.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy, logsigmoid

from furnclip.errors import ConfigError
from furnclip.model.precision import release_freed
from furnclip.model.towers import Family, LossName
from furnclip.parallel import free_memory_bytes

_KEPT_SHARE = 0.25
_ASSUMED_BYTES = 4 * 2**30  # where the system does not tell (Windows)
Chunk = Callable[[], Tensor]  # -> images (b, D), texts (b, F, D)
Loss = Callable[[Tensor, Tensor], Tensor]  # images (B, D), texts (B, F, D) -> scalar


def contrastive_loss(
    image_BD: Tensor, text_BD: Tensor, scalars: Mapping[str, Tensor], positive_BB: Tensor, *, name: LossName
) -> Tensor:
    """The loss of a batch of unit vectors; `scalars` holds `logit_scale` (a logarithm) and a bias.

    `positive_BB`: whether the image of a row is right for the text of a column.
    """
    logits_BB = image_BD @ text_BD.t() * scalars["logit_scale"].exp()
    positive_BB = positive_BB.to(logits_BB.dtype)
    if name == "sigmoid":
        signs = positive_BB * 2 - 1
        return -logsigmoid(signs * (logits_BB + scalars["logit_bias"])).sum(dim=1).mean()
    of_image_BB = positive_BB / positive_BB.sum(dim=1, keepdim=True)
    of_text_BB = (positive_BB / positive_BB.sum(dim=0, keepdim=True)).t()
    return (cross_entropy(logits_BB, of_image_BB) + cross_entropy(logits_BB.t(), of_text_BB)) / 2


def distillation_loss(image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor, teacher_BB: Tensor) -> Tensor:
    """How far a batch of unit vectors is from the teacher's logits, an image a row, a text a column.

    The teacher's distributions over the batch, both ways, are the targets: the contrastive relational
    distillation of CLIP-KD (https://arxiv.org/abs/2307.12732).
    """
    logits_BB = image_BD @ text_BD.t() * logit_scale.exp()
    of_image_BB, of_text_BB = teacher_BB.softmax(dim=1), teacher_BB.t().softmax(dim=1)
    return (cross_entropy(logits_BB, of_image_BB) + cross_entropy(logits_BB.t(), of_text_BB)) / 2


def chance_loss(batch_size: int, name: LossName) -> float | None:
    """The softmax loss of an untrained model, with any number of positives; sigmoid has no such mark."""
    return math.log(batch_size) if name == "softmax" else None


def checked_loss(wanted: str, family: Family) -> LossName:
    """The loss for this family of base models; another than its own is an error."""
    if wanted in ("auto", family.loss):
        return family.loss
    raise ConfigError(
        f"the {wanted} loss does not fit a {family.name} base, which was trained with {family.loss}",
        hint="leave `train.loss` at `auto`",
    )


@dataclass(eq=False)
class NonFiniteLossError(ArithmeticError):
    """The loss is not a number; `rows` are the samples of this process whose vectors are not."""

    rows: list[int]


@dataclass
class Memory:
    """Bytes that graphs of micro-batches may occupy between the two passes of a step.

    `weights`: addresses of the model's own storages. `largest_bytes` is remembered from step to step.
    """

    budget_bytes: int = 0
    weights: frozenset[int] = frozenset()
    used_bytes: int = field(default=0, init=False)
    largest_bytes: int = field(default=0, init=False)

    def encode(self, chunk: Chunk) -> Tensor:
        """The chunk's vectors, with their graph where another as large as the largest so far would fit."""
        if self.used_bytes + self.largest_bytes >= self.budget_bytes:
            with torch.no_grad():
                return chunk()
        vectors, graph_bytes = measured(chunk, self.weights)
        self.largest_bytes = max(self.largest_bytes, graph_bytes)
        if self.used_bytes + graph_bytes > self.budget_bytes:
            return vectors.detach()
        self.used_bytes += graph_bytes
        return vectors


def exact_backward(
    images: Sequence[Chunk],
    texts: Sequence[Chunk],
    loss: Loss,
    *,
    memory: Memory | None = None,
    gather: Callable[[Tensor], Tensor] = lambda vectors: vectors,
) -> Tensor:
    """Add the gradient of the loss over all chunks to the parameters; returns the loss.

    `gather` brings the vectors of other processes in, (b, ...) -> (B, ...); only this process's chunks are
    run again, so parameter gradients then have to be summed over the processes.
    """
    memory = memory or Memory()
    memory.used_bytes = 0
    image_leaf, image_graphs = _first_pass(images, memory)
    text_leaf, text_graphs = _first_pass(texts, memory)
    value = loss(gather(image_leaf), gather(text_leaf))
    if not torch.isfinite(value):
        finite = torch.isfinite(image_leaf).all(dim=1) & torch.isfinite(text_leaf.flatten(1)).all(dim=1)
        raise NonFiniteLossError((~finite).nonzero().flatten().tolist())
    torch.autograd.backward(value)
    assert image_leaf.grad is not None
    assert text_leaf.grad is not None
    _second_pass(images, image_graphs, image_leaf.grad)
    _second_pass(texts, text_graphs, text_leaf.grad)
    return value.detach()


def _first_pass(chunks: Sequence[Chunk], memory: Memory) -> tuple[Tensor, list[Tensor | None]]:
    """All vectors as a leaf of the loss, and of each chunk the vectors with their graph, if kept."""
    parts = [chunks[0]()] if len(chunks) == 1 else [memory.encode(chunk) for chunk in chunks]
    leaf = torch.cat([part.detach() for part in parts]).requires_grad_()
    return leaf, [part if part.requires_grad else None for part in parts]


def _second_pass(chunks: Sequence[Chunk], kept: list[Tensor | None], gradient: Tensor) -> None:
    """Through each chunk its slice of the gradient, in order; kept graphs are freed on the way."""
    memory_is_short = all(vectors is None for vectors in kept)
    start = 0
    for index, chunk in enumerate(chunks):
        vectors = kept[index]
        if vectors is None:
            if memory_is_short:
                release_freed()
            vectors = chunk()
        rows = slice(start, start + len(vectors))
        start = rows.stop
        if vectors.requires_grad:
            torch.autograd.backward(vectors, gradient[rows].to(vectors.dtype))
        # A spent graph still lies between the freed blocks and keeps the next one from their room.
        kept[index] = None
        del vectors


def measured(chunk: Chunk, weights: frozenset[int]) -> tuple[Tensor, int]:
    """The chunk's vectors with their graph, and the bytes that the graph holds on to."""
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that holds its own output would never be freed

    with saved_tensors_hooks(count, lambda tensor: tensor):
        vectors = chunk()
    return vectors, sum(size for address, size in storages.items() if address not in weights)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now on the device; on Linux hosts also within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory_bytes() or _ASSUMED_BYTES


def kept_activations_bytes(wanted_mb: int, device: torch.device) -> int:
    """Budget for graphs that are kept between the two passes; -1 is a quarter of what is free."""
    return int(free_bytes(device) * _KEPT_SHARE) if wanted_mb < 0 else wanted_mb * 2**20


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory that this process has had on a GPU, or on Linux in all; None elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    text = status.read_text(encoding="utf-8") if status.is_file() else ""
    peak = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(peak[1]) / 1024 if peak else None


def storage_addresses(module: nn.Module) -> frozenset[int]:
    return frozenset(parameter.untyped_storage().data_ptr() for parameter in module.parameters())
