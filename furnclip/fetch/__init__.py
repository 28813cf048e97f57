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
from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from furnclip import console
from furnclip.catalogue import Rejection, read_products, write_row
from furnclip.console import redact
from furnclip.errors import InputError
from furnclip.fetch.download import Downloader, Failure, Host
from furnclip.fetch.shelf import Shelf, key_of
from furnclip.journal import Journal, replacing, told_when_full
from furnclip.sources import web_address

if TYPE_CHECKING:
    from furnclip.config import Config

FAILED_NAME = "failed.csv"
_COLUMNS = ("row", "product_id", "address", "reason", "detail")
_KEEPERS = 4  # threads that write images
_WAITING = 4  # downloaders for each request that may be under way, so that a server may keep some waiting


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


@dataclass
class _Run:
    """One run: what is left to do, and what became of it."""

    config: Config
    shelf: Shelf
    summary: FetchSummary
    refresh: bool
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)

    def fetch_all(self) -> None:
        todo = self._todo()
        if todo:
            asyncio.run(self._ask_all(todo))

    def _todo(self) -> dict[str, list[str]]:
        """The addresses to ask, by server."""
        seen: set[int] = set()
        todo: dict[str, list[str]] = defaultdict(list)
        for _, _, address in _named(self.config):
            if (key := key_of(address)) in seen:
                continue
            seen.add(key)
            if self.shelf.find(key) and not self.refresh:
                self.summary.kept += 1
            else:
                todo[address.split("/")[2].lower()].append(address)
        self.summary.addresses = len(seen)
        return todo

    async def _ask_all(self, todo: dict[str, list[str]]) -> None:
        settings, total = self.config.fetch, sum(map(len, todo.values()))
        threads = max(_KEEPERS, self.config.storage.concurrency)
        with (
            console.progress("fetching images", total=total) as meter,
            ThreadPoolExecutor(threads) as keepers,
        ):
            slots, most = asyncio.Semaphore(settings.concurrency), _WAITING * settings.concurrency
            hosts = asyncio.Semaphore(most)

            async def ask_host(addresses: list[str]) -> None:
                host, queue = Host(), iter(addresses)
                count = max(1, min(settings.per_host, len(addresses), most // len(todo)))
                async with hosts:
                    downloaders = [Downloader(host, settings, slots) for _ in range(count)]
                    await _all(self._ask(each, queue, keepers, meter) for each in downloaders)

            await _all(map(ask_host, todo.values()))

    async def _ask(
        self, downloader: Downloader, queue: Iterator[str], keepers: ThreadPoolExecutor, meter: console.Meter
    ) -> None:
        """Take addresses of one server from the queue, which others take from as well, until it is empty."""
        async with downloader:
            for address in queue:
                await self._fetch(downloader, address, keepers)
                meter.advance()

    async def _fetch(self, downloader: Downloader, address: str, keepers: ThreadPoolExecutor) -> None:
        loop, summary, key = asyncio.get_running_loop(), self.summary, key_of(address)
        kept, is_other = self.shelf.find(key), False
        try:
            found = await downloader.get(address, kept.conditions() if kept else {})
        except Failure as failure:
            self.failures[key] = (failure.reason, redact(str(failure)))
            return
        if found:
            is_other = await loop.run_in_executor(keepers, self.shelf.keep, key, address, found)
            summary.fetched_bytes += len(found.content)
        summary.fetched += not kept
        summary.changed += bool(kept) and is_other
        summary.unchanged += bool(kept) and not is_other


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Side by side; the first failure ends the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
