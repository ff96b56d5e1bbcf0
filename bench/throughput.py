"""Texts a second in arrival order, beside `encode` over everything in one call.

The callers run on the same cores as what they measure.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import numpy as np

from bench import models
from bench.baseline import Baseline
from bench.load import Load, loads
from bench.measure import Contestant, Race, percentile, race
from bench.report import Options, Table, run
from bench.stage import stage
from bench.texts import texts
from worker.encoder import Encoder
from worker.loading import on_passing_thread

ENCODE = "SentenceTransformer.encode, batch 32, one call"
#: Texts of each set that one turn encodes: three seconds or more for the slowest.
COUNTS = {"short": 768, "mixed": 384, "long": 96, "repeated": 768}
#: Callers, and texts of each of their jobs.
SHAPES = ((64, 1), (8, 32))


def main(options: Options) -> list[Table]:
    counts = {name: count // (4 if options.quick else 1) for name, count in COUNTS.items()}
    sets = {name: texts(name, count) for name, count in counts.items()}
    in_process = _InProcess()
    try:
        raw = _raw(in_process, sets, options.rounds)
        remote = _remote(in_process, {name: sets[name] for name in ("short", "mixed")}, options)
    finally:
        in_process.close()
    return [raw, *remote]


class _InProcess:
    """Our engine in this process, and the library in its own.

    One thread that computes at a time, the engine's; see `on_passing_thread` for what more cost.
    """

    def __init__(self) -> None:
        self.baseline = Baseline()
        self.packed = models.encoder()
        self.padded = models.encoder(padded=True)
        self.engine = models.RawEngine(self.packed)

    def contestants(self, given: Sequence[str]) -> dict[str, Contestant]:
        return {
            ENCODE: lambda: self.baseline.encode(given),
            "engine, packed": lambda: self.engine.encode(given),
            "engine, packed, 32 texts a job": lambda: self.engine.encode(given, 32),
            "encoder alone, packed": functools.partial(_alone, self.packed, given),
            "encoder alone, padded": functools.partial(_alone, self.padded, given),
        }

    def close(self) -> None:
        self.engine.close()
        self.baseline.close()


def _alone(model: Encoder, given: Sequence[str]) -> float:
    """Seconds of the encoder over all texts, without the engine."""

    def timed() -> float:
        began = time.perf_counter()
        models.encode_in_order(model, given)
        return time.perf_counter() - began

    return on_passing_thread(timed)


def _raw(in_process: _InProcess, sets: dict[str, list[str]], rounds: int) -> Table:
    columns = ["raw, in arrival order"]
    races: list[tuple[Race, int]] = []
    library = models.library()
    notes = []
    for name, given in sets.items():
        columns += [f"{name} texts/s", "× encode"]
        for contestant in in_process.contestants(given[:64]).values():
            contestant()
        races.append((race(in_process.contestants(given), rounds), len(given)))
        wanted = on_passing_thread(functools.partial(library.encode, given))
        difference = float(np.abs(in_process.engine.encode(given) - wanted).max())
        tokens = in_process.packed.tokenize(given).tokens / len(given)
        notes.append(
            f"{name}: {len(given)} texts, {tokens:.1f} tokens a text, "
            f"largest difference to encode {difference:.0e}"
        )
    table = Table("Raw: no queue, no other process", columns, notes=notes)
    for contestant in races[0][0].seconds:
        cells = [
            figure
            for ran, count in races
            for figure in (ran.rate(contestant, count), ran.ratio(contestant))
        ]
        table.add(contestant, *cells)
    return table


def _remote(in_process: _InProcess, sets: dict[str, list[str]], options: Options) -> list[Table]:
    """The same texts through Celery and REST, and through a plain Celery task."""
    columns = ["callers × texts a job"]
    for name in sets:
        columns += [f"{name} texts/s", "× encode", "p50 ms", "p95 ms"]
    table = Table("Through the queue: real processes, callers on the same cores", columns)
    with stage() as processes:
        worker = processes.worker()
        plain = processes.worker("-P", "solo", app="bench.plain_task")
        api = processes.api()
        with loads(rest=api.url, celery=processes.url, plain=processes.url) as callers:
            measured = {
                name: _race_remote(in_process, callers, given, options.rounds)
                for name, given in sets.items()
            }
        assert worker.running, worker.log()
        assert plain.running, plain.log()
    for contestant in next(iter(measured.values()))[0].seconds:
        cells: list[float | None] = []
        for name, (ran, waits) in measured.items():
            cells += [ran.rate(contestant, len(sets[name])), ran.ratio(contestant)]
            cells += _percentiles(waits.get(contestant, []))
        table.add(contestant, *cells)
    return [table]


def _race_remote(
    in_process: _InProcess, callers: dict[str, Load], given: list[str], rounds: int
) -> tuple[Race, dict[str, list[float]]]:
    waits: dict[str, list[float]] = {}
    contestants: dict[str, Contestant] = {ENCODE: lambda: in_process.baseline.encode(given)}
    names = {"rest": "REST", "celery": "Celery direct", "plain": "plain Celery task"}
    for kind, load in callers.items():
        for count, size in SHAPES:
            contestants[f"{names[kind]}, {count} × {size}"] = _turn(
                load, given, count, size, waits.setdefault(f"{names[kind]}, {count} × {size}", [])
            )
            load(given[: count * size], texts_a_job=size, callers=count)
    return race(contestants, rounds), waits


def _turn(load: Load, given: list[str], callers: int, size: int, waits: list[float]) -> Contestant:
    def turn() -> float:
        answer = load(given, texts_a_job=size, callers=callers)
        waits.extend(answer.waits)
        return answer.seconds

    return turn


def _percentiles(waits: list[float]) -> list[float | None]:
    if not waits:
        return [None, None]
    return [percentile(waits, percent) * 1000 for percent in (50, 95)]


if __name__ == "__main__":
    run("throughput", main)
