"""`EmbeddingService` inside an application: threads against a lock, and an event loop.

Eight threads each encode one text after another, by the service and by `encode` behind a lock. Then
64 coroutines run at once on one event loop, and a ticker measures the pauses of the loop.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Sequence

from bench import models
from bench.measure import percentile, race
from bench.report import Options, Table, run
from bench.texts import texts
from worker.service import EmbeddingService

_CALLERS = 8
_TEXTS = 400
_COROUTINES = 64
_TICK = 0.001


def main(options: Options) -> list[Table]:
    given = texts("short", _TEXTS // (4 if options.quick else 1), seed=3)
    library = models.library()
    with EmbeddingService() as service:
        service.encode(given[:_CALLERS])
        return [
            _threads(service, library.encode, given, options.rounds),
            _loop(service, options.rounds),
        ]


def _threads(
    service: EmbeddingService,
    encode: Callable[[Sequence[str]], object],
    given: Sequence[str],
    rounds: int,
) -> Table:
    lock = threading.Lock()

    def locked(text: str) -> None:
        with lock:
            encode([text])

    waits: dict[str, list[float]] = {}
    calls: dict[str, Callable[[str], object]] = {
        "encode behind a lock": locked,
        "EmbeddingService": lambda text: service.encode([text]),
    }
    ran = race(
        {
            name: functools.partial(_together, call, given, waits.setdefault(name, []))
            for name, call in calls.items()
        },
        rounds,
    )
    table = Table(
        f"{_CALLERS} threads, one short text a call",
        ["way", "texts/s", "× lock", "p50 ms", "p95 ms"],
    )
    for name, seen in waits.items():
        table.add(
            name,
            ran.rate(name, len(given)),
            ran.ratio(name),
            percentile(seen, 50) * 1000,
            percentile(seen, 95) * 1000,
        )
    return table


def _together(call: Callable[[str], object], given: Sequence[str], waits: list[float]) -> None:
    waiting = iter(given)

    def caller() -> None:
        for text in waiting:
            began = time.perf_counter()
            call(text)
            waits.append(time.perf_counter() - began)

    threads = [threading.Thread(target=caller) for _ in range(_CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _loop(service: EmbeddingService, rounds: int) -> Table:
    table = Table(
        f"{_COROUTINES} concurrent get_embedding calls on one event loop",
        ["round", "seconds", "longest pause ms", "batches", "texts a batch"],
    )
    given = texts("short", _COROUTINES, seed=4)
    for number in range(1, rounds + 1):
        engine = service._engine  # noqa: SLF001 - its counters are for us alone
        assert engine is not None
        before = engine.totals.batches
        seconds, pause = asyncio.run(_gather(service, given))
        batches = engine.totals.batches - before
        table.add(str(number), seconds, pause * 1000, batches, len(given) / batches)
    return table


async def _gather(service: EmbeddingService, given: Sequence[str]) -> tuple[float, float]:
    """Return the seconds of all calls, and the longest pause of the loop."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(_TICK)
            now = time.perf_counter()
            longest = max(longest, now - last - _TICK)
            last = now

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(10 * _TICK)
    began = time.perf_counter()
    await asyncio.gather(*(service.get_embedding(text) for text in given))
    seconds = time.perf_counter() - began
    ticker.cancel()
    return seconds, longest


if __name__ == "__main__":
    run("service", main)
