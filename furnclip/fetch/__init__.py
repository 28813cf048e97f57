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

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from furnclip import console
from furnclip.catalogue import Rejection, read_products, write_row
from furnclip.console import redact
from furnclip.errors import InputError
from furnclip.fetch.download import NO_ANSWER, Downloader, Failure
from furnclip.fetch.schedule import Job, Schedule
from furnclip.fetch.shelf import Shelf, key_of
from furnclip.journal import Journal, replacing, told_when_full
from furnclip.sources import web_address

if TYPE_CHECKING:
    from furnclip.config import Config

FAILED_NAME = "failed.csv"
_COLUMNS = ("row", "product_id", "address", "reason", "detail")
_FIRST_PAUSE_S = 0.5
_MOST_PAUSE_S = 60.0  # a server that asks for more is left for the next run
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


def fetch(config: Config, *, refresh: bool = False) -> FetchSummary:
    """Bring the images of all addresses that the catalogue has.

    Raises `InputError` where no row names an image at all, and where nothing can be had of any address.
    """
    paths = config.paths
    failed = paths.fetched.with_name(FAILED_NAME)
    summary = FetchSummary(str(paths.images), str(failed))
    with Journal(paths.fetched) as journal, told_when_full(Path(paths.images), failed.parent):
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
        self._error: list[Exception] = []
        self._lock = Lock()

    def fetch_all(self) -> None:
        todo, settings = self._todo(), self._config.fetch
        total = sum(map(len, todo.values()))
        schedule = Schedule(todo, settings.per_host)
        with console.progress("fetching images", total=total) as meter:
            work = partial(self._work, schedule, meter)
            # Of Ctrl-C no thread hears that waits for a server; the process ends without them.
            threads = [Thread(target=work, daemon=True) for _ in range(min(total, settings.concurrency))]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            finally:
                schedule.stop()
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

    def _work(self, schedule: Schedule, meter: console.Meter) -> None:
        """What a thread does."""
        try:
            with Downloader(self._config.fetch) as downloader:
                while job := schedule.take():
                    again_in_s = self._fetch(downloader, job)
                    schedule.settle(job, again_in_s)
                    if again_in_s is None:
                        meter.advance()
        except Exception as error:  # the disk is full, the bucket refuses
            self._error.append(error)
            schedule.stop()

    def _fetch(self, downloader: Downloader, job: Job) -> float | None:
        """Try an address once; the seconds until it is tried again, or None."""
        summary, key = self._summary, key_of(job.address)
        kept, is_other = self._shelf.find(key), False
        try:
            self._give_up_silent(job)
            found = downloader.get(job.address, kept.conditions() if kept else {})
        except Failure as failure:
            pause_s = self._pause_s(job, failure)
            if pause_s is None:
                self.failures[key] = (failure.reason, redact(str(failure)))
            return pause_s
        job.host.is_there = True
        if found:
            is_other = self._shelf.keep(key, job.address, found)
        with self._lock:
            summary.fetched_bytes += len(found.content) if found else 0
            summary.fetched += not kept
            summary.changed += bool(kept) and is_other
            summary.unchanged += bool(kept) and not is_other
        return None

    def _give_up_silent(self, job: Job) -> None:
        is_silent = not job.host.is_there and job.host.silences >= _SILENCES * self._config.fetch.per_host
        if is_silent and not job.attempts:
            raise Failure("host-down", f"its server did not answer {job.host.silences} requests")

    def _pause_s(self, job: Job, failure: Failure) -> float | None:
        """Seconds until an address is to be tried again; None when it is not, in this run."""
        job.attempts += 1
        job.host.silences += failure.reason in NO_ANSWER
        job.host.is_there |= failure.reason not in (*NO_ANSWER, "host-down")
        pause_s = failure.pause_s or _FIRST_PAUSE_S * 2**job.attempts * random.uniform(0.5, 1)
        if not failure.is_passing or job.attempts >= self._config.fetch.attempts or pause_s > _MOST_PAUSE_S:
            return None
        if failure.pause_s:  # it was said to all threads
            job.host.free_at = monotonic() + pause_s
        return pause_s
