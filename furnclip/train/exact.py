"""The gradient of a large batch on a small machine, exactly.

A contrastive loss over 1024 samples is not the mean of 16 losses over 64: each sample would meet 63
wrong answers instead of 1023, and the two gradients point in different directions. GradCache
(https://arxiv.org/abs/2101.06983) gets the true one in constant memory: encode all micro-batches
without a graph, take the loss and its gradient with respect to the vectors, then encode each
micro-batch again with a graph and push its share of that gradient through.

Here a micro-batch is a `Chunk`: a function that encodes it, and draws the same dropout each time it
is called. Micro-batches whose graphs fit into `keep_bytes` keep them and are not encoded twice; that
changes the time, not one bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from furnclip.model.memory import release_freed

Chunk = Callable[[], Tensor]  # -> (b, D)
Loss = Callable[[Tensor, Tensor], Tensor]  # (B, D) images, (B, D) texts -> scalar
Gather = Callable[[Tensor], Tensor]  # (b, D) of this process -> (B, D) of all


class NonFiniteLossError(ArithmeticError):
    """The loss is not a number; `rows` are the samples of this process whose vectors are not."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__("non-finite loss")
        self.rows = rows


@dataclass
class Memory:
    """Bytes that graphs of micro-batches may occupy between the two passes of a step.

    `weights`: addresses of the model's own storages, which graphs point to but do not own.
    `largest_bytes` is remembered from step to step, `used_bytes` belongs to one step.
    """

    budget_bytes: int = 0
    weights: frozenset[int] = frozenset()
    used_bytes: int = field(default=0, init=False)
    largest_bytes: int = field(default=0, init=False)

    def fits(self) -> bool:
        """Whether another graph, as large as the largest so far, would fit."""
        return self.used_bytes + self.largest_bytes < self.budget_bytes


def exact_backward(
    images: Sequence[Chunk],
    texts: Sequence[Chunk],
    loss: Loss,
    *,
    memory: Memory | None = None,
    gather: Gather = lambda vectors: vectors,
) -> Tensor:
    """Add the gradient of the loss over all chunks to the parameters; returns the loss.

    `gather` brings the vectors of other processes in; only this process's chunks are run again, so
    parameter gradients then have to be summed over the processes.
    """
    memory = memory or Memory()
    memory.used_bytes = 0
    (image_leaf, image_graphs), (text_leaf, text_graphs) = (
        _first_pass(chunks, memory) for chunks in (images, texts)
    )
    value = loss(gather(image_leaf), gather(text_leaf))
    if not torch.isfinite(value):
        raise NonFiniteLossError(_non_finite_rows([image_leaf, text_leaf]))
    torch.autograd.backward(value)
    assert image_leaf.grad is not None
    assert text_leaf.grad is not None
    _push_back(images, image_graphs, image_leaf.grad)
    _push_back(texts, text_graphs, text_leaf.grad)
    return value.detach()


def _first_pass(chunks: Sequence[Chunk], memory: Memory) -> tuple[Tensor, list[Tensor | None]]:
    """All vectors (b, D) as a leaf of the loss, and of each chunk the vectors with their graph, if kept."""
    parts = [_encode(chunk, only=len(chunks) == 1, memory=memory) for chunk in chunks]
    leaf = torch.cat([part.detach() for part in parts]).requires_grad_()
    return leaf, [part if part.requires_grad else None for part in parts]


def _encode(chunk: Chunk, *, only: bool, memory: Memory) -> Tensor:
    """The chunk's vectors, with their graph if it is the only one or there is room for it."""
    if only:
        return chunk()
    if memory.fits():
        vectors, graph_bytes = measured(chunk, memory.weights)
        if memory.used_bytes + graph_bytes <= memory.budget_bytes:
            memory.used_bytes += graph_bytes
            memory.largest_bytes = max(memory.largest_bytes, graph_bytes)
            return vectors
        memory.largest_bytes = max(memory.largest_bytes, graph_bytes)
        return vectors.detach()
    with torch.no_grad():
        return chunk()


def _push_back(chunks: Sequence[Chunk], kept: list[Tensor | None], gradient: Tensor) -> None:
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


def _non_finite_rows(leaves: list[Tensor]) -> list[int]:
    finite = torch.stack([torch.isfinite(leaf).all(dim=1) for leaf in leaves]).all(dim=0)
    return [int(row) for row in (~finite).nonzero().flatten()]
