"""A run's access to the server: as the default user, as a user with few rights, or by TLS.

The user has exactly the rights that the documentation lists, read from its text. The server's ACL
log contains every refused command.
"""

from __future__ import annotations

import re
import ssl
import subprocess
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import redis

from tests.integration.transport_proxy import Proxy
from tests.processes import ROOT

_DOCUMENTED = ROOT / "docs" / "operations.md"
_USER, _PASSWORD = "embedq", "secret"


class Access(StrEnum):
    """The kind of access in the processes' URL."""

    PLAIN = "plain"
    RESTRICTED = "restricted"
    TLS = "tls"


def documented_rules() -> str:
    """Return the ACL rules of the user in the documentation for operators."""
    found = re.search(r"ACL SETUSER embedq on >PASSWORD (.+)", _DOCUMENTED.read_text())
    assert found is not None
    return found[1]


def restricted_server(folder: Path) -> Sequence[str]:
    """Return options of a server with the user, and with a full-rights user for the soak."""
    rules = documented_rules()
    path = folder / "users.acl"
    path.write_text(f"user default on nopass ~* &* +@all\nuser {_USER} on >{_PASSWORD} {rules}\n")
    return "--aclfile", str(path)


def restricted_url(port: int) -> str:
    return f"redis://{_USER}:{_PASSWORD}@127.0.0.1:{port}/0"


def refusals(client: redis.Redis) -> list[str]:
    """Return the server's refusals: the reason, and the command or key of each."""
    logged = cast("list[dict[str, Any]]", client.acl_log())
    return sorted(f"{one['reason']} {one['object']}" for one in logged)


class Tls:
    """A TLS proxy with its own certificate authority, in front of a server without TLS."""

    def __init__(self, folder: Path, port: int) -> None:
        authority, certificate = _certificates(folder)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        self._proxy = Proxy(port, context)
        self._proxy.start()
        self.url = f"rediss://localhost:{self._proxy.port}/0?ssl_ca_certs={authority}"

    def close(self) -> None:
        self._proxy.close()


def _certificates(folder: Path) -> tuple[Path, Path]:
    """Return two files: the authority's certificate, and the server's signed one with its key."""
    made = {name: folder / f"{name}.pem" for name in ("ca-key", "ca", "key", "server")}
    new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    for command in (
        (*new, "-subj", "/CN=soak", "-keyout", made["ca-key"], "-out", made["ca"]),
        (
            *(*new, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-CA", made["ca"], "-CAkey", made["ca-key"]),
            *("-keyout", made["key"], "-out", made["server"]),
        ),
    ):
        subprocess.run(command, check=True, capture_output=True)
    with made["server"].open("a") as chain:
        chain.write(made["key"].read_text())
    return made["ca"], made["server"]
