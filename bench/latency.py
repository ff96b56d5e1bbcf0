"""One short text on an idle system: what the caller waits beyond the model's own time for it.

One caller, a pause between two jobs, so that everything sleeps when a job comes. The stages of a
REST job come from the times in its record: one machine, one clock.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from bench import models
from bench.baseline import Baseline
from bench.load import loads
from bench.measure import percentile
from bench.report import Options, Table, run
from bench.stage import stage
from bench.texts import texts

#: Seconds between two jobs.
_PAUSE = 0.02
#: Jobs of one turn, and turns: short ones, so that all contestants see the same machine.
_JOBS, _TURNS = 25, 8
#: From when the caller asks, by the record's times, to when the caller has the vectors.
_STAGES = (
    ("request read, job accepted", "asked", "created_at"),
    ("fetched, tokenised, batch cut", "created_at", "started_at"),
    ("encoded, handed to the writer", "started_at", "finished_at"),
    ("stored, noticed, answered", "finished_at", "answered"),
)


def main(options: Options) -> list[Table]:
    given = texts("short", _JOBS, seed=2)
    waits: dict[str, list[float]] = {}
    jobs: list[dict[str, Any]] = []
    model = models.encoder()
    engine = models.RawEngine(model)
    block = [model.tokenize([text]) for text in given]
    at = iter(range(10**9))

    def forward() -> Callable[[str], object]:
        return lambda _: model.forward(block[next(at) % len(block)])

    try:
        with stage() as processes, Baseline() as baseline:
            processes.worker()
            api = processes.api()
            with loads(rest=api.url, celery=processes.url) as callers:
                for turn in range(-1, _TURNS // (4 if options.quick else 1)):
                    found: dict[str, Sequence[float]] = {
                        "model alone (forward)": _alone(forward(), given),
                        "SentenceTransformer.encode": baseline.encode_alone(given, _PAUSE),
                        "raw engine": _alone(lambda text: engine.encode([text]), given),
                    }
                    rest = callers["rest"](given, pause=_PAUSE)
                    direct = callers["celery"](given, pause=_PAUSE)
                    found |= {
                        "REST, Prefer: wait": rest.waits,
                        "Celery delay().get()": direct.waits,
                    }
                    if turn < 0:
                        continue
                    jobs += rest.jobs
                    for name, seconds in found.items():
                        waits.setdefault(name, []).extend(seconds)
    finally:
        engine.close()
    return [_summary(waits), _breakdown(jobs)]


def _alone(call: Callable[[str], object], given: Sequence[str]) -> list[float]:
    pause = threading.Event()
    seconds = []
    for text in given:
        pause.wait(_PAUSE)
        began = time.perf_counter()
        call(text)
        seconds.append(time.perf_counter() - began)
    return seconds


def _summary(waits: dict[str, list[float]]) -> Table:
    table = Table(
        "One short text, idle system, milliseconds",
        ["way", "p50", "p95", "p99", "p50 beyond the model", "p50 beyond encode"],
    )
    model, encode = (statistics.median(seconds) for seconds in list(waits.values())[:2])
    for name, seconds in waits.items():
        p50, p95, p99 = (percentile(seconds, percent) * 1000 for percent in (50, 95, 99))
        table.add(name, p50, p95, p99, p50 - model * 1000, p50 - encode * 1000)
    return table


def _breakdown(jobs: Sequence[dict[str, Any]]) -> Table:
    table = Table("Where a REST job's milliseconds go", ["stage", "p50", "p95"])
    for name, start, end in _STAGES:
        spans = [(_clock(job[end]) - _clock(job[start])) * 1000 for job in jobs]
        table.add(name, percentile(spans, 50), percentile(spans, 95))
    return table


def _clock(at: str | float) -> float:
    """A caller's clock, or the API's way to write it."""
    return at if isinstance(at, float) else datetime.fromisoformat(at).timestamp()


if __name__ == "__main__":
    run("latency", main)
