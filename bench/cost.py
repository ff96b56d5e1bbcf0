"""Processor time of a request over REST, by process, with a model that costs nothing.

The remaining cost of a one-text job is the API, Redis, the worker's bookkeeping and the callers'
own client. Processor time also depends on other load on the machine, but by a fifth and not by
several times, so compare only figures of runs in turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import redis

from bench.load import Load
from bench.report import Options, Table, progress, run
from bench.stage import cpu_seconds, stage
from bench.texts import texts

_CALLERS = 64
_REQUESTS = 4_000
#: The dimensions of the packaged model's vectors.
_DIMENSIONS = "384"
_KINDS = {"rest": "POST /jobs, Prefer: wait", "openai": "POST /v1/embeddings"}
_PATHS = {"rest": "", "openai": "/v1/embeddings"}


def main(options: Options) -> list[Table]:
    count = _REQUESTS // (4 if options.quick else 1)
    pool = texts("short", 512)
    # All texts differ: equal requests that run at the same time share a job.
    given = [f"{number} {pool[number % len(pool)]}" for number in range(count)]
    table = Table(
        f"Processor time, µs a request: one text, {_CALLERS} callers, a model that costs nothing",
        ["request", "API", "Valkey", "worker", "callers", "all", "requests/s", "Redis commands"],
    )
    with stage() as processes, processes.valkey.client() as client:
        worker = processes.worker(
            app="bench.costless", env={"EMBEDQ_BENCH_DIMENSIONS": _DIMENSIONS}
        )
        api = processes.api()
        assert processes.valkey.process is not None
        for kind, name in _KINDS.items():
            with Load(kind, api.url + _PATHS[kind]) as load:
                load(given[: count // 4], callers=_CALLERS)
                parts = {
                    "API": api.process.pid,
                    "Valkey": processes.valkey.process.pid,
                    "worker": worker.pid,
                    "callers": load.pid,
                }
                turns = []
                for number in range(1, options.rounds + 1):
                    progress(f"round {number} of {options.rounds}: {name}")
                    turns.append(_turn(load, given, parts, client))
            table.add(name, *(statistics.median(column) for column in zip(*turns, strict=True)))
    progress("")
    return [table]


def _turn(
    load: Load,
    given: Sequence[str],
    parts: Mapping[str, int],
    client: redis.Redis,
) -> list[float]:
    """Return µs a request by process and in all, requests a second, Redis commands a request."""
    before = {name: cpu_seconds(pid) for name, pid in parts.items()}
    client.config_resetstat()
    answer = load(given, callers=_CALLERS)
    calls = sum(stats["calls"] for stats in client.info("commandstats").values())
    micros = [(cpu_seconds(pid) - before[name]) / len(given) * 1e6 for name, pid in parts.items()]
    return [*micros, sum(micros), len(given) / answer.seconds, calls / len(given)]


if __name__ == "__main__":
    run("cost", main)
