"""Which servers `fetch` may talk to: those of the public internet, and those that the user allowed.

A catalogue comes from outside. An address in it that leads into the shop's own network, such as
`http://169.254.169.254/`, would let its author read what only this machine can reach. So a name is resolved
here, every address it has is checked, and the connection goes to one that was checked: a second answer of
the name server cannot change it. TLS still checks the certificate against the name. All ways to write an
address (decimal, octal, hexadecimal, IPv4 inside IPv6) are the same to the check, which comes after them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
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


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Connections to checked addresses only. `allowed`: True for all, or names, addresses and networks."""

    def __init__(self, allowed: bool | Iterable[str]) -> None:
        self._network = httpcore.AnyIOBackend()
        self._allows_all = allowed is True
        self._names, self._nets = set(), []
        for text in () if isinstance(allowed, bool) else allowed:
            try:
                self._nets.append(ipaddress.ip_network(text, strict=False))
            except ValueError:
                self._names.add(text.lower())

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *options: Any, **more: Any
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first of the host's addresses that answers.

        Raises `InnerAddress` where one of them is inside, and httpcore's errors where there is no answer.
        """
        problem: Exception = httpcore.ConnectError(f"`{host}` has no address")
        for address in await self._resolve(host, port, timeout):
            try:
                return await self._network.connect_tcp(str(address), port, timeout, *options, **more)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _resolve(self, host: str, port: int, timeout: float | None) -> list[_Address]:
        lookup = asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        try:
            answers = await asyncio.wait_for(lookup, timeout)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"`{host}` has no address: {error}") from None
        except asyncio.TimeoutError:
            raise httpcore.ConnectTimeout(f"the name server does not answer for `{host}`") from None
        # a scope such as `%eth0` is a way to write a link-local address
        found = dict.fromkeys(ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers)
        for address in found:
            if not (self._allows_all or is_public(address) or self._is_allowed(host, address)):
                raise InnerAddress(f"`{host}` is {address}, inside your own network")
        return list(found)[:_MOST_ADDRESSES]

    def _is_allowed(self, host: str, address: _Address) -> bool:
        return host.lower() in self._names or any(address in net for net in self._nets)
