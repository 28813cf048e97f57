"""One process, or one of several that `torchrun --nproc-per-node N -m furnclip train ...` started.

The vectors of all processes are gathered before the loss, so N processes contrast the same effective
batch as one; parameter gradients are summed. Only the first process writes and talks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from furnclip import console
from furnclip.config import torchrun_launch


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def slice_of(self, size: int) -> slice:
        """This process's share of a batch."""
        return self._slices(size)[self.rank]

    def _slices(self, size: int) -> list[slice]:
        bounds = [size * rank // self.count for rank in range(self.count + 1)]
        return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]

    def gather(self, size: int) -> Callable[[Tensor], Tensor]:
        """A function from this process's rows of a batch to all `size` rows, differentiable in its own."""

        def gathered(own: Tensor) -> Tensor:
            if self.count == 1:
                return own
            parts = [own.new_empty(rows.stop - rows.start, own.shape[1]) for rows in self._slices(size)]
            parts[self.rank].copy_(own.detach())
            for rank, part in enumerate(parts):  # gloo gathers equal shapes only; broadcasts take any
                dist.broadcast(part, src=rank)
            return torch.cat([own if rank == self.rank else part for rank, part in enumerate(parts)])

        return gathered

    def sum_gradients(self, parameters: Mapping[str, nn.Parameter], *, replicated: Iterable[str]) -> None:
        """Add up what each process's samples contributed.

        `replicated`: parameters of the loss itself, whose whole gradient every process has already.
        """
        if self.count == 1:
            return
        whole = set(replicated)
        for name, parameter in parameters.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            if name in whole:
                parameter.grad /= self.count

    def wait(self) -> None:
        """Until every process has come here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that the launcher started, connected; just this one without a launcher."""
    launch = torchrun_launch()
    if launch.ignored:
        console.warn(launch.ignored)
    if launch.count == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(launch.rank, launch.count)
    finally:
        dist.destroy_process_group()
