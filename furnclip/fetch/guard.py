"""Which servers `fetch` may talk to: those of the public internet, and those that the user allowed.

A catalogue comes from outside. An address in it that leads into the shop's own network, such as
`http://169.254.169.254/`, would let its author read what only this machine can reach. So a name is resolved
here, every address it has is checked, and the connection goes to one that was checked: a second answer of
the name server cannot change it. TLS still checks the certificate against the name. All ways to write an
address (decimal, octal, hexadecimal, IPv4 inside IPv6) are the same to the check, which comes after them.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import ssl
from collections.abc import Iterable
from time import monotonic
from typing import Any

import httpcore

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_UNICAST = ipaddress.IPv6Network("2000::/3")
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # NAT64: an IPv4 address in the last four bytes
# Metadata of Azure and Oracle, in blocks that not every Python knows to be none of the internet's.
_METADATA = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))
_MOST_ADDRESSES = 4


class InnerAddress(Exception):
    """A server that must not be asked."""


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


class GuardedNetwork(httpcore.NetworkBackend):
    """Connections to checked addresses only, which end at `deadline` whatever goes on.

    allowed: True for all addresses, or names, addresses and networks.
    """

    def __init__(self, allowed: bool | Iterable[str]) -> None:
        self._network = httpcore.SyncBackend()
        self.deadline = math.inf
        self._allows_all = allowed is True
        self._names, self._nets = set(), []
        for text in () if isinstance(allowed, bool) else allowed:
            try:
                self._nets.append(ipaddress.ip_network(text, strict=False))
            except ValueError:
                self._names.add(text.lower())

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *options: Any, **more: Any
    ) -> httpcore.NetworkStream:
        """A connection to the first of the host's addresses that answers.

        Raises `InnerAddress` where one of them is inside, and httpcore's errors where there is no answer.
        """
        problem: Exception = httpcore.ConnectError(f"`{host}` has no address")
        for address in self._resolve(host, port):
            try:
                stream = self._network.connect_tcp(str(address), port, self.left_s(timeout), *options, **more)
                return _TimedStream(stream, self)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem

    def left_s(self, timeout: float | None) -> float:
        """Seconds until `timeout` or the deadline. Raises `ReadTimeout` when that is over."""
        left_s = self.deadline - monotonic()
        if left_s <= 0:
            raise httpcore.ReadTimeout("the answer takes too long as a whole")
        return left_s if timeout is None else min(timeout, left_s)

    def _resolve(self, host: str, port: int) -> list[_Address]:
        try:
            answers = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"`{host}` has no address: {error}") from None
        # a scope such as `%eth0` is a way to write a link-local address
        found = dict.fromkeys(ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers)
        for address in found:
            if not (self._allows_all or is_public(address) or self._is_allowed(host, address)):
                raise InnerAddress(f"`{host}` is {address}, inside your own network")
        return list(found)[:_MOST_ADDRESSES]

    def _is_allowed(self, host: str, address: _Address) -> bool:
        return host.lower() in self._names or any(address in net for net in self._nets)


class _TimedStream(httpcore.NetworkStream):
    """A connection that keeps the deadline of its network."""

    def __init__(self, stream: httpcore.NetworkStream, network: GuardedNetwork) -> None:
        self._stream, self._network = stream, network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._network.left_s(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._network.left_s(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left_s = self._network.left_s(timeout)
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, left_s), self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
