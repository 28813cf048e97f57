"""`furnclip fetch`: the images that a catalogue names by web address, brought once into `paths.images`.

In: the addresses in the image cells of `paths.products`. Out: the images, the journal of what came from
where, and `work/fetch/failed.csv` with a reason for each that did not come.

An image lies at `fetched/HA/HASH.jpg` under the hash of its bytes: equal ones lie there once, and one that
has changed never takes the place of another. The journal's line is written before the image gets its name,
so an image that is there is known; a line whose image is not there, or has another size, counts for nothing.
So nothing waits for the disk: what a power cut costs, the next run fetches again.

Proxies of the environment are not used: a proxy would resolve the names itself, and reach what
`AddressGuard` keeps this machine from reaching.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from furnclip import console
from furnclip.catalogue import Rejection, content_hash, read_products, write_row
from furnclip.console import redact
from furnclip.errors import InputError, Interrupted
from furnclip.fetch.download import NO_ANSWER, Download, Downloader, Failure
from furnclip.journal import Event, Journal, replacing, utc_now
from furnclip.sources import FETCHED_FOLDER, fetched_images, image_place, web_address

if TYPE_CHECKING:
    from furnclip.config import Config

FAILED_NAME = "failed.csv"
_COLUMNS = ("row", "product_id", "address", "reason", "detail")
_FIRST_PAUSE_S = 0.5
_MOST_PAUSE_S = 60.0  # a server that asks for more is left for the next run
_WRITERS = 4  # threads that write to a bucket
_SILENCES = 4  # requests for each of those that go on at once, after which a server is not there


@dataclass
class FetchSummary:
    """What a run did, counted in different addresses."""

    images: str
    failed_csv: str
    addresses: int = 0  # in the catalogue
    kept: int = 0  # of them, from earlier runs
    fetched: int = 0
    changed: int = 0  # fetched again, because they are other images now
    unchanged: int = 0  # asked for again, and still the same
    fetched_bytes: int = 0
    failed: dict[str, int] = field(default_factory=dict)


def fetch(config: Config, *, refresh: bool = False) -> FetchSummary:
    """Bring the images of all addresses that the catalogue has.

    An address is asked once, however many products name it; what an earlier run kept is not asked again,
    unless `refresh` says so. Raises `InputError` where no row names an image at all, and where nothing can be
    had of any address.
    """
    paths = config.paths
    failed = paths.fetched.with_name(FAILED_NAME)
    summary = FetchSummary(str(paths.images), str(failed))
    with Journal(paths.fetched) as journal:
        with closing(_Shelf(config, journal)) as shelf:
            run = _Run(config, shelf, summary)
            run.fetch_all(refresh=refresh)
        summary.failed = dict(Counter(reason for reason, _ in run.failures.values()).most_common())
        with replacing(failed) as file:
            write_row(file, _COLUMNS)
            for row, product_id, address in _named(config):
                if problem := run.failures.get(_key_of(address)):
                    write_row(file, (row, product_id, redact(address), *problem))
    rows = () if summary.addresses else read_products(paths.products, paths)
    if not summary.addresses and not any(row.images for row in rows if not isinstance(row, Rejection)):
        hint = "set `paths.image_column` to the column with the addresses of images"
        raise InputError(f"no row of `{paths.products}` names an image", hint=hint)
    if summary.addresses and sum(summary.failed.values()) == summary.addresses:
        counts = ", ".join(f"{count} {reason}" for reason, count in summary.failed.items())
        hint = f"`{failed}` has the reason of each; the same command tries them again"
        if "private-address" in summary.failed:
            hint = f"if the server is yours, name it in `fetch.allow_private`; {hint}"
        raise InputError(f"not one of {summary.addresses} images could be fetched ({counts})", hint=hint)
    return summary


def _named(config: Config) -> Iterator[tuple[int, str, str]]:
    """(row, product id, address) of every address of every usable row, in file order."""
    for product in read_products(config.paths.products, config.paths):
        if not isinstance(product, Rejection):
            for address in filter(None, map(web_address, product.images)):
                yield product.row, product.product_id, address


def _key_of(address: str) -> int:
    """What an address is known by."""
    return int(content_hash(address), 16)


@dataclass
class _Host:
    """What is known of one server while a run asks it."""

    free_at: float = 0.0  # time before which it wants to be left alone
    has_answered: bool = False
    silences: int = 0  # requests that it did not answer


class _Run:
    """One run: what is left to do, and what became of it."""

    def __init__(self, config: Config, shelf: _Shelf, summary: FetchSummary) -> None:
        self._config, self._settings, self._shelf, self._summary = config, config.fetch, shelf, summary
        self.failures: dict[int, tuple[str, str]] = {}
        self._error: BaseException | None = None

    def fetch_all(self, *, refresh: bool) -> None:
        seen: set[int] = set()
        todo: defaultdict[str, list[str]] = defaultdict(list)  # by server
        for _, _, address in _named(self._config):
            if (key := _key_of(address)) in seen:
                continue
            seen.add(key)
            if key in self._shelf.known and not refresh:
                self._summary.kept += 1
            else:
                todo[address.split("/")[2].lower()].append(address)
        self._summary.addresses = len(seen)
        with console.progress("fetching images", total=sum(map(len, todo.values()))) as self._meter:
            # Ctrl-C ends the main thread alone: nothing of libcurl's is interrupted half done.
            thread = Thread(target=self._work, args=(todo.values(),), daemon=True)
            thread.start()
            thread.join()
        if self._error:
            raise self._error

    def _work(self, servers: list[list[str]]) -> None:
        """What the thread does."""
        self._loop = asyncio.SelectorEventLoop()  # libcurl wants this one, on Windows as well
        try:
            self._loop.run_until_complete(self._ask_all(servers))
        except BaseException as error:  # the disk is full, the bucket refuses
            self._error = error
        finally:
            self._loop.close()

    async def _ask_all(self, servers: list[list[str]]) -> None:
        """All addresses, server by server, so that one that is slow holds up no other."""
        self._downloader = Downloader(self._settings)
        self._room = asyncio.Semaphore(self._settings.concurrency)
        with ThreadPoolExecutor(_WRITERS) as self._writers:
            try:
                await asyncio.gather(*map(self._ask_server, servers))
            finally:
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
                await self._downloader.close()

    async def _ask_server(self, addresses: list[str]) -> None:
        """The addresses of one server; those that failed and may work in a moment come after the others."""
        server, again = _Host(), list[str]()

        async def ask_some(attempt: int, waiting: Iterator[str]) -> None:
            for address in waiting:
                while (pause_s := server.free_at - monotonic()) > 0:
                    await asyncio.sleep(pause_s)
                async with self._room:
                    is_settled = await self._fetch(address, server, attempt)
                if is_settled:
                    self._meter.advance()
                else:
                    again.append(address)

        for attempt in range(1, self._settings.attempts + 1):
            workers, waiting = min(self._settings.per_host, len(addresses)), iter(addresses)
            await asyncio.gather(*(ask_some(attempt, waiting) for _ in range(workers)))
            addresses, again = again, []
            if addresses:
                await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1))

    async def _fetch(self, address: str, server: _Host, attempt: int) -> bool:
        """Try an address once; whether it needs no other attempt."""
        summary, key = self._summary, _key_of(address)
        kept, is_other = self._shelf.known.get(key), False
        is_silent = not server.has_answered and server.silences >= _SILENCES * self._settings.per_host
        try:
            if is_silent and attempt == 1:
                raise Failure("host-down", f"its server did not answer {server.silences} requests")
            found = await self._downloader.get(address, kept.conditions() if kept else {})
        except Failure as failure:
            if self._may_work_again(failure, server, attempt):
                return False
            self.failures[key] = (failure.reason, redact(str(failure)))
            return True
        server.has_answered = True
        if found:
            keep = partial(self._shelf.keep, key, address, found)
            # a folder answers at once; a bucket takes its time, so other threads write to it
            is_remote = isinstance(self._config.paths.images, str)
            is_other = await self._loop.run_in_executor(self._writers, keep) if is_remote else keep()
        summary.fetched_bytes += len(found.content) if found else 0
        summary.fetched += not kept
        summary.changed += bool(kept) and is_other
        summary.unchanged += bool(kept) and not is_other
        return True

    def _may_work_again(self, failure: Failure, server: _Host, attempt: int) -> bool:
        is_silence = failure.reason in NO_ANSWER
        server.silences += is_silence
        server.has_answered |= not is_silence and failure.reason != "host-down"
        pause_s = failure.pause_s or 0.0
        if not failure.is_passing or attempt == self._settings.attempts or pause_s > _MOST_PAUSE_S:
            return False
        server.free_at = max(server.free_at, monotonic() + pause_s)  # it was said to all requests
        return True


class _KeptImage(NamedTuple):
    """An image that was fetched."""

    name: str
    size_bytes: int
    etag: str = ""
    modified: str = ""

    def conditions(self) -> dict[str, str]:
        """Headers that ask for the image only if it has changed since."""
        headers = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        return {name: text for name, text in headers.items() if text}


class _Shelf:
    """Keeps images in `paths.images`, and notes them in the journal; used by several threads at once."""

    def __init__(self, config: Config, journal: Journal) -> None:
        self._place = image_place(config)
        self._place.tidy(FETCHED_FOLDER)
        self._journal, self._lock, self._is_closed = journal, Lock(), False
        known = {
            key: _KeptImage(**{name: event[name] for name in _KeptImage._fields if name in event})
            for key, event in fetched_images(journal.path)
        }
        # what was kept of an address before this run or in it
        self.known = {key: kept for key, kept in known.items() if self._is_there(kept)}
        self._uses = Counter(kept.name for kept in self.known.values())

    def _is_there(self, kept: _KeptImage) -> bool:
        return self._place.status(kept.name).split(" ")[0] == str(kept.size_bytes)

    def keep(self, key: int, address: str, found: Download) -> bool:
        """Keep an image, and say whether it is another than before. Raises `OSError`, `StorageError`."""
        digest = hashlib.sha256(found.content).hexdigest()
        ending = found.format.lower().replace("jpeg", "jpg")
        name = f"{FETCHED_FOLDER}/{digest[:2]}/{digest[:32]}.{ending}"
        kept, before = _KeptImage(name, len(found.content), found.etag, found.modified), self.known.get(key)
        about = {"address": redact(address), "at": utc_now(), "type": found.format, "sha256": digest}
        event = {"key": f"{key:016x}", **about, **kept._asdict()}
        with self._lock:
            is_new = not self._uses[name]
            self._uses[name] += 1
            self.known[key] = kept
        if is_new:
            self._place.write(name, found.content, lambda: self._announce(event))
        else:
            self._announce(event)
        if before:
            with self._lock:
                self._uses[before.name] -= 1
                is_unused = not self._uses[before.name]
            if is_unused:
                self._place.remove(before.name)
        return before is None or before.name != name

    def _announce(self, event: Event) -> None:
        with self._lock:
            if self._is_closed:  # after Ctrl-C, in a thread that is left over
                raise Interrupted
            self._journal.append(event, durable=False)

    def close(self) -> None:
        """Keep nothing more."""
        with self._lock:
            self._is_closed = True
            self._journal.sync()
