"""One small job on an idle system: the caller's wait beyond the model's own time.

One caller pauses between two jobs, so that all processes sleep when a job arrives. The stages of a
REST job come from the times in its record: one machine, one clock.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, TypeVar

from bench import models
from bench.baseline import Baseline
from bench.load import Load, loads
from bench.measure import percentile
from bench.report import Options, Table, run
from bench.stage import stage
from bench.texts import texts
from worker.encoder.protocol import Encoder

T = TypeVar("T")

#: Seconds between two jobs.
_PAUSE = 0.02
#: Jobs of one turn, and turns. Turns are short, so that all contestants see the same machine.
_JOBS, _TURNS = 25, 8
#: From the caller's request to the caller's vectors, by the times in the record.
_STAGES = (
    ("request read, job accepted", "asked", "created_at"),
    ("fetched, tokenised, batch cut", "created_at", "started_at"),
    ("encoded, handed to the writer", "started_at", "finished_at"),
    ("stored, noticed, answered", "finished_at", "answered"),
)


def main(options: Options) -> list[Table]:
    turns = _TURNS // (4 if options.quick else 1)
    model = models.encoder()
    engine = models.RawEngine(model)
    tables: list[Table] = []
    try:
        with stage() as processes, Baseline() as baseline:
            processes.worker()
            api = processes.api()
            with loads(rest=api.url, celery=processes.url) as callers:
                for name, size in (("One short text", 1), ("16 short texts", 16)):
                    given = texts("short", _JOBS * size, seed=2)
                    parts = [given[at : at + size] for at in range(0, len(given), size)]
                    waits, jobs = _waits(parts, turns, model, engine, baseline, callers)
                    tables.append(_summary(f"{name}, idle system, milliseconds", waits))
                    if size == 1:
                        tables.append(_breakdown(jobs))
    finally:
        engine.close()
    return tables


def _waits(
    parts: Sequence[Sequence[str]],
    turns: int,
    model: Encoder,
    engine: models.RawEngine,
    baseline: Baseline,
    callers: dict[str, Load],
) -> tuple[dict[str, list[float]], list[dict[str, Any]]]:
    """Return seconds of each part by contestant, and the REST jobs. A first turn warms up."""
    waits: dict[str, list[float]] = {}
    jobs: list[dict[str, Any]] = []
    blocks = [model.tokenize(part) for part in parts]
    for turn in range(-1, turns):
        answers = {
            name: caller(list(chain(*parts)), texts_a_job=len(parts[0]), pause=_PAUSE)
            for name, caller in callers.items()
        }
        found: dict[str, Sequence[float]] = {
            "model alone (forward)": _alone(model.forward, blocks),
            "SentenceTransformer.encode": baseline.encode_each(parts, _PAUSE),
            "raw engine": _alone(lambda part: engine.encode(part, len(part)), parts),
            "REST, Prefer: wait": answers["rest"].waits,
            "Celery delay().get()": answers["celery"].waits,
        }
        if turn < 0:
            continue
        jobs += answers["rest"].jobs
        for name, seconds in found.items():
            waits.setdefault(name, []).extend(seconds)
    return waits, jobs


def _alone(call: Callable[[T], object], given: Iterable[T]) -> list[float]:
    """Return the seconds of each call, with a pause before each."""
    pause = threading.Event()
    seconds = []
    for one in given:
        pause.wait(_PAUSE)
        began = time.perf_counter()
        call(one)
        seconds.append(time.perf_counter() - began)
    return seconds


def _summary(title: str, waits: dict[str, list[float]]) -> Table:
    table = Table(title, ["way", "p50", "p95", "p99", "p50 beyond the model", "p50 beyond encode"])
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
    """Return a time of the caller or of the API as seconds since the epoch."""
    return at if isinstance(at, float) else datetime.fromisoformat(at).timestamp()


if __name__ == "__main__":
    run("latency", main)
