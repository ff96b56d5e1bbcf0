"""`python -m bench.soak full`: load past Redis's memory, and foreign keys that fill it.

A run has a Valkey with `maxmemory` and no eviction, two workers and the API; results are as large
as a model's and expire soon. Callers over REST and of the Celery task submit more than the memory
can hold. From time to time keys of another application fill the memory. At the end all jobs must
be served again.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import redis

from bench.costless import expected
from bench.soak.audit import leftovers, unasked, wait_for_empty
from bench.soak.load import Load, RestCaller
from bench.soak.stage import QUEUE, Stage
from bench.soak.watch import Auditor, MemoryGauge
from tests.processes import eventually
from worker.store.completions import RESERVE

#: Dimensions of a vector, a common value of models.
DIMENSIONS = 384
#: MiB allowed beyond `maxmemory` and the reserve, for connections and a running script.
_UNDER_WAY = 8
#: Seconds for all accepted jobs to end after the load, in addition to the results' time to live.
_PATIENCE = 120
#: Consecutive jobs that must be served over REST at the end.
_SERVED = 20
#: Bytes of a filler's values, largest first.
_PIECES = (2**20, 2**16, 2**12)
_FILLER = "bench:filler"


@dataclass(frozen=True)
class Plan:
    """The duration, memory and load of a run."""

    seconds: float
    maxmemory_mb: int
    #: Memory for results, MB; None: the API's default.
    result_mb: int | None
    result_ttl: int
    fillers: int
    filler_seconds: float
    rest: int
    direct: int


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    plan = Plan(
        options.seconds,
        options.maxmemory_mb,
        options.result_mb,
        options.result_ttl,
        options.fillers,
        options.filler_seconds,
        options.rest,
        options.direct,
    )
    report = soak(plan, seed=seed)
    print(json.dumps(report, indent=2))
    return 1 if report["violations"] else 0


def soak(plan: Plan, *, seed: int) -> dict[str, Any]:
    """Do one run; return the answers to callers, the outcomes of their jobs and the memory use."""
    stage = Stage(
        workers=2,
        transport="embedq",
        app="bench.costless",
        forward_ms=1,
        owners=3,
        valkey_options=("--maxmemory", f"{plan.maxmemory_mb}mb"),
        env={
            "EMBEDQ_RESULT_TTL": str(plan.result_ttl),
            "EMBEDQ_BENCH_DIMENSIONS": str(DIMENSIONS),
            **({"EMBEDQ_MAX_RESULT_MB": str(plan.result_mb)} if plan.result_mb else {}),
        },
    )
    try:
        return _Run(stage, plan, seed).report()
    finally:
        stage.close()


class _Run:
    """The steps of one run, in the calling thread."""

    def __init__(self, stage: Stage, plan: Plan, seed: int) -> None:
        self._stage = stage
        self._plan = plan
        self._expected = functools.partial(expected, dimensions=DIMENSIONS)
        self._load = Load(
            stage,
            rest=plan.rest,
            direct=plan.direct,
            pause=0.02,
            seed=seed,
            expected=self._expected,
            most_texts=120,
        )
        self._accepted = self._load.accepted
        self._auditor = Auditor(stage, self._accepted, self._expected)
        self._gauge = MemoryGauge(stage)
        self._caller = RestCaller(stage, self._accepted, self._expected, 0)
        self._timer = threading.Event()
        self._probes = 0

    def report(self) -> dict[str, Any]:
        began = time.monotonic()
        self._auditor.start()
        self._gauge.start()
        self._load.start()
        fillers = []
        for _ in range(self._plan.fillers):
            self._timer.wait(self._plan.seconds / (self._plan.fillers + 1))
            fillers.append(self._fill())
        self._timer.wait(max(began + self._plan.seconds - time.monotonic(), 0))
        self._load.stop()
        lost = self._wait_for_outcomes()
        served_after = self._wait_until_served()
        self._gauge.close()
        self._auditor.close()
        with self._stage.client() as client:
            wait_for_empty(client, QUEUE)
            left = leftovers(client, QUEUE)
            twice = max(unasked(client, QUEUE, self._accepted.ids) - self._accepted.unknown, 0)
        accepted, counts = self._accepted, self._auditor.counts + self._accepted.answered
        report = {
            "seconds": round(time.monotonic() - began),
            "accepted": accepted.total,
            "right": counts.pop("right", 0),
            "lost": lost,
            **counts,
            "answers": dict(accepted.answers.most_common()),
            "improper answers": accepted.improper[:5],
            "keys that stood for two jobs": accepted.twice + twice,
            "unknown to the caller": accepted.unknown,
            "memory": {
                "maxmemory MB": self._plan.maxmemory_mb,
                "most allowed MB": _most_mb(self._plan.maxmemory_mb),
                "highest MB": round(self._gauge.highest / 2**20, 1),
                "share of the time full": round(self._gauge.share_full, 3),
            },
            "fillers": fillers,
            "seconds until all was served again": served_after,
            "left": left,
        }
        return report | {"violations": self._violations(report)}

    def _fill(self) -> dict[str, Any]:
        """Fill the memory for a while; return the refused probes and the seconds of recovery."""
        with self._stage.client() as client, _filled(client):
            refused = 0
            deadline = time.monotonic() + self._plan.filler_seconds
            while time.monotonic() < deadline:
                refused += self._probe() is None
                self._timer.wait(0.2)
            ended = self._auditor.ended
        began = time.monotonic()
        eventually(lambda: self._auditor.ended > ended, _PATIENCE)
        return {
            "probes refused": refused,
            "seconds until jobs ended again": round(time.monotonic() - began, 1),
        }

    def _probe(self) -> str | None:
        self._probes += 1
        return self._caller.submit(f"probe-{self._probes}", [f"probe {self._probes}"])

    def _wait_for_outcomes(self) -> int:
        """Wait for outcomes; return the number of jobs without one."""
        deadline = time.monotonic() + self._plan.result_ttl + _PATIENCE
        while time.monotonic() < deadline and self._accepted.jobs:
            self._timer.wait(0.2)
        return len(self._accepted.jobs)

    def _wait_until_served(self) -> float | None:
        """Return the seconds until successive jobs are accepted and end, or None on a timeout."""
        began = time.monotonic()
        served = 0
        while served < _SERVED:
            if time.monotonic() > began + self._plan.result_ttl + _PATIENCE:
                return None
            served = served + 1 if self._probe() is not None else 0
            self._timer.wait(0.05 if served else 0.5)
        self._wait_for_outcomes()
        return round(time.monotonic() - began, 1)

    def _violations(self, report: dict[str, Any]) -> list[str]:
        bound = _most_mb(self._plan.maxmemory_mb)
        left = {name: count for name, count in report["left"].items() if count}
        found = {
            "jobs are lost": report["lost"],
            "jobs ended wrong": report["right"] + report["lost"] != report["accepted"],
            "callers saw other answers than 200, 202 and a proper 503": self._accepted.improper,
            "a key stood for two jobs": report["keys that stood for two jobs"],
            "memory went beyond its bound": report["memory"]["highest MB"] > bound,
            "the load did not reach the bound": not (
                self._accepted.refused and report["memory"]["share of the time full"]
            ),
            "nothing was refused while Redis was full": not all(
                filler["probes refused"] for filler in report["fillers"]
            ),
            "not all is served again": report["seconds until all was served again"] is None,
            f"something is left: {left}": left,
        }
        return [name for name, is_so in found.items() if is_so]


def _most_mb(maxmemory_mb: int) -> float:
    """Return the server's maximum: `maxmemory`, the workers' reserve for outcomes, `_UNDER_WAY`."""
    return maxmemory_mb + max(RESERVE / 2**20, maxmemory_mb / 20) + _UNDER_WAY


@contextmanager
def _filled(client: redis.Redis) -> Iterator[None]:
    """Fill the memory with foreign keys during the block, also memory that becomes free."""
    stopping = threading.Event()

    def fill() -> None:
        number = 0
        while not stopping.wait(0.02):
            for size in _PIECES:
                try:
                    while not stopping.is_set():
                        client.set(f"{_FILLER}:{number}", bytes(size))
                        number += 1
                except redis.OutOfMemoryError:
                    continue

    thread = threading.Thread(target=fill, name="filler", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        for key in cast("Iterator[bytes]", client.scan_iter(f"{_FILLER}:*", count=1000)):
            client.unlink(key)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.soak full", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of load")
    parser.add_argument("--maxmemory-mb", type=int, default=200, help="memory of the server")
    parser.add_argument("--result-mb", type=int, help="that results may hold (default: half)")
    parser.add_argument("--result-ttl", type=int, default=60, help="seconds that results are kept")
    parser.add_argument("--fillers", type=int, default=3, help="times that a key fills the server")
    parser.add_argument("--filler-seconds", type=float, default=15, help="each time")
    parser.add_argument("--rest", type=int, default=4, help="callers over REST")
    parser.add_argument("--direct", type=int, default=4, help="callers of the Celery task")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run's load")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
