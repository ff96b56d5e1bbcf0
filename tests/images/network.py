"""A network namespace for each service, with the service's name as its host name.

The process that makes the network leaves the machine's own network for good: it becomes the host
of the containers, which alone reaches their addresses. Everything except the named namespaces ends
with this process; `close` removes the namespaces.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_SUBNET = "10.89.0"


class Network:
    """A bridge, and a namespace on it for each name."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        """`folder`: for the file of host names."""
        self._names = names
        self.hosts = folder / "hosts"
        addresses = {name: self.address(name) for name in names}
        lines = ["127.0.0.1 localhost", *(f"{one} {name}" for name, one in addresses.items())]
        self.hosts.write_text("\n".join(lines) + "\n")

    def open(self) -> None:
        """Make it. Raises OSError without the rights, CalledProcessError if `ip` fails."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot make a network namespace")
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "services", "type", "bridge")
        _ip("address", "add", f"{_SUBNET}.1/24", "dev", "services")
        _ip("link", "set", "services", "up")
        for number, name in enumerate(self._names):
            space, end = self.space(name), f"service{number}"
            _ip("netns", "add", space)
            _ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", end, "master", "services", "up")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "address", "add", f"{self.address(name)}/24", "dev", "eth0")

    def close(self) -> None:
        """Remove the existing namespaces."""
        for name in self._names:
            deleted = ["ip", "netns", "delete", self.space(name)]
            subprocess.run(deleted, capture_output=True, check=False)

    def publish(self, at: tuple[str, int], name: str, port: int) -> None:
        """Forward connections of an address of this process to a service's port, while it runs."""
        listener = socket.create_server(at)

        def serve() -> None:
            while True:
                caller, _ = listener.accept()
                service = socket.create_connection((self.address(name), port))
                for ends in ((caller, service), (service, caller)):
                    threading.Thread(target=_copy, args=ends, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()

    def address(self, name: str) -> str:
        """The address of a service."""
        return f"{_SUBNET}.{self._names.index(name) + 2}"

    def space(self, name: str) -> str:
        """The name of a service's namespace."""
        return f"embedq-{os.getpid()}-{name}"


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
