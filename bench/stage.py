"""Valkey, workers and the API for one benchmark, each in its own process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.processes import (
    START_TIMEOUT_S,
    Api,
    Process,
    Processes,
    ValkeyServer,
    answers,
    eventually,
    free_port,
    start_api,
    start_worker,
)


@dataclass
class Stage:
    """A Valkey, by default with an append-only file, on a Unix socket as in `embedq up`."""

    processes: Processes
    valkey: ValkeyServer

    @property
    def url(self) -> str:
        return self.valkey.socket_url

    def worker(
        self,
        *arguments: str,
        app: str = "worker",
        name: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a worker and do not wait until it is ready; its default name is that of `app`."""
        return start_worker(
            self.processes,
            self.url,
            *arguments,
            "-l",
            "warning",
            app=app,
            name=name or app.replace(".", "-"),
            ready=None,
            env=env,
        )

    def api(self, env: Mapping[str, str] | None = None) -> Api:
        """Start the API; return when it has seen a live worker."""
        api = start_api(self.processes, self.url, env=env)
        eventually(lambda: answers(api, "/readyz"), START_TIMEOUT_S, message=self.processes.logs)
        return api


@contextmanager
def stage(*, persistent: bool = True) -> Iterator[Stage]:
    """Start Valkey; the block's end stops all processes of the stage."""
    folder = Path(tempfile.mkdtemp(prefix="embedq-bench-"))
    processes = Processes(folder)
    try:
        valkey = ValkeyServer(processes, folder / "data", free_port(), persistent=persistent)
        valkey.start()
        yield Stage(processes, valkey)
    finally:
        processes.close()
        shutil.rmtree(folder, ignore_errors=True)


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and its children so far."""
    return sum(sum(member.cpu_times()[:2]) for member in _family(pid))


def resident_bytes(process: Process) -> int:
    """Return the memory of a process and its children; shared memory counts for each."""
    return sum(member.memory_info().rss for member in _family(process.pid))


def _family(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]
