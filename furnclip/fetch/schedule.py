"""Which address is asked next: server by server, so that one that is slow holds up no other.

A server gets `per_host` requests at once at most, and none before the time that it said; what is to be tried
again waits here without holding up the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic


@dataclass
class Host:
    """What is known of one server name while a run asks it."""

    jobs: asyncio.Queue[Job] = field(default_factory=asyncio.Queue)
    free_at: float = 0.0
    """time before which the server wants to be left alone"""
    is_there: bool = False
    """it has answered in this run"""
    silences: int = 0
    """requests that it did not answer"""


@dataclass
class Job:
    """An address to ask, and how often it was asked in vain."""

    address: str
    host: Host
    attempts: int = 0


async def ask_all(
    todo: Mapping[str, Iterable[str]],
    ask: Callable[[Job], Awaitable[float | None]],
    *,
    per_host: int,
    concurrency: int,
) -> None:
    """Ask all addresses, given by server; `ask` says after how many seconds one is tried again, or None.

    What `ask` raises ends it.
    """
    room, asking, answered = asyncio.Semaphore(concurrency), [], []
    for addresses in todo.values():
        host = Host()
        for address in addresses:
            host.jobs.put_nowait(Job(address, host))
        asking += [_ask_host(host, room, ask) for _ in range(min(per_host, host.jobs.qsize()))]
        answered.append(host.jobs.join())
    tasks = [asyncio.ensure_future(each) for each in (asyncio.gather(*answered), *asking)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for task in done:
        task.result()


async def _ask_host(
    host: Host, room: asyncio.Semaphore, ask: Callable[[Job], Awaitable[float | None]]
) -> None:
    """One of the requests that a server gets at once."""
    while True:
        job = await host.jobs.get()
        while (pause_s := host.free_at - monotonic()) > 0:
            await asyncio.sleep(pause_s)
        async with room:
            again_in_s = await ask(job)
        if again_in_s is None:
            host.jobs.task_done()
        else:
            asyncio.get_running_loop().call_later(again_in_s, _again, job)


def _again(job: Job) -> None:
    job.host.jobs.put_nowait(job)
    job.host.jobs.task_done()  # of the time before
