"""Whether a thousand waiting clients slow a fast request down.

`python -m bench.waiting` starts a Valkey and the API under `gunicorn -k gevent`, measures
`GET /healthz` and `GET /jobs/{id}` one after another on one connection, first with nobody else
there, then while CLIENTS connections wait in `GET /jobs/{id}?wait=60`, each for a job of its own.
Then all those jobs end in one step, as a batch ends them, and every client must get its answer.
No worker and no model take part: the client and the API share the machine's cores with nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import orjson

from tests.processes import Processes, ValkeyServer, free_port, start_api
from worker.contract import messages
from worker.contract.jobs import Status
from worker.contract.results import Outcome, payload, success_meta
from worker.contract.store import Ending, JobStore, NewJob

QUEUE = "embedq"
WAIT_S = 60
CONNECT_AT_ONCE = 50
SETTLE_S = 2


@dataclass(frozen=True)
class Place:
    """Where the API listens, and the records beside it."""

    host: str
    port: int
    store: JobStore


class Connection:
    """One keep-alive connection that sends a request and reads its answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, place: Place) -> Connection:
        return cls(*await asyncio.open_connection(place.host, place.port))

    async def get(self, path: str) -> bytes:
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        return await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.waiting")
    parser.add_argument("--clients", type=int, default=1000, help="that wait at the same time")
    parser.add_argument("--processes", type=int, default=1, help="of gunicorn")
    parser.add_argument("--requests", type=int, default=2000, help="timed, of each kind")
    options = parser.parse_args(arguments)
    # A socket each, and a few.
    need = 2 * options.clients + 256
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(need, hard), hard))
    with running(options.processes, options.clients) as place:
        asyncio.run(measure(place, options.clients, options.requests))


@contextmanager
def running(api_processes: int, clients: int) -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="embedq-waiting-"))
    processes = Processes(folder)
    try:
        valkey = ValkeyServer(processes, folder / "data", free_port(), persistent=False)
        valkey.start()
        room = str(clients + 100)
        api = start_api(
            processes, valkey.url, "-w", str(api_processes), "--worker-connections", room
        )
        parts = urlsplit(api.url)
        with valkey.client() as client:
            store = JobStore(client, QUEUE, result_ttl=3600)
            yield Place(parts.hostname or "", parts.port or 0, store)
    finally:
        processes.close()
        shutil.rmtree(folder, ignore_errors=True)


async def measure(place: Place, clients: int, requests: int) -> None:
    ids = [messages.new_id() for _ in range(clients)]
    for job_id in ids:
        place.store.accept(NewJob(job_id, total=1, tokens=8, result_bytes=100), None)
    paths = {"GET /healthz": "/healthz", "GET /jobs/{id}": f"/jobs/{ids[0]}"}
    print(f"{'':<16}{'waiting':>10}{'p50':>12}{'p99':>12}{'longest':>12}")
    for name, path in paths.items():
        await _row(name, 0, place, path, requests)
    waiting = await _wait_for_all(place, ids)
    for name, path in paths.items():
        await _row(name, clients, place, path, requests)
    assert not any(task.done() for task in waiting), "somebody was answered before the job ended"

    began = time.perf_counter()
    place.store.finish([_ending(job_id) for job_id in ids])
    statuses = [orjson.loads(body)["status"] for body in await asyncio.gather(*waiting)]
    seconds = time.perf_counter() - began
    assert statuses == ["succeeded"] * clients, statuses
    print(f"all {clients} jobs ended at once; the last of their clients had its answer", end=" ")
    print(f"{1000 * seconds:.0f} ms later")


async def _wait_for_all(place: Place, ids: Sequence[str]) -> list[asyncio.Task[bytes]]:
    """A client waiting for each job, all of them known to the API."""
    waiting: list[asyncio.Task[bytes]] = []
    for start in range(0, len(ids), CONNECT_AT_ONCE):
        part = ids[start : start + CONNECT_AT_ONCE]
        connections = await asyncio.gather(*(Connection.open(place) for _ in part))
        for connection, job_id in zip(connections, part, strict=True):
            path = f"/jobs/{job_id}?wait={WAIT_S}"
            waiting.append(asyncio.create_task(connection.get(path)))
    # Until the last of them has looked at its job and gone to sleep.
    await asyncio.sleep(SETTLE_S)
    return waiting


async def _row(name: str, waiting: int, place: Place, path: str, requests: int) -> None:
    # Its own: gunicorn closes a connection that was idle for two seconds.
    connection = await Connection.open(place)
    taken = []
    for _ in range(requests):
        began = time.perf_counter()
        await connection.get(path)
        taken.append(1000 * (time.perf_counter() - began))
    connection.close()
    p50, p99 = np.percentile(taken, (50, 99))
    print(f"{name:<16}{waiting:>10}{p50:>9.2f} ms{p99:>9.2f} ms{max(taken):>9.2f} ms", flush=True)


def _ending(job_id: str) -> Ending:
    vectors = np.full((1, 384), 0.05, dtype=np.float32)
    result = payload(Outcome("all-MiniLM-L6-v2", vectors, prompt_tokens=8), "base64")
    return Ending(
        job_id, Status.SUCCEEDED, meta=success_meta(job_id, result, {}), prompt_tokens=8, texts=1
    )


if __name__ == "__main__":
    main()
