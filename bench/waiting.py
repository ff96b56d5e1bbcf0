"""The slowdown of a fast request by a thousand waiting clients, or by sixty-four busy ones.

`python -m bench.waiting` starts a Valkey and the API under `gunicorn -k gevent`. It measures
`GET /healthz` and `GET /jobs/{id}` one after another on one connection: first alone, then during a
thousand connections that wait in `GET /jobs/{id}?wait=60`, each for its own job. Then all those
jobs end in one step, like the jobs of a batch, and every client must get its answer. Until then
there is no worker, so that only the client and the API use the machine's cores.

Then a worker starts, and 64 callers each submit a job, wait for its vectors and take the next. The
worker's costless model sleeps for the packaged model's time on two cores, so that the API is
equally busy.
"""

from __future__ import annotations

import asyncio
import functools
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import orjson

from bench.load import Load, loads
from bench.measure import percentile
from bench.report import Options, Table, run
from bench.stage import Stage, stage
from bench.texts import texts
from tests.processes import START_TIMEOUT_S, Api, answers, eventually, start_api
from worker.contract import messages
from worker.contract.jobs import Status
from worker.contract.outcomes import Outcome
from worker.contract.results import payload, success_meta
from worker.store.jobs import Completion, JobRequest, JobStore

QUEUE = "embedq"
WAIT_S = 60
CONNECT_AT_ONCE = 50
SETTLE_S = 2
BUSY = 64
#: Milliseconds of a batch of one text of every busy caller: some 300 jobs a second.
FORWARD_MS = 200


@dataclass(frozen=True)
class Place:
    """The API's address and the job store."""

    host: str
    port: int
    store: JobStore
    #: Keeps the callers busy during a block; yields their total.
    busy: Callable[[], AbstractContextManager[Total]]


@dataclass
class Total:
    """Completed jobs of the busy callers, and the seconds that they took."""

    jobs: int = 0
    seconds: float = 0.0


class Connection:
    """One keep-alive connection that sends a request and reads its answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, place: Place) -> Connection:
        return cls(*await asyncio.open_connection(place.host, place.port))

    async def get(self, path: str) -> bytes:
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        return await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


def main(options: Options) -> list[Table]:
    clients, requests = (200, 500) if options.quick else (1000, 2000)
    # One socket for each client, and a few more.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2 * clients + 256, hard), hard))
    table = Table(
        f"A request beside {clients:,} clients that wait and {BUSY} that are busy, milliseconds",
        ["request", "beside it", "p50", "p99", "longest"],
    )
    with running(clients) as place:
        asyncio.run(measure(place, clients, requests, table))
        asyncio.run(measure_busy(place, requests // 2, table))
    return [table]


@contextmanager
def running(clients: int) -> Iterator[Place]:
    with stage(persistent=False) as processes, processes.valkey.client() as client:
        room = str(clients + 100)
        api = start_api(processes.processes, processes.url, "--worker-connections", room)
        parts = urlsplit(api.url)
        store = JobStore(client, QUEUE, result_ttl=3600)
        busy = functools.partial(_busy, processes, api)
        yield Place(parts.hostname or "", parts.port or 0, store, busy)


@contextmanager
def _busy(processes: Stage, api: Api) -> Iterator[Total]:
    processes.worker(app="bench.costless", env={"EMBEDQ_BENCH_FORWARD_MS": str(FORWARD_MS)})
    eventually(lambda: answers(api, "/readyz"), START_TIMEOUT_S)
    total, ending, begun = Total(), threading.Event(), threading.Event()

    def run(call: Load) -> None:
        while not ending.is_set():
            answer = call(given, callers=BUSY)
            total.jobs += len(answer.waits)
            total.seconds += answer.seconds
            begun.set()

    given = texts("short", 10 * BUSY)
    with loads(rest=api.url) as callers:
        thread = threading.Thread(target=run, args=(callers["rest"],))
        thread.start()
        try:
            begun.wait()
            yield total
        finally:
            ending.set()
            thread.join()


async def measure(place: Place, clients: int, requests: int, table: Table) -> None:
    ids = [messages.new_id() for _ in range(clients)]
    for job_id in ids:
        place.store.submit(JobRequest(job_id, total=1, tokens=8, result_bytes=100))
    paths = {"GET /healthz": "/healthz", "GET /jobs/{id}": f"/jobs/{ids[0]}"}
    for name, path in paths.items():
        table.add(name, "nobody", *await _times(place, path, requests))
    waiting = await _wait_for_all(place, ids)
    for name, path in paths.items():
        table.add(name, f"{clients:,} that wait", *await _times(place, path, requests))
    assert not any(task.done() for task in waiting), "somebody was answered before the job ended"

    began = time.perf_counter()
    place.store.complete([_ending(job_id) for job_id in ids])
    statuses = [orjson.loads(body)["status"] for body in await asyncio.gather(*waiting)]
    seconds = time.perf_counter() - began
    assert statuses == ["succeeded"] * clients, statuses
    table.notes.append(
        f"all {clients:,} jobs ended at once; the last of their clients had its answer "
        f"{1000 * seconds:.0f} ms later"
    )


async def measure_busy(place: Place, requests: int, table: Table) -> None:
    job_id = messages.new_id()
    place.store.submit(JobRequest(job_id, total=1, tokens=8, result_bytes=100))
    with place.busy() as total:
        for name, path in {"GET /healthz": "/healthz", "GET /jobs/{id}": f"/jobs/{job_id}"}.items():
            table.add(name, f"{BUSY} that are busy", *await _times(place, path, requests))
    table.notes.append(f"the busy ones had {total.jobs / total.seconds:.0f} jobs a second")


async def _wait_for_all(place: Place, ids: Sequence[str]) -> list[asyncio.Task[bytes]]:
    """Start a waiting client for each job; return when the API knows all of them."""
    waiting: list[asyncio.Task[bytes]] = []
    for start in range(0, len(ids), CONNECT_AT_ONCE):
        part = ids[start : start + CONNECT_AT_ONCE]
        connections = await asyncio.gather(*(Connection.open(place) for _ in part))
        for connection, job_id in zip(connections, part, strict=True):
            path = f"/jobs/{job_id}?wait={WAIT_S}"
            waiting.append(asyncio.create_task(connection.get(path)))
    # Wait until the last client's request has read its job and sleeps.
    await asyncio.sleep(SETTLE_S)
    return waiting


async def _times(place: Place, path: str, requests: int) -> tuple[float, float, float]:
    # A new connection: gunicorn closes connections after two idle seconds.
    connection = await Connection.open(place)
    taken = []
    for _ in range(requests):
        began = time.perf_counter()
        await connection.get(path)
        taken.append(1000 * (time.perf_counter() - began))
    connection.close()
    return percentile(taken, 50), percentile(taken, 99), max(taken)


def _ending(job_id: str) -> Completion:
    vectors = np.full((1, 384), 0.05, dtype=np.float32)
    result = payload(Outcome("all-MiniLM-L6-v2", vectors, prompt_tokens=8), "base64")
    return Completion(
        job_id, Status.SUCCEEDED, meta=success_meta(job_id, result, {}), prompt_tokens=8, texts=1
    )


if __name__ == "__main__":
    run("waiting", main)
