"""Alternatives to embedq: infinity-emb, and a Celery task that calls `encode`.

They run in turns with embedq's REST in float32, its default, and in OpenVINO's int8 if that is
installed. Texts are the same and callers run on the same cores. Each server keeps its own defaults
and one process for its model. infinity-emb runs in its own virtual environment, see
`bench.infinity`; if the environment cannot be made, the others are measured without it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec

from bench import infinity
from bench.baseline import Baseline
from bench.load import Load
from bench.measure import Contestant, Race, percentile, race
from bench.report import Options, Table, run
from bench.stage import Stage, stage
from bench.texts import texts

#: Texts of each set that one turn sends.
COUNTS = {"short": 512, "mixed": 256}
#: Callers, and texts of each of their requests.
SHAPES = ((32, 1), (64, 1), (8, 32))
PLAIN = "plain Celery task"
INFINITY = "infinity-emb"
OPENAI = "embedq, POST /v1/embeddings"
REST = "embedq, POST /jobs"
INT8 = "embedq, OpenVINO int8, POST /jobs"
ENCODE = "SentenceTransformer.encode, no server"

#: For latency: requests of one turn, turns, and seconds between two requests.
_ALONE, _TURNS, _PAUSE = 20, 6, 0.02
#: A worker's settings and its queue; the API's are the same.
_INT8 = {"EMBEDQ_QUEUE": "int8", "EMBEDQ_BACKEND": "openvino", "EMBEDQ_DTYPE": "int8"}


def main(options: Options) -> list[Table]:
    share = 4 if options.quick else 1
    sets = {name: texts(name, count // share, seed=6) for name, count in COUNTS.items()}
    try:
        version = infinity.install()
        note = f"infinity-emb {version}, torch engine"
    except infinity.Unavailable as error:
        version = ""
        note = f"infinity-emb is not measured: {error}"
        print(note, flush=True)
    with stage() as processes, _callers(processes, with_infinity=bool(version)) as callers:
        tables = [
            _Shape(shape, options.rounds).measured(_chosen(callers, shape), sets)
            for shape in SHAPES
        ]
        tables.append(_latency(callers, max(_TURNS // share, 1)))
    for table in tables:
        table.notes.append(note)
    return tables


@contextmanager
def _callers(processes: Stage, *, with_infinity: bool) -> Iterator[dict[str, Load]]:
    """Start all available servers together; yield their callers."""
    has_int8 = find_spec("openvino") is not None and find_spec("nncf") is not None
    processes.worker()
    processes.worker("-P", "solo", app="bench.plain_task")
    if has_int8:
        processes.worker(name="int8", env=_INT8)
    with ExitStack() as stack:
        callers = {PLAIN: stack.enter_context(Load("plain", processes.url))}
        if with_infinity:
            address = infinity.serve(processes.processes)
            callers[INFINITY] = stack.enter_context(Load("openai", address))
        api = processes.api()
        callers[OPENAI] = stack.enter_context(Load("openai", f"{api.url}/v1/embeddings"))
        callers[REST] = stack.enter_context(Load("rest", api.url))
        if has_int8:
            tuned = processes.api({"EMBEDQ_QUEUE": _INT8["EMBEDQ_QUEUE"]})
            callers[INT8] = stack.enter_context(Load("rest", tuned.url))
        yield callers


def _chosen(callers: dict[str, Load], shape: tuple[int, int]) -> dict[str, Load]:
    """Return all for the first shape, else all without the slowest and one near-duplicate."""
    left_out = () if shape == SHAPES[0] else (PLAIN, OPENAI)
    return {name: load for name, load in callers.items() if name not in left_out}


@dataclass
class _Shape:
    """One shape of load: a number of callers and of texts a request."""

    shape: tuple[int, int]
    rounds: int
    waits: dict[str, list[float]] = field(default_factory=dict)

    def measured(self, callers: dict[str, Load], sets: dict[str, list[str]]) -> Table:
        others = [name for name in (INFINITY, PLAIN) if name in callers]
        count, size = self.shape
        title = f"{count} callers, {'one text' if size == 1 else f'{size} texts'} a request"
        columns = ["server"]
        for name in sets:
            ratios = [
                f"× {other.removesuffix('-emb').removesuffix(' Celery task')}" for other in others
            ]
            columns += [f"{name} texts/s", *ratios, "p50 ms", "p95 ms"]
        table = Table(title, columns)
        races = [(name, self._race(callers, name, given)) for name, given in sets.items()]
        for way in callers:
            cells: list[float] = []
            for name, ran in races:
                waits = self.waits[f"{name} {way}"]
                cells.append(ran.rate(way, len(sets[name])))
                cells += [ran.ratio(way, to=other) for other in others]
                cells += [percentile(waits, percent) * 1000 for percent in (50, 95)]
            table.add(way, *cells)
        return table

    def _race(self, callers: dict[str, Load], name: str, given: Sequence[str]) -> Race:
        contestants: dict[str, Contestant] = {}
        for way, load in callers.items():
            waits = self.waits.setdefault(f"{name} {way}", [])
            contestants[way] = functools.partial(self._turn, load, given, waits)
            # Warm up with the lengths of the measured texts.
            count, size = self.shape
            load(given[: count * size], texts_a_job=size, callers=count)
        return race(contestants, self.rounds)

    def _turn(self, load: Load, given: Sequence[str], waits: list[float]) -> float:
        count, size = self.shape
        answer = load(given, texts_a_job=size, callers=count)
        waits.extend(answer.waits)
        return answer.seconds


def _latency(callers: dict[str, Load], turns: int) -> Table:
    """Measure one caller that pauses between requests, so that all processes sleep before each."""
    waits: dict[str, list[float]] = {}
    with Baseline() as baseline:
        for turn in range(-1, turns):
            given = texts("short", _ALONE, seed=100 + turn)
            found: dict[str, Sequence[float]] = {
                ENCODE: baseline.encode_each([[text] for text in given], _PAUSE)
            }
            found |= {way: load(given, pause=_PAUSE).waits for way, load in callers.items()}
            if turn >= 0:
                for way, seconds in found.items():
                    waits.setdefault(way, []).extend(seconds)
    table = Table(
        "One short text at a time, idle system, milliseconds",
        ["way", "p50", "p95", "p99", "p50 beyond encode"],
    )
    encode = percentile(waits[ENCODE], 50)
    for way, seconds in waits.items():
        figures = [percentile(seconds, percent) * 1000 for percent in (50, 95, 99)]
        table.add(way, *figures, figures[0] - encode * 1000)
    return table


if __name__ == "__main__":
    run("peers", main)
