"""A caller who waits, alone, beside a deep bulk queue, and beside another owner's flood.

The caller asks over REST, one small job after another. What is beside it is submitted the way the
API and the batches' coordinator do it, by a thread that keeps the queue deep.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import orjson
import redis

from api.submission import LANE_SHARE
from bench.load import loads
from bench.measure import percentile
from bench.report import Options, Table, run
from bench.stage import stage
from bench.texts import texts
from worker.contract import estimates, keys, messages
from worker.contract.jobs import DEFAULT_OPTIONS
from worker.contract.lanes import Lane, lists_of
from worker.contract.liveness import Liveness
from worker.contract.store import Bounds, JobStore, NewJob

_QUEUE = "embedq"
#: Texts of a job beside the caller's, and jobs that wait at any time.
_TEXTS, _DEPTH = 16, 1_000
#: The caller's jobs of one turn, turns, and seconds between two jobs.
_JOBS, _TURNS, _PAUSE = 40, 2, 0.02
_BESIDE = {
    "alone": None,
    "beside a deep bulk queue": Lane.BULK,
    "beside another owner's flood": Lane.INTERACTIVE,
}


def main(options: Options) -> list[Table]:
    table = Table(
        "A caller who waits, milliseconds a job",
        ["texts a job", "", "p50", "p95", "p50 × alone", "p95 × alone", "a batch takes"],
    )
    with stage() as processes, processes.valkey.client() as client:
        processes.worker()
        api = processes.api()
        with loads(rest=api.url) as callers:
            callers["rest"](texts("short", 64), callers=8)
            for size in (1, 16):
                waits: dict[str, list[float]] = {name: [] for name in _BESIDE}
                batches: dict[str, list[float]] = {name: [] for name in _BESIDE}
                for turn in range(_TURNS // (2 if options.quick else 1)):
                    given = texts("short", _JOBS * size, seed=10 + turn)
                    for name, lane in _BESIDE.items():
                        with _beside(client, lane), _batch_time(client, batches[name]):
                            answer = callers["rest"](given, texts_a_job=size, pause=_PAUSE)
                        waits[name] += answer.waits
                alone = waits["alone"]
                for name, seconds in waits.items():
                    p50, p95 = percentile(seconds, 50), percentile(seconds, 95)
                    table.add(
                        *(size, name, p50 * 1000, p95 * 1000),
                        *(p50 / percentile(alone, 50), p95 / percentile(alone, 95)),
                        percentile(batches[name], 50) * 1000,
                    )
    return [table]


@contextmanager
def _beside(client: redis.Redis, lane: Lane | None) -> Iterator[None]:
    """Keep the queue deep with jobs of another owner that ask for `lane`."""
    if lane is None:
        yield
        return
    store = JobStore(client, _QUEUE, result_ttl=60)
    [model] = Liveness(client, _QUEUE).workers().models.values()
    parts = _parts()
    stopping, deep = threading.Event(), threading.Event()

    def submit() -> None:
        while not stopping.is_set():
            if store.depth().queued >= _DEPTH:
                deep.set()
                stopping.wait(0.01)
                continue
            part = next(parts)
            tokens = estimates.tokens(part, model.max_tokens)
            job = NewJob(
                messages.new_id(), len(part), tokens, 1, model.name, owner="other", lane=lane
            )
            message = messages.envelope(
                job.id, part, DEFAULT_OPTIONS, _QUEUE, lane=lane, owner=job.owner
            )
            store.submit(job, message, Bounds(lane_share=LANE_SHARE * model.batch_tokens))

    with ThreadPoolExecutor(1) as executor:
        submitting = executor.submit(submit)
        submitting.add_done_callback(lambda _: deep.set())
        try:
            deep.wait()
            yield
        finally:
            stopping.set()
        # Raises what ended it before its time.
        submitting.result()
        client.delete(*lists_of(_QUEUE))
        while client.hlen(keys.LEASED):
            deep.clear()
            deep.wait(0.05)
        client.delete(keys.ledger(_QUEUE))


@contextmanager
def _batch_time(client: redis.Redis, seconds: list[float]) -> Iterator[None]:
    """The mean time of the batches in the block, as the worker's own words tell."""
    before = _busy(client)
    yield
    busy, batches = (after - earlier for after, earlier in zip(_busy(client), before, strict=True))
    if batches:
        seconds.append(busy / batches)


def _busy(client: redis.Redis) -> tuple[float, int]:
    [presence] = map(orjson.loads, client.hgetall(keys.workers(_QUEUE)).values())
    return presence["busy_seconds"], presence["batches"]


def _parts() -> Iterator[list[str]]:
    pool = texts("short", 4096, seed=5)
    while True:
        for at in range(0, len(pool), _TEXTS):
            yield pool[at : at + _TEXTS]


if __name__ == "__main__":
    run("lanes", main)
