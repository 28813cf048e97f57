"""Which servers `fetch` may talk to: those of the public internet, and those that the user allowed.

A catalogue comes from outside. An address in it that leads into the shop's own network, such as
`http://169.254.169.254/`, would let its author read what only this machine can reach. So the check comes
last: libcurl asks for a socket to the very address that it is about to connect to, after the name was
resolved and again after each redirect, and gets none to one inside. A second answer of the name server, or
another way to write an address (decimal, octal, hexadecimal, IPv4 inside IPv6), cannot come behind it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

import pycurl

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_UNICAST = ipaddress.IPv6Network("2000::/3")
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # NAT64: an IPv4 address in the last four bytes
# Metadata of Azure and Oracle, in blocks that not every Python knows to be none of the internet's.
_METADATA = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))


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


class Guard:
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
        if self._allows_all or is_public(address) or self._is_allowed(host, address):
            return _Lent(to.family, to.socktype, to.protocol)
        refused.append(f"`{host}` is {address}, inside your own network")
        return int(pycurl.SOCKET_BAD)

    def _is_allowed(self, host: str, address: _Address) -> bool:
        return host.lower() in self._names or any(address in net for net in self._nets)
