"""Jobs a second, and the worker's processor time for each, with a model that costs nothing.

The remaining cost is fetching, Celery's bookkeeping, the engine's threads, and results. It is
measured on this project's transport and pool, on kombu's transport, and on Celery's own pools. Jobs
are queued with their records before the clock starts, as in a burst.
"""

from __future__ import annotations

import functools
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import redis

from bench.measure import race
from bench.report import Options, Table, run
from bench.stage import Stage, cpu_seconds, resident_bytes, stage
from bench.texts import texts
from tests.processes import Process
from worker.contract import estimates, keys, messages
from worker.contract.jobs import DEFAULT_OPTIONS
from worker.store.jobs import JobRequest, JobStore

_BACKLOG = "bench:backlog"
_APP = "bench.costless"
#: Jobs of a short queue and of a very long one.
_FEW, _MANY = 1_000, 200_000


@dataclass(frozen=True)
class Contestant:
    """A way to run a worker, and the jobs of one turn: about two seconds' worth."""

    name: str
    jobs: int
    arguments: tuple[str, ...] = ()
    transport: str = "stock"


CONTESTANTS = (
    Contestant("stock transport, stock pool (prefork, 2 processes)", 2_000, ("-P", "prefork")),
    Contestant("stock transport, stock pool (solo)", 2_000, ("-P", "solo")),
    Contestant("stock transport, embedq's pool", 4_000),
    Contestant("embedq's transport and pool", 20_000, transport="embedq"),
)


def main(options: Options) -> list[Table]:
    share = 4 if options.quick else 1
    with stage() as processes, processes.valkey.client() as client:
        # Else Valkey rewrites its append-only file, mostly queueing's part, on a core of the turn.
        client.config_set("auto-aof-rewrite-percentage", 0)
        lines = [_Line(processes, client, one, share) for one in CONTESTANTS]
        ran = race({line.contestant.name: line.turn for line in lines}, options.rounds)
        table = Table(
            "One-text jobs with results, queued beforehand, through a model that costs nothing",
            ["worker", "jobs/s", "× first", "worker CPU µs a job", "Valkey CPU µs a job"],
        )
        for line in lines:
            name = line.contestant.name
            table.add(
                name,
                ran.rate(name, 1),
                ran.ratio(name),
                statistics.median(line.worker_micros) if line.worker_micros else None,
                statistics.median(line.valkey_micros) if line.valkey_micros else None,
            )
    return [table, _memory(_FEW, _MANY // (10 if options.quick else 1))]


class _Line:
    """One worker on a queue of its own."""

    def __init__(
        self, processes: Stage, client: redis.Redis, contestant: Contestant, share: int
    ) -> None:
        self.contestant = contestant
        self.worker_micros: list[float] = []
        self.valkey_micros: list[float] = []
        self._share = share
        self._client = client
        self._queue = f"bench{contestant.jobs}{'-'.join(contestant.arguments)}"
        self._store = JobStore(client, self._queue, result_ttl=60)
        assert processes.valkey.process is not None
        self._valkey = processes.valkey.process
        self._worker = processes.worker(
            *contestant.arguments,
            app=_APP,
            env={
                "EMBEDQ_QUEUE": self._queue,
                "EMBEDQ_BENCH_TRANSPORT": contestant.transport,
                "EMBEDQ_RESULT_TTL": "60",
            },
        )
        self._run(200)
        # Idle workers poll and exchange messages.
        self._worker.signal(signal.SIGSTOP)

    def turn(self) -> float:
        """Give the worker all jobs at once, with the others stopped. Return the seconds a job."""
        self._worker.signal(signal.SIGCONT)
        seconds = self._run(self.contestant.jobs // self._share, measured=True)
        self._worker.signal(signal.SIGSTOP)
        return seconds

    def _run(self, jobs: int, *, measured: bool = False) -> float:
        last = _fill(self._client, self._queue, _texts(jobs), self._store)
        before = cpu_seconds(self._worker.pid), cpu_seconds(self._valkey.pid)
        self._client.rename(_BACKLOG, self._queue)
        seconds = _wait(self._worker, lambda: _is_done(self._client, self._queue, last))
        if measured:
            after = cpu_seconds(self._worker.pid), cpu_seconds(self._valkey.pid)
            self.worker_micros.append((after[0] - before[0]) / jobs * 1e6)
            self.valkey_micros.append((after[1] - before[1]) / jobs * 1e6)
        return seconds / jobs


def _memory(few: int, many: int) -> Table:
    table = Table(
        "The worker's memory while it works a queue off", ["jobs queued", "jobs/s", "peak MiB"]
    )
    with stage(persistent=False) as processes, processes.valkey.client() as client:
        env = {"EMBEDQ_QUEUE": "memory", "EMBEDQ_RESULT_TTL": "5"}
        worker = processes.worker(app=_APP, env=env)
        peaks: list[int] = []

        def is_done(last: str) -> bool:
            peaks.append(resident_bytes(worker))
            return _is_done(client, "memory", last)

        for jobs in (few, few, many):
            last = _fill(client, "memory", _texts(jobs))
            peaks.clear()
            client.rename(_BACKLOG, "memory")
            seconds = _wait(worker, functools.partial(is_done, last))
            table.add(jobs, jobs / seconds, max(peaks) / 2**20)
    # The first turn only warms up.
    del table.rows[0]
    return table


def _fill(
    client: redis.Redis, queue: str, given: Iterator[str], store: JobStore | None = None
) -> str:
    """Put jobs on a list without consumers, and their records into the store if there is one.

    Returns the id of the last job.
    """
    job_id = ""
    pipe = client.pipeline(transaction=False)
    for text in given:
        job_id = messages.new_id()
        if store is not None:
            job = JobRequest(job_id, 1, estimates.tokens([text]), estimates.result_bytes(1))
            store.submit(job)
        pipe.lpush(_BACKLOG, messages.envelope(job_id, [text], DEFAULT_OPTIONS, queue))
        if len(pipe) == 500:
            pipe.execute()
    pipe.execute()
    return job_id


def _is_done(client: redis.Redis, queue: str, last: str) -> bool:
    """Return whether no job waits or runs and the last one has its result."""
    with client.pipeline() as pipe:
        pipe.llen(queue)
        pipe.hlen(keys.LEASED)
        pipe.exists(keys.result(last))
        return pipe.execute() == [0, 0, 1]


def _texts(count: int) -> Iterator[str]:
    pool: Sequence[str] = texts("short", 512)
    return (pool[at % len(pool)] for at in range(count))


def _wait(worker: Process, done: Callable[[], bool]) -> float:
    """Return the seconds until `done`, checked fifty times a second."""
    pause = threading.Event()
    began = time.perf_counter()
    while not done():
        assert worker.running, worker.log()
        assert time.perf_counter() - began < 300, f"stuck:\n{worker.log()}"
        pause.wait(0.02)
    return time.perf_counter() - began


if __name__ == "__main__":
    run("overhead", main)
