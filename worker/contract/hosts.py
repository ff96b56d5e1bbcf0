"""Hosts by which the API may be called: names, addresses and networks."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

#: Hosts that no foreign DNS entry can stand for: loopback names and every IP literal.
LOCAL_HOSTS: Final = (".localhost", "0.0.0.0/0", "::/0")
ANY_HOST: Final = ("*",)

_NAME = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
#: `Host` (RFC 9110, 7.2): an IPv6 address in brackets, or a name or IPv4 address; then a port.
_HEADER = re.compile(r"(?:\[([0-9a-f:.]*:[0-9a-f:.]*)\]|([a-z0-9._-]+))(?::(\d{0,5}))?")


def parse_hosts(value: str) -> tuple[str, ...]:
    """The entries of a comma-separated list. Raises ValueError."""
    return tuple(_entry(part) for part in value.lower().split(",") if part.strip())


def split_host(header: str) -> tuple[str, str]:
    """Host and port of a `Host` header, without brackets and final dot; "" for a missing part.

    Both are "" if the header is not valid.
    """
    match = _HEADER.fullmatch(header.lower())
    if match is None:
        return "", ""
    return (match[1] or match[2]).removesuffix("."), match[3] or ""


class TrustedHosts:
    """A set of hosts. `.example.com` includes the subdomains, `*` is any host."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Entries as `parse_hosts` returns them."""
        self._names = set[str]()
        self._networks = []
        for entry in entries:
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                self._names.add(entry)

    def __contains__(self, host: str) -> bool:
        """Whether a host, as `split_host` returns it, is trusted."""
        if "*" in self._names:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            labels = host.split(".")
            parents = {"." + ".".join(labels[at:]) for at in range(len(labels))}
            return bool(host) and not self._names.isdisjoint({host, *parents})
        return any(address in network for network in self._networks)


def _entry(part: str) -> str:
    entry = part.strip().removesuffix(".")
    if entry.startswith("[") and entry.endswith("]"):
        entry = entry[1:-1]
    try:
        ipaddress.ip_network(entry, strict=False)
    except ValueError:
        if entry != "*" and not _NAME.fullmatch(entry):
            raise ValueError(
                "is not a comma-separated list of host names without ports, '.example.com' for "
                "subdomains, IP addresses, networks such as 10.0.0.0/8, or '*'"
            ) from None
    return entry
