"""Two Valkeys and three Sentinels that monitor them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, cast

import redis

from tests.processes import Processes, ValkeyServer, eventually, free_port
from worker.local import valkey

#: The Sentinels' name of the primary; the default of the workers and the API.
MASTER = "mymaster"
_SENTINELS = 3
#: Seconds for a failover, for the Sentinels to find each other, and for a replica to catch up.
_PATIENCE = 60


class Sentinels:
    """A primary, its replica, and the Sentinels; the constructor starts all of them."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes = processes
        self._servers = [
            ValkeyServer(processes, folder / f"data{number}", free_port()) for number in range(2)
        ]
        primary, replica = self._servers
        primary.start()
        self._follow(replica, primary)
        replica.start()
        self._ports = [free_port() for _ in range(_SENTINELS)]
        for port in self._ports:
            self._start(folder / f"sentinel{port}.conf", port, primary.port)
        eventually(self._is_complete, _PATIENCE, message=processes.logs)

    @property
    def url(self) -> str:
        """The Sentinels' addresses in Celery's format."""
        return ";".join(f"sentinel://127.0.0.1:{port}" for port in self._ports)

    def fail_over(self, number: signal.Signals) -> None:
        """End the primary by a signal, wait for its successor, and restart it as a replica."""
        port = int(self._state()["port"])
        old, new = sorted(self._servers, key=lambda server: server.port != port)
        assert old.process is not None
        old.process.signal(number)
        old.process.popen.wait()
        eventually(lambda: int(self._state()["port"]) == new.port, _PATIENCE)
        self._follow(old, new)
        old.start()
        eventually(self._is_complete, _PATIENCE, message=self._processes.logs)

    def _follow(self, replica: ValkeyServer, primary: ValkeyServer) -> None:
        replica.options = ("--replicaof", "127.0.0.1", str(primary.port))

    def _start(self, config: Path, port: int, primary: int) -> None:
        config.write_text(
            f"port {port}\nbind 127.0.0.1\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {primary} 2\n"
            # A primary that stalls for longer is demoted and loses its unreplicated writes.
            f"sentinel down-after-milliseconds {MASTER} 3000\n"
            # Another Sentinel retries only after twice this time; a retry would undo the failover.
            f"sentinel failover-timeout {MASTER} 20000\n"
        )
        program = [str(valkey.binary()), str(config), "--sentinel"]
        self._processes.start(program, name="sentinel")

    def _state(self) -> dict[str, Any]:
        with redis.Redis(port=self._ports[0]) as client:
            return cast("dict[str, Any]", client.sentinel_master(MASTER))

    def _is_complete(self) -> bool:
        """Return whether the Sentinels know each other and the replica is in sync."""
        try:
            state = self._state()
            with redis.Redis(port=int(state["port"])) as client:
                replication = cast("dict[str, Any]", client.info("replication"))
        except redis.RedisError:
            return False
        return bool(
            state["num-other-sentinels"] == _SENTINELS - 1
            and state["num-slaves"] >= 1
            and replication["role"] == "master"
            and replication.get("slave0", {}).get("state") == "online"
        )
