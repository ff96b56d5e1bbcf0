"""Drift of resource use over days of acks and reconnects, compressed into minutes.

`python -m bench.soak.drift` sends a million jobs through one worker with a costless model, and
drops all of its connections every five thousand jobs. After each tenth the worker finishes its
jobs, and the soak reads the leases, the tokens in the ledger, the worker's waiting tokens, and its
memory, threads, descriptors and Redis clients. The values at the end must match those at half.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

import orjson
import psutil
import redis

from bench.report import Table
from bench.stage import stage
from tests.processes import Process, eventually
from worker.contract import estimates, keys, messages
from worker.contract.jobs import DEFAULT_OPTIONS
from worker.contract.lanes import lists_of
from worker.store.jobs import JobRequest, JobStore

QUEUE = "drift"
MARKS = 10
#: Jobs of one spurt; the connections are dropped after each.
SPURT = 5_000
#: Seconds for the jobs of one spurt, and for the worker to report that no tokens wait.
PATIENCE = 120
#: Allowed growth of memory in the second half of the jobs: 17 bytes for each of half a million. In
#: the first half the allocator and tables of bounded size still fill.
MOST_GROWTH_MIB = 8
#: Allowed difference of pooled connections between two readings.
MOST_CONNECTIONS = 8
LOOKED_AT = ("leased", "ledger", "waiting", "MiB", "threads", "fds", "clients")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak.drift", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="in all")
    options = parser.parse_args(arguments)
    table, steady = drift(options.jobs)
    print(table.text())
    print("nothing has drifted" if steady else "SOMETHING HAS DRIFTED")
    return 0 if steady else 1


def drift(jobs: int) -> tuple[Table, bool]:
    """Return the readings as a table, and whether the last one matches that at half of the jobs."""
    table = Table(
        f"{jobs:,} jobs, connections dropped every {SPURT:,}",
        ["jobs", "reconnects", "jobs/s", *LOOKED_AT],
    )
    looks: list[dict[str, float]] = []
    with stage(persistent=False) as processes, processes.valkey.client() as client:
        env = {"EMBEDQ_QUEUE": QUEUE, "EMBEDQ_RESULT_TTL": "5"}
        worker = processes.worker(app="bench.costless", env=env)
        spurts = max(jobs // SPURT, MARKS)
        began, done = time.perf_counter(), 0
        for spurt in range(1, spurts + 1):
            _send(client, SPURT)
            _drop_connections(client)
            _wait_until_done(client, worker)
            done += SPURT
            if spurt % (spurts // MARKS) == 0:
                look = _look(client, worker)
                seconds = time.perf_counter() - began
                table.add(done, spurt, done / seconds, *look.values())
                looks.append(look)
    return table, _is_steady(looks[len(looks) // 2 - 1], looks[-1])


def _send(client: redis.Redis, jobs: int) -> None:
    """Send messages in a stock producer's way, and every tenth with a record, in the API's way."""
    store = JobStore(client, QUEUE, result_ttl=5)
    pipe = client.pipeline(transaction=False)
    for at in range(jobs):
        job_id = messages.new_id()
        message = messages.envelope(job_id, ["text"], DEFAULT_OPTIONS, QUEUE)
        if at % 10 == 0:
            store.submit(JobRequest(job_id, 1, estimates.tokens(["text"]), 100, message=message))
            continue
        pipe.lpush(QUEUE, message)
        if len(pipe) == 500:
            pipe.execute()
    pipe.execute()


def _drop_connections(client: redis.Redis) -> None:
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_kill_filter(_type="pubsub", skipme=True)


def _wait_until_done(client: redis.Redis, worker: Process) -> None:
    def done() -> bool:
        return not (client.exists(*lists_of(QUEUE)) or client.hlen(keys.LEASED))

    eventually(done, PATIENCE, message=worker.log)


def _look(client: redis.Redis, worker: Process) -> dict[str, float]:
    said: Mapping[str, float] = {}

    def rests() -> bool:
        nonlocal said
        (raw,) = client.hvals(keys.workers(QUEUE)) or (b"{}",)
        said = orjson.loads(raw)
        return said.get("waiting_tokens") == 0

    eventually(rests, PATIENCE, message=worker.log)
    process = psutil.Process(worker.pid)
    return {
        "leased": int(client.hlen(keys.LEASED)),
        "ledger": int(client.hget(keys.ledger(QUEUE), "tokens") or 0),
        "waiting": said["waiting_tokens"],
        "MiB": process.memory_info().rss / 2**20,
        "threads": process.num_threads(),
        "fds": process.num_fds(),
        "clients": int(client.info("clients")["connected_clients"]),
    }


def _is_steady(half: Mapping[str, float], last: Mapping[str, float]) -> bool:
    """Return whether no lease or token remains and the resources grew within their bounds."""
    return (
        not (last["leased"] or last["waiting"] or last["ledger"])
        and last["MiB"] - half["MiB"] <= MOST_GROWTH_MIB
        and last["threads"] <= half["threads"] + 1
        and last["fds"] <= half["fds"] + MOST_CONNECTIONS
        and last["clients"] <= half["clients"] + MOST_CONNECTIONS
    )


if __name__ == "__main__":
    sys.exit(main())
