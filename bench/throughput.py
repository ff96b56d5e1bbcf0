"""Texts a second in arrival order, compared with `encode` over all texts in one call.

The callers run on the same cores as the measured processes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain

import numpy as np

from bench import models
from bench.baseline import Baseline
from bench.contestant import Own
from bench.load import Load, loads
from bench.measure import Contestant, Race, percentile, race
from bench.report import Options, Table, run
from bench.stage import stage
from bench.texts import texts

ENCODE = "SentenceTransformer.encode, batch 32, one call"
#: Texts of each set that one turn encodes: two seconds or more for the slowest.
COUNTS = {"short": 768, "mixed": 384, "long": 64, "repeated": 768}
#: Callers, and texts of each of their jobs.
SHAPES = ((64, 1), (8, 32))


def main(options: Options) -> list[Table]:
    counts = {name: count // (4 if options.quick else 1) for name, count in COUNTS.items()}
    sets = {name: texts(name, count) for name, count in counts.items()}
    ways = _Ways()
    try:
        raw = _raw(ways, sets, options.rounds)
        remote = _remote(ways, {name: sets[name] for name in ("short", "mixed")}, options)
    finally:
        ways.close()
    return [raw, *remote]


class _Ways:
    """The library and our contestants without a queue, each in its own process."""

    def __init__(self) -> None:
        self.baseline = Baseline()
        self.engine = Own()
        self._ways = {
            "encoder alone, packed": Own(alone="packed"),
            "encoder alone, padded": Own(alone="padded"),
        }
        if find_spec("openvino"):
            self._ways["engine, OpenVINO float32"] = Own("openvino", "float32")
        if find_spec("openvino") and find_spec("nncf"):
            self._ways["engine, OpenVINO int8"] = Own("openvino", "int8")

    def contestants(self, given: Sequence[str]) -> dict[str, Contestant]:
        ways: dict[str, Contestant] = {
            ENCODE: lambda: self.baseline.encode(given),
            "engine": lambda: self.engine.encode(given),
            "engine, 32 texts a job": lambda: self.engine.encode(given, 32),
        }
        for name, own in self._ways.items():
            ways[name] = functools.partial(own.encode, given)
        return ways

    def close(self) -> None:
        for peer in (self.baseline, self.engine, *self._ways.values()):
            peer.close()


def _raw(ways: _Ways, sets: dict[str, list[str]], rounds: int) -> Table:
    columns = ["raw, in arrival order"]
    races: list[tuple[Race, int]] = []
    library, ours = models.library(), models.encoder()
    notes = []
    for name, given in sets.items():
        columns += [f"{name} texts/s", "× encode"]
        for contestant in ways.contestants(given[:64]).values():
            contestant()
        races.append((race(ways.contestants(given), rounds), len(given)))
        difference = float(np.abs(ways.engine.vectors(given) - library.encode(given)).max())
        tokens = models.tokens_of(ours, given).tokens / len(given)
        notes.append(
            f"{name}: {len(given)} texts, {tokens:.1f} tokens a text, "
            f"largest difference to encode {difference:.0e}"
        )
    table = Table("Raw: no queue, no other process", columns, notes=notes)
    for way in races[0][0].seconds:
        cells = [(ran.rate(way, count), ran.ratio(way)) for ran, count in races]
        table.add(way, *chain.from_iterable(cells))
    return table


def _remote(ways: _Ways, sets: dict[str, list[str]], options: Options) -> list[Table]:
    """Measure the same texts through Celery and REST."""
    columns = ["way, callers × texts a job"]
    for name in sets:
        columns += [f"{name} texts/s", "× encode", "p50 ms", "p95 ms"]
    table = Table("Through the queue: real processes, callers on the same cores", columns)
    with stage() as processes:
        worker = processes.worker()
        api = processes.api()
        with loads(rest=api.url, celery=processes.url) as callers:
            measured = {
                name: _race_remote(ways, callers, given, options.rounds)
                for name, given in sets.items()
            }
        assert worker.running, worker.log()
    for contestant in next(iter(measured.values()))[0].seconds:
        cells: list[float | None] = []
        for name, (ran, waits) in measured.items():
            cells += [ran.rate(contestant, len(sets[name])), ran.ratio(contestant)]
            cells += _percentiles(waits.get(contestant, []))
        table.add(contestant, *cells)
    return [table]


def _race_remote(
    ways: _Ways, callers: dict[str, Load], given: list[str], rounds: int
) -> tuple[Race, dict[str, list[float]]]:
    waits: dict[str, list[float]] = {}
    contestants: dict[str, Contestant] = {ENCODE: lambda: ways.baseline.encode(given)}
    names = {"rest": "REST", "celery": "Celery direct"}
    for kind, load in callers.items():
        for count, size in SHAPES:
            way = f"{names[kind]}, {count} callers × {size}"
            contestants[way] = _turn(load, given, count, size, waits.setdefault(way, []))
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
