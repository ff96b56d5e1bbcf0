"""`python -m bench.soak takeover`: kill a worker with many leased jobs; another runs them all.

The first worker's device hangs in its first batch, so that the worker completes no job.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import redis

from bench.costless import expected
from bench.soak.audit import leftovers, outcomes, wait_for_empty
from bench.soak.paced import PAUSES, SHORTEST
from bench.soak.stage import QUEUE, Stage
from tests.processes import eventually
from worker.contract import keys, messages
from worker.contract.jobs import DEFAULT_OPTIONS

#: Seconds for all of the jobs to end.
_PATIENCE = 180
#: Milliseconds of a forward pass that does not end.
_FOR_EVER = 3_600_000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak takeover", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2_000, help="that the killed worker holds")
    parser.add_argument("--lease-seconds", type=int, default=12, help="EMBEDQ_LEASE_SECONDS")
    parser.add_argument("--first-within", type=float, default=15, help="seconds")
    parser.add_argument("--most-pause", type=float, default=0.5, help="seconds of the loop")
    options = parser.parse_args(arguments)
    stage = Stage(
        workers=0,
        transport="embedq",
        app="bench.soak.paced",
        forward_ms=0,
        api=False,
        env={
            "EMBEDQ_LEASE_SECONDS": str(options.lease_seconds),
            "EMBEDQ_BATCH_TOKENS": "16384",
        },
    )
    try:
        report = _soak(stage, options)
    finally:
        stage.close()
    print(json.dumps(report, indent=2))
    return 1 if report["violations"] else 0


def _soak(stage: Stage, options: argparse.Namespace) -> dict[str, Any]:
    with stage.client() as client:
        stage.env["EMBEDQ_BENCH_FORWARD_MS"] = str(_FOR_EVER)
        doomed = stage.start_worker()
        jobs = _submit(client, options.jobs)
        eventually(lambda: client.hlen(keys.LEASED) == len(jobs), 60, message=doomed.log)
        stage.env["EMBEDQ_BENCH_FORWARD_MS"] = "0"
        survivor = stage.start_worker()
        held = client.hlen(keys.LEASED)
        doomed.kill()
        killed, clock = time.monotonic(), time.time()
        first = _wait_until_ended(client, jobs, 1) - killed
        last = _wait_until_ended(client, jobs, len(jobs)) - killed
        wait_for_empty(client, QUEUE)
        counts = outcomes(client, jobs, expected)
        pauses = [json.loads(raw) for raw in client.lrange(PAUSES, 0, -1)]
        longest = max((pause for pid, at, pause in pauses if at > clock), default=0.0)
        report = {
            "accepted": len(jobs),
            "leased when it was killed": held,
            "right": counts.pop("right", 0),
            **counts,
            "seconds until the first had run": round(first, 1),
            "seconds until all had run": round(last, 1),
            "longest pause of the other's loop, seconds": round(max(longest, SHORTEST), 3),
            "the other one lives": survivor.running,
            "left": leftovers(client, QUEUE),
        }
        found = {
            "not all jobs ran elsewhere": report["right"] != len(jobs),
            "the killed worker did not hold them all": held != len(jobs),
            "the first ran too late": first > options.first_within,
            "the loop paused for too long": longest > options.most_pause,
            "the other worker died": not survivor.running,
            "something is left": any(report["left"].values()),
        }
        return report | {"violations": [name for name, is_so in found.items() if is_so]}


def _submit(client: redis.Redis, count: int) -> dict[str, list[str]]:
    """Send jobs in a stock producer's way, one text each."""
    jobs = {messages.new_id(): [f"text {number}"] for number in range(count)}
    with client.pipeline(transaction=False) as pipe:
        for job_id, texts in jobs.items():
            pipe.lpush(QUEUE, messages.envelope(job_id, texts, DEFAULT_OPTIONS, QUEUE))
        pipe.execute()
    return jobs


def _wait_until_ended(client: redis.Redis, jobs: dict[str, list[str]], count: int) -> float:
    """Wait until `count` jobs have an outcome, or a timeout; return the time."""
    names = [keys.result(job_id) for job_id in jobs]
    timer = threading.Event()
    deadline = time.monotonic() + _PATIENCE
    while client.exists(*names) < count and time.monotonic() < deadline:
        timer.wait(0.05)
    return time.monotonic()
