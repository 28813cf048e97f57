"""One image from the web: where its address leads, how long it may take, how large it may be, what it is.

In: an address. Out: its bytes, whole and an image by their content, or a `Failure` with a stable reason:

    bad-address, private-address    it cannot be asked, or must not be
    unreachable, timeout, cut-off   no connection, no answer in time, an answer that broke off
    http-404 ...                    the server refuses
    redirects                       more than `MOST_REDIRECTS`, or in a circle
    too-many-bytes                  more than `fetch.max_mb`, announced or sent
    host-down                       its server did not answer once, so that it is not asked any more

and those of `images` for what is no image, a damaged one or one that is too large. Times are limited three
times over: to connect, between two pieces of an answer, and for all of it, so that no drip is endless.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING

import httpcore
import httpx

from furnclip import __version__
from furnclip.fetch.guard import GuardedNetwork, InnerAddress
from furnclip.images import MIN_SIDE_PX, BrokenImage, image_format, open_image

if TYPE_CHECKING:
    from typing import Self

    from furnclip.config import FetchConfig

MOST_REDIRECTS = 5
MOST_PAUSE_S = 60.0  # a server that asks for more is left for the next run
_FIRST_PAUSE_S = 0.5
_SMALL_BYTES = 1 << 14  # of an answer that is read only to keep the connection
_REDIRECTS = (301, 302, 303, 307, 308)
_NO_ANSWER = ("unreachable", "timeout", "cut-off")
_SILENCES = 4  # requests for each of those that go on at once
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_MOST_CONNECTIONS = 4  # of one downloader: redirects lead to other servers
_HEADERS = {
    "User-Agent": f"furnclip/{__version__}",
    "Accept": "image/jpeg, image/png, image/*;q=0.8, */*;q=0.5",
    "Accept-Encoding": "identity",
}


class Failure(Exception):
    """Why there is no image; `is_passing`: it may be there in a moment, after `pause_s` if that is known."""

    def __init__(
        self, reason: str, detail: str, *, is_passing: bool = False, pause_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.reason, self.is_passing, self.pause_s = reason, is_passing, pause_s


@dataclass(frozen=True)
class Download:
    """An image as it was sent; `format` as Pillow calls it."""

    content: bytes
    format: str
    etag: str
    modified: str


@dataclass
class Host:
    """What is known of one server name while a run asks it."""

    free_at: float = 0.0
    """time of the event loop before which the server wants to be left alone"""
    is_there: bool = False
    """it has answered once in this run"""
    silences: int = 0


class Downloader:
    """Asks one server for an image at a time; one of several that do, each with connections of its own.

    httpcore looks at every connection of a pool for each request: one pool for all of them would spend more
    time on that than on images. slots: shared by all, one for each request that may be under way.
    """

    def __init__(self, host: Host, settings: FetchConfig, slots: asyncio.Semaphore) -> None:
        self._host, self._settings, self._slots = host, settings, slots
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_certificates(),
            max_connections=_MOST_CONNECTIONS,
            keepalive_expiry=30,
            http2=True,
            network_backend=GuardedNetwork(settings.allow_private),
        )
        self._timeouts = {
            "connect": settings.connect_timeout_s,
            "read": settings.read_timeout_s,
            "write": settings.read_timeout_s,
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()

    async def get(self, address: str, conditions: Mapping[str, str]) -> Download | None:
        """The image at an address, tried several times; None where the `conditions` say that it is known.

        conditions: headers such as `If-None-Match`. Raises `Failure`.
        """
        clock, settings, host = asyncio.get_running_loop().time, self._settings, self._host
        for attempt in range(1, settings.attempts + 1):
            while (wait_s := host.free_at - clock()) > 0:
                await asyncio.sleep(wait_s)
            if not host.is_there and host.silences >= _SILENCES * settings.per_host:
                raise Failure("host-down", f"its server did not answer {host.silences} requests")
            try:
                async with self._slots:
                    found = await self._attempt(address, conditions)
                host.is_there = True
                return found
            except Failure as failure:
                host.silences += failure.reason in _NO_ANSWER
                host.is_there |= failure.reason not in _NO_ANSWER
                pause_s = failure.pause_s or _FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1)
                if not failure.is_passing or attempt == settings.attempts or pause_s > MOST_PAUSE_S:
                    raise
                if failure.pause_s:  # it was said to all of us
                    host.free_at = clock() + pause_s
            await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, address: str, conditions: Mapping[str, str]) -> Download | None:
        try:
            return await asyncio.wait_for(self._follow(address, conditions), self._settings.total_timeout_s)
        except (asyncio.TimeoutError, httpcore.TimeoutException) as error:
            detail = str(error) or f"not complete after {self._settings.total_timeout_s:g} s"
            raise Failure("timeout", detail, is_passing=True) from None
        except InnerAddress as error:
            raise Failure("private-address", str(error)) from None
        except httpcore.ConnectError as error:
            raise Failure("unreachable", str(error), is_passing=True) from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            detail = f"the connection broke: {str(error) or type(error).__name__}"
            raise Failure("cut-off", detail, is_passing=True) from None
        except (httpx.InvalidURL, ValueError) as error:
            raise Failure("bad-address", f"this is no address: {error}") from None

    async def _follow(self, address: str, conditions: Mapping[str, str]) -> Download | None:
        url = httpx.URL(address)
        headers = {**_HEADERS, **conditions}
        if url.userinfo:
            headers["Authorization"] = f"Basic {b64encode(url.userinfo).decode()}"
        for _ in range(MOST_REDIRECTS + 1):
            if url.scheme not in ("http", "https") or not url.host:
                raise Failure("bad-address", f"it leads to `{url}`, which is no address of the web")
            target = httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            )
            sent, limits = _encoded(headers), {"timeout": self._timeouts}
            async with self._pool.stream("GET", target, headers=sent, extensions=limits) as answer:
                about = {name.decode().lower(): text.decode("latin-1") for name, text in answer.headers}
                if answer.status == HTTPStatus.NOT_MODIFIED and conditions:
                    return None
                if answer.status not in _REDIRECTS or "location" not in about:
                    return await self._read(answer, about)
                url = url.join(about["location"])
                headers.pop("Authorization", None)  # was meant for the first server
                await _finish(answer, about)
        raise Failure("redirects", f"more than {MOST_REDIRECTS} redirects")

    async def _read(self, answer: httpcore.Response, about: Mapping[str, str]) -> Download:
        if answer.status != HTTPStatus.OK:
            await _finish(answer, about)
            is_passing = answer.status in _TRY_AGAIN
            pause_s = _seconds_to_wait(about.get("retry-after", "")) if is_passing else None
            detail = f"the server answers {answer.status}"
            raise Failure(f"http-{answer.status}", detail, is_passing=is_passing, pause_s=pause_s)
        most_bytes = int(self._settings.max_mb * 2**20)
        pieces, size_bytes = [], _announced_bytes(about)
        if size_bytes <= most_bytes:
            size_bytes = 0
            async for piece in answer.aiter_stream():
                size_bytes += len(piece)
                pieces.append(piece)
                if size_bytes > most_bytes:
                    break
        if size_bytes > most_bytes:
            raise Failure("too-many-bytes", f"{size_bytes:,} bytes or more, at most {most_bytes:,}")
        content = b"".join(pieces)
        try:
            kind, is_whole = image_format(content)
            if not is_whole:
                await asyncio.to_thread(open_image, content, longest_px=MIN_SIDE_PX, name="what was sent")
        except BrokenImage as error:
            said = about.get("content-type", "no type")
            is_damaged = error.reason == "truncated"
            raise Failure(error.reason, f"{error.message}; sent as {said}", is_passing=is_damaged) from None
        return Download(content, kind, about.get("etag", ""), about.get("last-modified", ""))


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # takes longer than to fetch an image


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), text.encode("latin-1")) for name, text in headers.items()]


async def _finish(answer: httpcore.Response, about: Mapping[str, str]) -> None:
    """Read the rest of a small answer, so that its connection can be used again."""
    if 0 < _announced_bytes(about) <= _SMALL_BYTES:
        await answer.aread()


def _announced_bytes(about: Mapping[str, str]) -> int:
    length = about.get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() else 0


def _seconds_to_wait(retry_after: str) -> float | None:
    """What `Retry-After` asks for, in seconds or as a date."""
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        until = parsedate_to_datetime(retry_after)
        return max(0.0, (until.astimezone(timezone.utc) - datetime.now(timezone.utc)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
