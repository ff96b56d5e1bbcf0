"""One waiting caller: alone, with a deep bulk queue, and with another tenant's flood.

The caller submits one small job after another over REST. A thread submits the other jobs in the
way of the API and the coordinator of batches, and keeps the queue deep. Its rate counts the texts
that the worker has encoded, before the caller starts and during the caller's turn.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import cast

import orjson
import redis

from api.submission import LANE_SHARE
from bench.load import loads
from bench.measure import percentile
from bench.report import Options, Table, run
from bench.stage import stage
from bench.texts import texts
from worker.contract import keys
from worker.contract.jobs import DEFAULT_OPTIONS
from worker.contract.lanes import Lane, lists_of
from worker.store.jobs import JobRequest, JobStore, QueueCapacity
from worker.store.worker_registry import WorkerRegistry

_QUEUE = "embedq"
#: Texts of one of the other's jobs, and the number of jobs kept in the queue.
_TEXTS, _DEPTH = 16, 1_000
#: The caller's jobs of one turn, turns, and seconds between two jobs.
_JOBS, _TURNS, _PAUSE = 80, 3, 0.02
#: Seconds of the measurement of the other's rate without the caller.
_ALONE_S = 4.0
#: The caller's jobs: a set of texts, and texts of a job.
_CALLERS = (("short", 1), ("mixed", 1), ("short", 16))
_BESIDE = {
    "alone": None,
    "beside a deep bulk queue": Lane.BULK,
    "beside another owner's flood": Lane.INTERACTIVE,
}


def main(options: Options) -> list[Table]:
    table = Table(
        "A caller who waits, milliseconds a job; the other's texts a second",
        [
            *("caller's job", "", "p50", "p95", "p50 × alone", "p95 × alone", "a batch takes"),
            *("other's texts/s", "× without caller"),
        ],
    )
    with stage() as processes, processes.valkey.client() as client:
        processes.worker()
        api = processes.api()
        with loads(rest=api.url) as callers:
            callers["rest"](texts("short", 64), callers=8)
            for name, size in _CALLERS:
                turns: dict[str, list[_Turn]] = {beside: [] for beside in _BESIDE}
                for number in range(1 if options.quick else _TURNS):
                    given = texts(name, _JOBS * size, seed=10 + number)
                    for beside, lane in _BESIDE.items():
                        with _beside(client, lane):
                            turn = _Turn(client, len(given) if lane is not None else None)
                            with turn:
                                answer = callers["rest"](given, texts_a_job=size, pause=_PAUSE)
                            turn.waits = answer.waits
                        turns[beside].append(turn)
                _add(table, f"{size} {name}", turns)
    return [table]


def _add(table: Table, job: str, turns: dict[str, list[_Turn]]) -> None:
    alone = [wait for turn in turns["alone"] for wait in turn.waits]
    for beside, own in turns.items():
        waits = [wait for turn in own for wait in turn.waits]
        p50, p95 = percentile(waits, 50), percentile(waits, 95)
        rates = [turn.rate for turn in own if turn.rate is not None]
        shares = [turn.share for turn in own if turn.share is not None]
        table.add(
            *(job, beside, p50 * 1000, p95 * 1000),
            *(p50 / percentile(alone, 50), p95 / percentile(alone, 95)),
            median(turn.batch_seconds for turn in own) * 1000,
            *(median(rates) if rates else None, median(shares) if shares else None),
        )


class _Turn:
    """The measurements of a block: the waits of the caller, and the other's rate."""

    def __init__(self, client: redis.Redis, texts_of_caller: int | None) -> None:
        """`texts_of_caller`: the number of the caller's texts, or None if the caller is alone."""
        self.waits: Sequence[float] = ()
        self.batch_seconds = 0.0
        self.rate: float | None = None
        #: The rate during the caller's turn as a fraction of the rate before it.
        self.share: float | None = None
        self._client = client
        self._texts = texts_of_caller

    def __enter__(self) -> None:
        self._began = _figures(self._client)
        if self._texts is not None:
            before, self._began = self._began, _figures(self._client, after=_ALONE_S)
            self._before = _rate(before, self._began)

    def __exit__(self, *_: object) -> None:
        ended = _figures(self._client)
        batches = ended["batches"] - self._began["batches"]
        self.batch_seconds = (ended["busy_seconds"] - self._began["busy_seconds"]) / max(batches, 1)
        if self._texts is not None:
            self.rate = _rate(self._began, ended, self._texts)
            self.share = self.rate / self._before


class _Other:
    """Another tenant's jobs, submitted by a thread so that the queue stays deep."""

    def __init__(self, client: redis.Redis, lane: Lane) -> None:
        self._store = JobStore(client, _QUEUE, result_ttl=60)
        [self._model] = WorkerRegistry(client, _QUEUE).workers().models.values()
        self._lane = lane
        self._stopping, self._deep = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the thread; return when the queue is deep."""
        self._thread.start()
        self._deep.wait()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        if self._error is not None:
            raise RuntimeError("the other owner's jobs were not submitted") from self._error

    def _run(self) -> None:
        try:
            parts = _parts()
            while not self._stopping.is_set():
                if self._store.depth().queued >= _DEPTH:
                    self._deep.set()
                    self._stopping.wait(0.01)
                    continue
                self._submit(next(parts))
        except BaseException as error:  # noqa: BLE001 - raised by `stop`
            self._error = error
        finally:
            self._deep.set()

    def _submit(self, part: list[str]) -> None:
        model = self._model
        job = JobRequest.of(
            part, DEFAULT_OPTIONS, model, queue=_QUEUE, owner="other", lane=self._lane
        )
        self._store.submit(job, QueueCapacity(lane_share=LANE_SHARE * model.batch_tokens))


@contextmanager
def _beside(client: redis.Redis, lane: Lane | None) -> Iterator[None]:
    """Keep the queue deep with another tenant's jobs for `lane`."""
    if lane is None:
        yield
        return
    other = _Other(client, lane)
    try:
        other.start()
        yield
    finally:
        other.stop()
        client.delete(*lists_of(_QUEUE))
        pause = threading.Event()
        while client.hlen(keys.LEASED):
            pause.wait(0.05)
        client.delete(keys.ledger(_QUEUE))


def _figures(client: redis.Redis, after: float = 0.0) -> dict[str, float]:
    """Return the first new heartbeat of the worker after `after` seconds."""
    pause = threading.Event()
    pause.wait(after)
    last = _heartbeat(client)
    while (found := _heartbeat(client))["at"] == last["at"]:
        pause.wait(0.05)
    return found


def _heartbeat(client: redis.Redis) -> dict[str, float]:
    [heartbeat] = map(orjson.loads, client.hgetall(keys.workers(_QUEUE)).values())
    return cast("dict[str, float]", heartbeat)


def _rate(before: Mapping[str, float], after: Mapping[str, float], others: int = 0) -> float:
    """Return the texts a second between two heartbeats, without `others` of the texts."""
    return (after["texts"] - before["texts"] - others) / (after["at"] - before["at"])


def _parts() -> Iterator[list[str]]:
    pool = texts("short", 4096, seed=5)
    while True:
        for at in range(0, len(pool), _TEXTS):
            yield pool[at : at + _TEXTS]


if __name__ == "__main__":
    run("lanes", main)
