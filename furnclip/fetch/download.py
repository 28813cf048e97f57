"""One image from the web: where its address leads, how long it may take, how large it may be, what it is.

In: an address. Out: its bytes, whole and an image by their content, or a `Failure` with one of the stable
reasons of `docs/fetch.md`. libcurl does the talking, for all requests in one thread: a fifth of the processor
time of clients in Python. Times are limited three times over: to connect, between two pieces of an answer,
and for all of it, so that no drip is endless.

A catalogue comes from outside. An address in it that leads into the shop's own network, such as
`http://169.254.169.254/`, would let its author read what only this machine can reach. So `AddressGuard` comes
last: libcurl asks for a socket to the very address that it is about to connect to, after the name was
resolved and again after each redirect, and gets none to one inside. A second answer of the name server, or
another way to write an address (decimal, octal, hexadecimal, IPv4 inside IPv6), cannot come behind it.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import ssl
from collections.abc import Iterable, Mapping
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

import certifi
import pycurl

from furnclip import __version__
from furnclip.images import MIN_SIDE_PX, BrokenImage, image_format, open_image

if TYPE_CHECKING:
    from furnclip.config import FetchConfig

MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
NO_ANSWER = ("unreachable", "timeout", "cut-off")
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_REASONS = {
    pycurl.E_URL_MALFORMAT: "bad-address",
    pycurl.E_COULDNT_RESOLVE_HOST: "unreachable",
    pycurl.E_COULDNT_CONNECT: "unreachable",
    pycurl.E_SSL_CONNECT_ERROR: "unreachable",
    pycurl.E_PEER_FAILED_VERIFICATION: "unreachable",
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_FILESIZE_EXCEEDED: "too-many-bytes",
}
_PIECE_BYTES = 1 << 17
_HEADERS = (
    f"User-Agent: furnclip/{__version__}",
    "Accept: image/jpeg, image/png, image/*;q=0.8, */*;q=0.5",
    "Accept-Encoding: identity",
)
_QUOTED = "/%:@!$&'()*+,;=~?[]"  # as they are; what a path may not have is written as `%20`
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_UNICAST = ipaddress.IPv6Network("2000::/3")
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # NAT64: an IPv4 address in the last four bytes
# Metadata of Azure and Oracle, in blocks that not every Python knows to be none of the internet's.
_METADATA = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))


class Failure(Exception):
    """Why there is no image; `is_passing`: it may be there in a moment, after `pause_s` if that is known."""

    def __init__(
        self, reason: str, detail: str, *, is_passing: bool = False, pause_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.reason, self.is_passing, self.pause_s = reason, is_passing, pause_s


class Download(NamedTuple):
    """An image as it was sent; `format` as Pillow calls it."""

    content: bytes
    format: str
    etag: str
    modified: str


class Downloader:
    """Asks for images, any number at once, over connections that are used again."""

    def __init__(self, settings: FetchConfig) -> None:
        self._settings, self._guard = settings, AddressGuard(settings.allow_private)
        self._most_bytes = int(settings.max_mb * 2**20)
        self._requests, self._idle = pycurl.AsyncCurlMulti(), list[pycurl.Curl]()

    async def close(self) -> None:
        """End the connections."""
        await self._requests.aclose()

    async def get(self, address: str, conditions: Mapping[str, str]) -> Download | None:
        """The image at an address; None where the `conditions` say that it is known.

        conditions: headers such as `If-None-Match`. Raises `Failure`.
        """
        curl = self._idle.pop() if self._idle else self._new_request()
        curl.setopt(pycurl.HTTPHEADER, [*_HEADERS, *(f"{name}: {text}" for name, text in conditions.items())])
        deadline = monotonic() + self._settings.total_timeout_s
        try:
            for _ in range(MOST_REDIRECTS + 1):
                content, about = await self._ask(curl, address, deadline - monotonic())
                status, target = curl.getinfo(pycurl.RESPONSE_CODE), curl.getinfo(pycurl.REDIRECT_URL)
                if status == HTTPStatus.NOT_MODIFIED and conditions:
                    return None
                if status not in _REDIRECTS or not target:
                    return self._judge(curl, status, content, about)
                address = target
        finally:
            self._idle.append(curl)
        raise Failure("redirects", f"more than {MOST_REDIRECTS} redirects")

    def _new_request(self) -> pycurl.Curl:
        trusted, curl = ssl.get_default_verify_paths(), pycurl.Curl()
        options = {
            pycurl.PROXY: "",
            pycurl.NOSIGNAL: True,
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_2TLS,
            pycurl.PIPEWAIT: True,  # rather share an HTTP/2 connection than open another
            pycurl.BUFFERSIZE: _PIECE_BYTES,
            pycurl.MAXFILESIZE_LARGE: self._most_bytes,
            pycurl.CONNECTTIMEOUT_MS: int(self._settings.connect_timeout_s * 1000),
            pycurl.LOW_SPEED_LIMIT: 1,
            pycurl.LOW_SPEED_TIME: math.ceil(self._settings.read_timeout_s),
            pycurl.CAINFO: trusted.cafile or certifi.where(),
        }
        for option, value in options.items():
            curl.setopt(option, value)
        if trusted.capath:
            curl.setopt(pycurl.CAPATH, trusted.capath)
        return curl

    async def _ask(self, curl: pycurl.Curl, address: str, left_s: float) -> tuple[bytes, dict[bytes, bytes]]:
        """The body and the headers of what one server says."""
        try:
            parts = urlsplit(address)
            name = parts.hostname
        except ValueError as error:
            raise Failure("bad-address", f"this is no address: {error}") from None
        if parts.scheme not in ("http", "https") or not name:
            raise Failure("bad-address", f"it leads to `{address}`, which is no address of the web")
        pieces: list[bytes] = []
        lines: list[bytes] = []
        refused: list[str] = []
        path, query = quote(parts.path, _QUOTED), quote(parts.query, _QUOTED)
        curl.setopt(pycurl.URL, parts._replace(path=path, query=query, fragment="").geturl())
        curl.setopt(pycurl.TIMEOUT_MS, max(1, int(left_s * 1000)))
        curl.setopt(pycurl.WRITEFUNCTION, pieces.append)
        curl.setopt(pycurl.HEADERFUNCTION, lines.append)
        curl.setopt(pycurl.OPENSOCKETFUNCTION, partial(self._guard.open, name, refused))
        try:
            await self._requests.perform(curl)
        except pycurl.error as error:
            code, detail = int(error.args[0]), str(error.args[-1])
            if refused:
                raise Failure("private-address", refused[0]) from None
            reason = _REASONS.get(code, "cut-off")
            raise Failure(reason, detail, is_passing=reason in NO_ANSWER) from None
        pairs = (line.partition(b":") for line in lines)
        return b"".join(pieces), {name.lower(): text.strip() for name, _, text in pairs}

    def _judge(
        self, curl: pycurl.Curl, status: int, content: bytes, about: Mapping[bytes, bytes]
    ) -> Download:
        if status != HTTPStatus.OK:
            is_passing = status in _TRY_AGAIN
            pause_s = curl.getinfo(pycurl.RETRY_AFTER) if is_passing and b"retry-after" in about else None
            detail = f"the server answers {status}"
            raise Failure(f"http-{status}", detail, is_passing=is_passing, pause_s=pause_s)
        type_, etag, modified = (
            about.get(name, b"").decode("latin-1") for name in (b"content-type", b"etag", b"last-modified")
        )
        try:
            kind, is_whole = image_format(content)
            if not is_whole:
                open_image(content, longest_px=MIN_SIDE_PX, name="what was sent")
        except BrokenImage as error:
            detail = f"{error.message}; sent as {type_ or 'no type'}"
            raise Failure(error.reason, detail, is_passing=error.reason == "truncated") from None
        return Download(content, kind, etag, modified)


def is_public(address: _Address) -> bool:
    """Whether an address is one of the public internet, also where it stands for another one."""
    if isinstance(address, ipaddress.IPv4Address):
        is_special = address.is_multicast or address.is_reserved or any(address in net for net in _METADATA)
        return address.is_global and not is_special
    if address in _TRANSLATED:
        return is_public(ipaddress.IPv4Address(address.packed[-4:]))
    if inner := address.ipv4_mapped or address.sixtofour:
        return is_public(inner)
    return address in _UNICAST and address.is_global and address.teredo is None


class _Lent(socket.socket):
    """libcurl takes a copy of it, and lets it go."""

    def __del__(self) -> None:
        self.close()


class AddressGuard:
    """Opens sockets to checked addresses only.

    allowed: True for all addresses, or names, addresses and networks.
    """

    def __init__(self, allowed: bool | Iterable[str]) -> None:
        self._allows_all = allowed is True
        self._names, self._nets = set(), []
        for text in () if isinstance(allowed, bool) else allowed:
            try:
                self._nets.append(ipaddress.ip_network(text, strict=False))
            except ValueError:
                self._names.add(text.lower())

    def open(self, host: str, refused: list[str], _purpose: int, to: Any) -> socket.socket | int:
        """For `OPENSOCKETFUNCTION`: a socket to an address of `host`; or none, told in `refused`."""
        # a scope such as `%eth0` is a way to write a link-local address
        address = ipaddress.ip_address(to.addr[0].partition("%")[0])
        is_named = host.lower() in self._names or any(address in net for net in self._nets)
        if self._allows_all or is_named or is_public(address):
            return _Lent(to.family, to.socktype, to.protocol)
        refused.append(f"`{host}` is {address}, inside your own network")
        return int(pycurl.SOCKET_BAD)
