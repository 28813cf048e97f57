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

import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from time import monotonic
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
_SMALL_BYTES = 1 << 14  # of an answer that is read only to keep the connection
_REDIRECTS = (301, 302, 303, 307, 308)
NO_ANSWER = ("unreachable", "timeout", "cut-off")
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_MOST_CONNECTIONS = 4  # of one thread, which changes between servers
_KEEP_ALIVE_S = 30
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


class Downloader:
    """Asks for an image at a time; for one thread, with connections of its own, which are used again.

    Threads and not asyncio: for an image a thread needs half of the processor time.
    """

    def __init__(self, settings: FetchConfig) -> None:
        self._settings, self._network = settings, GuardedNetwork(settings.allow_private)
        self._pool = httpcore.ConnectionPool(
            ssl_context=_certificates(),
            max_connections=_MOST_CONNECTIONS,
            keepalive_expiry=_KEEP_ALIVE_S,
            http2=True,
            network_backend=self._network,
        )
        self._timeouts = {
            "connect": settings.connect_timeout_s,
            "read": settings.read_timeout_s,
            "write": settings.read_timeout_s,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def get(self, address: str, conditions: Mapping[str, str]) -> Download | None:
        """The image at an address; None where the `conditions` say that it is known.

        conditions: headers such as `If-None-Match`. Raises `Failure`.
        """
        self._network.deadline = monotonic() + self._settings.total_timeout_s
        try:
            return self._follow(address, conditions)
        except httpcore.TimeoutException as error:
            raise Failure("timeout", f"{error}", is_passing=True) from None
        except InnerAddress as error:
            raise Failure("private-address", str(error)) from None
        except httpcore.ConnectError as error:
            raise Failure("unreachable", str(error), is_passing=True) from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            detail = f"the connection broke: {str(error) or type(error).__name__}"
            raise Failure("cut-off", detail, is_passing=True) from None
        except (httpx.InvalidURL, ValueError) as error:
            raise Failure("bad-address", f"this is no address: {error}") from None

    def _follow(self, address: str, conditions: Mapping[str, str]) -> Download | None:
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
            with self._pool.stream("GET", target, headers=sent, extensions=limits) as answer:
                about = {name.decode().lower(): text.decode("latin-1") for name, text in answer.headers}
                if answer.status == HTTPStatus.NOT_MODIFIED and conditions:
                    return None
                if answer.status not in _REDIRECTS or "location" not in about:
                    return self._read(answer, about)
                url = url.join(about["location"])
                headers.pop("Authorization", None)  # was meant for the first server
                _finish(answer, about)
        raise Failure("redirects", f"more than {MOST_REDIRECTS} redirects")

    def _read(self, answer: httpcore.Response, about: Mapping[str, str]) -> Download:
        if answer.status != HTTPStatus.OK:
            _finish(answer, about)
            is_passing = answer.status in _TRY_AGAIN
            pause_s = _seconds_to_wait(about.get("retry-after", "")) if is_passing else None
            detail = f"the server answers {answer.status}"
            raise Failure(f"http-{answer.status}", detail, is_passing=is_passing, pause_s=pause_s)
        most_bytes = int(self._settings.max_mb * 2**20)
        pieces, size_bytes = [], _announced_bytes(about)
        if size_bytes <= most_bytes:
            size_bytes = 0
            for piece in answer.iter_stream():
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
                open_image(content, longest_px=MIN_SIDE_PX, name="what was sent")
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


def _finish(answer: httpcore.Response, about: Mapping[str, str]) -> None:
    """Read the rest of a small answer, so that its connection can be used again."""
    if 0 < _announced_bytes(about) <= _SMALL_BYTES:
        answer.read()


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
