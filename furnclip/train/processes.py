"""One process, or one of several that `torchrun --nproc-per-node N -m furnclip train ...` started; signals.

The vectors of all processes are gathered before the loss, so N processes contrast the same effective batch as
one; parameter gradients are summed. Signals wait while weights and position change together.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
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

    def slice_of(self, size: int, rank: int | None = None) -> slice:
        """The share of a batch that this process has, or the one of that rank."""
        rank = self.rank if rank is None else rank
        return slice(size * rank // self.count, size * (rank + 1) // self.count)

    def gather(self, size: int) -> Callable[[Tensor], Tensor]:
        """A function from this process's rows of a batch to all `size` rows, differentiable in its own."""

        def gathered(own: Tensor) -> Tensor:
            if self.count == 1:
                return own
            parts = []
            for rank in range(self.count):  # gloo gathers equal shapes only; broadcasts take any
                rows = self.slice_of(size, rank)
                part = own.new_empty(rows.stop - rows.start, *own.shape[1:])
                if rank == self.rank:
                    part.copy_(own.detach())
                dist.broadcast(part, src=rank)
                parts.append(own if rank == self.rank else part)
            return torch.cat(parts)

        return gathered

    def sum_gradients(self, parameters: Mapping[str, nn.Parameter], *, replicated: Collection[str]) -> None:
        """Add up what the processes' samples gave; of `replicated` ones each has the whole gradient."""
        if self.count == 1:
            return
        for name, parameter in parameters.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            if name in replicated:
                parameter.grad /= self.count

    def wait(self) -> None:
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


@contextmanager
def signals_held() -> Iterator[None]:
    """Within the block SIGINT, SIGTERM and SIGHUP wait until its end; ignored ones stay ignored."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before, waiting = {number: signal.getsignal(number) for number in numbers}, list[int]()
    is_main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    held = {number: old for number, old in before.items() if is_main and old is not signal.SIG_IGN}
    try:
        for number in held:
            signal.signal(number, lambda number, frame: waiting.append(number))
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    for number in waiting[:1]:
        signal.raise_signal(number)
