"""Which address is asked next: server by server, so that one that is slow holds up no other.

A server is asked by `per_host` threads at most, and by none before the time that it said; what is to be tried
again waits here, not in a thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from threading import Condition
from time import monotonic


@dataclass
class Host:
    """What is known of one server name while a run asks it."""

    jobs: deque[Job] = field(default_factory=deque)
    busy: int = 0
    """requests under way"""
    free_at: float = 0.0
    """time before which the server wants to be left alone"""
    is_there: bool = False
    """it has answered in this run"""
    silences: int = 0
    """requests that it did not answer"""
    is_listed: bool = False


@dataclass
class Job:
    """An address to ask, and how often it was asked in vain."""

    address: str
    host: Host
    attempts: int = 0


class Schedule:
    """Hands out jobs to threads until all are settled."""

    def __init__(self, todo: Mapping[str, Iterable[str]], per_host: int) -> None:
        self._per_host, self._changed, self._numbers = per_host, Condition(), count()
        self._ready: deque[Host] = deque()
        self._later: list[tuple[float, int, Host, Job | None]] = []
        self._open = 0
        for addresses in todo.values():
            host = Host()
            host.jobs.extend(Job(address, host) for address in addresses)
            self._open += len(host.jobs)
            self._list(host)

    def take(self) -> Job | None:
        """The next job, waited for; None when all are settled."""
        with self._changed:
            while self._open > 0:
                now = monotonic()
                while self._later and self._later[0][0] <= now:
                    _, _, host, job = heappop(self._later)
                    if job:
                        host.jobs.appendleft(job)
                    self._list(host)
                if job := self._next(now):
                    return job
                self._changed.wait(self._later[0][0] - now if self._later else None)
            return None

    def settle(self, job: Job, again_in_s: float | None) -> None:
        """A thread has done a job, or wants it done again after some seconds."""
        with self._changed:
            job.host.busy -= 1
            if again_in_s is None:
                self._open -= 1
            else:
                self._wake(monotonic() + again_in_s, job.host, job)
            self._list(job.host)
            if self._open > 0:
                self._changed.notify()
            else:
                self._changed.notify_all()

    def stop(self) -> None:
        """Hand out nothing any more."""
        with self._changed:
            self._open = 0
            self._changed.notify_all()

    def _next(self, now: float) -> Job | None:
        while self._ready:
            host = self._ready.popleft()
            host.is_listed = False
            if host.free_at > now:
                self._wake(host.free_at, host, None)
                continue
            job = host.jobs.popleft()
            host.busy += 1
            self._list(host)
            return job
        return None

    def _wake(self, time: float, host: Host, job: Job | None) -> None:
        heappush(self._later, (time, next(self._numbers), host, job))

    def _list(self, host: Host) -> None:
        if host.jobs and host.busy < self._per_host and not host.is_listed:
            host.is_listed = True
            self._ready.append(host)
