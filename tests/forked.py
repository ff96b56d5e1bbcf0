"""Programs that the fork server starts, with the part of `subprocess.Popen` that tests use."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from worker.local.children import Children

#: The environment variable with the name of the run's fork server. If absent, programs are started.
SERVER = "TESTS_FORK_SERVER"
#: Prefixes of variables that the interpreter or a library reads at startup.
_READ_EARLY = ("PYTHON", "LD_", "HF_", "OMP_", "MKL_", "TORCH", "PYTORCH", "TRANSFORMERS_", "OTEL_")


class ForkServer:
    """The fork server of this run, for this process and its children."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """Start it with `env`; it loads the libraries for its first caller."""
        name = f"embedq-tests-{os.getpid()}"
        script = Path(__file__).with_name("fork_server.py")
        self._popen = subprocess.Popen(
            [sys.executable, script, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
        assert self._popen.stdout is not None
        assert self._popen.stdout.readline()
        os.environ[SERVER] = name

    def close(self) -> None:
        del os.environ[SERVER]
        self._popen.communicate()


@dataclass
class Forked:
    """A process that the server forked. Any thread may ask for its end."""

    pid: int
    args: Sequence[str]
    #: A connection on which the server reports the end.
    _server: int
    returncode: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        weakref.finalize(self, os.close, self._server)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with self._lock:
            if self.returncode is None and select.select([self._server], [], [], 0)[0]:
                self._read_end()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code at its end; `subprocess.TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None:
            select.select([self._server], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _read_end(self) -> None:
        said = os.read(self._server, 64)
        # A server that has ended cannot report the ends of its children.
        self.returncode = json.loads(said) if said else -signal.SIGKILL


def can_fork(env: Mapping[str, str], usual: Mapping[str, str]) -> bool:
    """Whether a fork of the server equals a process started with `env`.

    False if `env` differs from `usual`, the server's own, in a variable that is read at startup.
    """
    folders = env.get("PYTHONPATH", "").split(os.pathsep)
    customized = any(Path(folder, "sitecustomize.py").exists() for folder in folders)
    return SERVER in os.environ and not customized and _read_early(env) == _read_early(usual)


def _read_early(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in env.items()
        if name.startswith(_READ_EARLY) and name != "PYTHONPATH"
    }


def fork(
    module: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    output: IO[bytes],
    children: Children,
) -> subprocess.Popen[bytes]:
    """Run `python -m MODULE ARGUMENT…` in a fork of the server; `children`'s guardian ends it."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(f"\0{os.environ[SERVER]}")
    call = {"module": module, "arguments": list(arguments), "env": dict(env), "cwd": str(cwd)}
    files = [output.fileno(), children._lifeline, children._alive]
    socket.send_fds(server, [json.dumps(call).encode()], files)
    forked = Forked(json.loads(server.recv(64)), [module, *arguments], server.detach())
    return cast("subprocess.Popen[bytes]", forked)
