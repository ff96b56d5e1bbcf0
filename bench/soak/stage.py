"""The processes of a run, and operations on them."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import orjson
import redis

from bench.soak.access import Access, Tls, restricted_server, restricted_url
from bench.soak.sentinels import MASTER, Sentinels
from tests.clock_shift import shifted
from tests.processes import (
    Api,
    Process,
    Processes,
    ValkeyServer,
    eventually,
    free_port,
    start_api,
    start_worker,
)
from worker.store import server
from worker.store.api_keys import KeyFile, new_key

#: Seconds after which a silent worker's jobs run elsewhere; short, to keep runs short.
LEASE_SECONDS = 5
#: The name of the queue.
QUEUE = "embedq"


class Stage:
    """One Valkey, some workers, one API. The chaos thread owns the workers."""

    def __init__(
        self,
        *,
        workers: int,
        transport: str,
        app: str,
        forward_ms: float,
        api: bool = True,
        owners: int = 0,
        sentinel: bool = False,
        valkey_options: Sequence[str] = (),
        access: Access = Access.PLAIN,
        clocks: int = 0,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`owners` is the number of API keys; with 0 the API is open to all.

        With `sentinel` there are two Valkeys, to fail over from one to the other. `access` is the
        processes' access to the server; `valkey_options` are options of Valkey. The API's clock is
        `clocks` seconds ahead, and that of every second worker is `clocks` seconds behind.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="embedq-soak-"))
        self.processes = Processes(self.folder)
        if access is Access.RESTRICTED:
            valkey_options = (*valkey_options, *restricted_server(self.folder))
        self.valkey = ValkeyServer(
            self.processes, self.folder / "data", free_port(), options=valkey_options
        )
        self._sentinels = Sentinels(self.processes, self.folder) if sentinel else None
        if self._sentinels is None:
            self.valkey.start()
        self._tls = Tls(self.folder, self.valkey.port) if access is Access.TLS else None
        #: URL of broker and results, for the processes.
        self.url = self._url(access)
        self._clocks, self._workers_started = clocks, 0
        self.app = app
        self.env = {
            "EMBEDQ_BENCH_TRANSPORT": transport,
            "EMBEDQ_LEASE_SECONDS": str(LEASE_SECONDS),
            "EMBEDQ_RESULT_TTL": "86400",
            "EMBEDQ_BENCH_FORWARD_MS": str(forward_ms),
            "EMBEDQ_BATCH_TOKENS": "1024",
            "EMBEDQ_MAX_QUEUED_TOKENS": "200000",
            "EMBEDQ_FILES": str(self.folder / "files"),
            **env,
        }
        #: Owners of jobs and the secrets of their API keys.
        self.owners = [self._add_key(number) for number in range(owners)]
        self.workers: list[Process] = [self.start_worker() for _ in range(workers)]
        self.api: Api | None = self._start_api() if api else None

    def start_worker(self, *, wait: bool = True) -> Process:
        worker = start_worker(
            self.processes,
            self.url,
            "-l",
            "warning",
            app=self.app,
            env=self.env | shifted(-self._clocks * (self._workers_started % 2)),
            ready=None,
        )
        self._workers_started += 1
        if wait:
            eventually(lambda: self._is_present(worker), 60, message=worker.log)
        return worker

    def _start_api(self) -> Api:
        return start_api(self.processes, self.url, env=self.env | shifted(self._clocks))

    def _url(self, access: Access) -> str:
        if self._sentinels is not None:
            return self._sentinels.url
        if self._tls is not None:
            return self._tls.url
        return restricted_url(self.valkey.port) if access is Access.RESTRICTED else self.valkey.url

    def _add_key(self, number: int) -> tuple[str, str]:
        path = self.folder / "keys.json"
        self.env["EMBEDQ_API_KEYS_FILE"] = str(path)
        made = new_key(name=f"owner {number}")
        KeyFile(path).add(made.key)
        return made.key.id, made.secret

    def _is_present(self, worker: Process) -> bool:
        with self.client() as client:
            said = client.hvals("embedq:workers:embedq")
        return any(orjson.loads(one)["pid"] == worker.pid for one in said)

    def kill_worker(self, index: int) -> None:
        """Send SIGKILL to a worker and start a replacement, without waiting until it is ready."""
        self.workers[index].kill()
        self.workers[index] = self.start_worker(wait=False)

    def kill_api(self) -> None:
        """Send SIGKILL to the API and start another one, at another address."""
        assert self.api is not None
        self.api.process.kill()
        self.api = self._start_api()

    def stop_worker(self, index: int) -> Process:
        """Send SIGSTOP to a worker: it keeps its leases and does not renew them."""
        worker = self.workers[index]
        worker.signal(signal.SIGSTOP)
        return worker

    def kill_connections(self) -> int:
        """Drop every client's connections, to simulate a failing network."""
        with self.client() as client:
            killed = client.client_kill_filter(_type="normal", skipme=True)
            killed += client.client_kill_filter(_type="pubsub", skipme=True)
        return int(killed)

    def restart_valkey(self) -> None:
        self.valkey.restart()

    def fail_over(self, number: signal.Signals) -> None:
        """End the primary by a signal; return when its successor has a replica."""
        assert self._sentinels is not None
        self._sentinels.fail_over(number)

    def client(self) -> redis.Redis:
        """Return a client of the server or of the current primary, with all rights."""
        url = self.valkey.url if self._sentinels is None else self.url
        return server.connect(url, sentinel_master=MASTER)

    def close(self) -> None:
        self.processes.close()
        if self._tls is not None:
            self._tls.close()
        shutil.rmtree(self.folder, ignore_errors=True)
