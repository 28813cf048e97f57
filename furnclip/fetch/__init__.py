"""`furnclip fetch`: the images that a catalogue names by web address, brought once into `paths.images`.

In: the addresses in the image cells of `paths.products`. Out: the images (see `shelf`), the journal of what
came from where, and `work/fetch/failed.csv` with a reason for each that did not come.

An address is asked once, however many products name it. Addresses are worked on server by server, so that
one that is slow or wants to be left alone holds up no other. What an earlier run kept is not asked again;
what failed is. `refresh` asks for all of them again, and gets those that have changed.

Proxies of the environment are not used: a proxy would resolve the names itself, and reach what `guard`
keeps this machine from reaching.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from furnclip import console
from furnclip.catalogue import Rejection, read_products, write_row
from furnclip.console import redact
from furnclip.errors import InputError
from furnclip.fetch.download import NO_ANSWER, Downloader, Failure
from furnclip.fetch.shelf import Shelf, key_of
from furnclip.journal import Journal, replacing
from furnclip.sources import web_address

if TYPE_CHECKING:
    from furnclip.config import Config

FAILED_NAME = "failed.csv"
_COLUMNS = ("row", "product_id", "address", "reason", "detail")
_FIRST_PAUSE_S = 0.5
_MOST_PAUSE_S = 60.0  # a server that asks for more is left for the next run
_WRITERS = 4  # threads, where a write takes longer than this, as the mean of the first ones at least:
_SLOW_WRITE_S, _FIRST_WRITES = 0.001, 8
_SILENCES = 4  # requests for each of those that go on at once, after which a server is not there


@dataclass
class FetchSummary:
    """What a run did, counted in different addresses."""

    images: str
    failed_csv: str
    addresses: int = 0
    """in the catalogue"""
    kept: int = 0
    """of them, from earlier runs"""
    fetched: int = 0
    changed: int = 0
    """fetched again, because they are other images now"""
    unchanged: int = 0
    """asked for again, and still the same"""
    fetched_bytes: int = 0
    failed: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(vars(self))


class _Named(NamedTuple):
    """An address, and the product that names it."""

    row: int
    product_id: str
    address: str


@dataclass
class _Host:
    """What is known of one server name while a run asks it."""

    jobs: asyncio.Queue[_Job] = field(default_factory=asyncio.Queue)
    free_at: float = 0.0
    """time before which the server wants to be left alone"""
    is_there: bool = False
    """it has answered in this run"""
    silences: int = 0
    """requests that it did not answer"""


@dataclass
class _Job:
    """An address to ask, and how often it was asked in vain."""

    address: str
    host: _Host
    attempts: int = 0


def fetch(config: Config, *, refresh: bool = False) -> FetchSummary:
    """Bring the images of all addresses that the catalogue has.

    Raises `InputError` where no row names an image at all, and where nothing can be had of any address.
    """
    paths = config.paths
    failed = paths.fetched.with_name(FAILED_NAME)
    summary = FetchSummary(str(paths.images), str(failed))
    with Journal(paths.fetched) as journal:
        with closing(Shelf(config, journal)) as shelf:
            run = _Run(config, shelf, summary, refresh=refresh)
            run.fetch_all()
        summary.failed = dict(Counter(reason for reason, _ in run.failures.values()).most_common())
        with replacing(failed) as file:
            write_row(file, _COLUMNS)
            for row, product_id, address in _named(config):
                if problem := run.failures.get(key_of(address)):
                    write_row(file, (row, product_id, redact(address), *problem))
    if not summary.addresses and not any(_has_images(config)):
        raise InputError(
            f"no row of `{paths.products}` names an image",
            hint="set `paths.image_column` to the column with the addresses of images",
        )
    if summary.addresses and sum(summary.failed.values()) == summary.addresses:
        counts = ", ".join(f"{count} {reason}" for reason, count in summary.failed.items())
        hint = f"`{failed}` has the reason of each; the same command tries them again"
        raise InputError(f"not one of {summary.addresses} images could be fetched ({counts})", hint=hint)
    return summary


def _named(config: Config) -> Iterator[_Named]:
    """Every address of every usable row, in file order."""
    for product in read_products(config.paths.products, config.paths):
        if not isinstance(product, Rejection):
            for address in filter(None, map(web_address, product.images)):
                yield _Named(product.row, product.product_id, address)


def _has_images(config: Config) -> Iterator[bool]:
    rows = read_products(config.paths.products, config.paths)
    return (bool(row.images) for row in rows if not isinstance(row, Rejection))


class _Run:
    """One run: what is left to do, and what became of it."""

    def __init__(self, config: Config, shelf: Shelf, summary: FetchSummary, *, refresh: bool) -> None:
        self._config, self._shelf, self._summary, self._refresh = config, shelf, summary, refresh
        self.failures: dict[int, tuple[str, str]] = {}
        self._error: list[BaseException] = []
        self._writing_s, self._written = 0.0, 0

    def fetch_all(self) -> None:
        todo = self._todo()
        with console.progress("fetching images", total=sum(map(len, todo.values()))) as meter:
            # Ctrl-C ends the main thread alone: nothing of libcurl's is interrupted half done.
            thread = Thread(target=self._work, args=(todo, meter), daemon=True)
            thread.start()
            thread.join()
        if self._error:
            raise self._error[0]

    def _todo(self) -> dict[str, list[str]]:
        """The addresses to ask, by server."""
        seen: set[int] = set()
        todo: dict[str, list[str]] = defaultdict(list)
        for _, _, address in _named(self._config):
            if (key := key_of(address)) in seen:
                continue
            seen.add(key)
            if self._shelf.find(key) and not self._refresh:
                self._summary.kept += 1
            else:
                todo[address.split("/")[2].lower()].append(address)
        self._summary.addresses = len(seen)
        return todo

    def _work(self, todo: dict[str, list[str]], meter: console.Meter) -> None:
        """What the thread does."""
        loop = asyncio.SelectorEventLoop()  # libcurl wants this one, on Windows as well
        try:
            loop.run_until_complete(self._ask_all(todo, meter))
        except BaseException as error:  # the disk is full, the bucket refuses
            self._error.append(error)
        finally:
            loop.close()

    async def _ask_all(self, todo: dict[str, list[str]], meter: console.Meter) -> None:
        settings = self._config.fetch
        downloader = Downloader(settings)

        async def ask(job: _Job) -> float | None:
            again_in_s = await self._fetch(downloader, job, writers)
            if again_in_s is None:
                meter.advance()
            return again_in_s

        with ThreadPoolExecutor(_WRITERS) as writers:
            try:
                await _ask_all(todo, ask, per_host=settings.per_host, concurrency=settings.concurrency)
            finally:
                await downloader.close()

    async def _fetch(self, downloader: Downloader, job: _Job, writers: Executor) -> float | None:
        """Try an address once; the seconds until it is tried again, or None."""
        summary, key = self._summary, key_of(job.address)
        kept, is_other = self._shelf.find(key), False
        try:
            self._give_up_silent(job)
            found = await downloader.get(job.address, kept.conditions() if kept else {})
        except Failure as failure:
            pause_s = self._pause_s(job, failure)
            if pause_s is None:
                self.failures[key] = (failure.reason, redact(str(failure)))
            return pause_s
        job.host.is_there = True
        if found:
            is_other = await self._keep(partial(self._shelf.keep, key, job.address, found), writers)
        summary.fetched_bytes += len(found.content) if found else 0
        summary.fetched += not kept
        summary.changed += bool(kept) and is_other
        summary.unchanged += bool(kept) and not is_other
        return None

    async def _keep(self, keep: Callable[[], bool], writers: Executor) -> bool:
        """Keep an image: here, or in another thread where that takes long.

        At a disk that answers at once, threads wait for the interpreter more than for the disk; at a bucket,
        or on a busy machine, more of them get more done.
        """
        if self._written >= _FIRST_WRITES and self._writing_s / self._written > _SLOW_WRITE_S:
            return await asyncio.get_running_loop().run_in_executor(writers, keep)
        start = monotonic()
        is_other = keep()
        self._writing_s, self._written = self._writing_s + monotonic() - start, self._written + 1
        return is_other

    def _give_up_silent(self, job: _Job) -> None:
        is_silent = not job.host.is_there and job.host.silences >= _SILENCES * self._config.fetch.per_host
        if is_silent and not job.attempts:
            raise Failure("host-down", f"its server did not answer {job.host.silences} requests")

    def _pause_s(self, job: _Job, failure: Failure) -> float | None:
        """Seconds until an address is to be tried again; None when it is not, in this run."""
        job.attempts += 1
        job.host.silences += failure.reason in NO_ANSWER
        job.host.is_there |= failure.reason not in (*NO_ANSWER, "host-down")
        pause_s = failure.pause_s or _FIRST_PAUSE_S * 2**job.attempts * random.uniform(0.5, 1)
        if not failure.is_passing or job.attempts >= self._config.fetch.attempts or pause_s > _MOST_PAUSE_S:
            return None
        if failure.pause_s:  # it was said to all requests
            job.host.free_at = monotonic() + pause_s
        return pause_s


async def _ask_all(
    todo: Mapping[str, Iterable[str]],
    ask: Callable[[_Job], Awaitable[float | None]],
    *,
    per_host: int,
    concurrency: int,
) -> None:
    """Ask all addresses, given by server; `ask` says after how many seconds one is tried again, or None.

    What `ask` raises ends it.
    """
    room, asking, answered = asyncio.Semaphore(concurrency), [], []
    for addresses in todo.values():
        host = _Host()
        for address in addresses:
            host.jobs.put_nowait(_Job(address, host))
        asking += [_ask_host(host, room, ask) for _ in range(min(per_host, host.jobs.qsize()))]
        answered.append(host.jobs.join())
    tasks = [asyncio.ensure_future(each) for each in (asyncio.gather(*answered), *asking)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for task in done:
        task.result()


async def _ask_host(
    host: _Host, room: asyncio.Semaphore, ask: Callable[[_Job], Awaitable[float | None]]
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


def _again(job: _Job) -> None:
    job.host.jobs.put_nowait(job)
    job.host.jobs.task_done()  # of the time before
