"""A file of requests as one batch, and the raw engine over the same texts in the same minutes.

The batch runs once alone and once with a caller that submits one short text after another. The
figures show the slowdown of both. They also show the memory of worker and API beyond their memory
for a batch of one hundredth. The caller runs on the same cores.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import openai
from openai.types import Batch

from bench import models
from bench.load import Load, loads
from bench.measure import percentile
from bench.report import Options, Table, progress, run
from bench.stage import resident_bytes, stage
from bench.texts import texts
from tests.processes import Api, Process
from worker.contract.settings import DEFAULT_MODEL_NAME

_LINES = 50_000
#: The raw engine runs before, between and after the batches, each time over one part in five.
_RAW_PART = 5
#: Seconds between two checks of the batch and the memory, and between two requests of the caller.
_LOOK, _PAUSE = 0.5, 0.05
#: Requests of the caller alone, and of each of its turns with the batch.
_CALLS, _CALLS_A_TURN = 100, 20
_ENDED = ("completed", "failed", "expired", "cancelled")


def main(options: Options) -> list[Table]:
    given = texts("short", _LINES // (10 if options.quick else 1), seed=5)
    lines = len(given)
    with closing(models.RawEngine(models.encoder())) as engine, _scene(given) as scene:
        raw = _Raw(engine, given)
        raw.run()
        progress("the caller alone")
        calm = scene.calls(_CALLS)
        progress("the batch alone")
        alone = scene.batch(given, beside=False)
        raw.run()
        progress("the batch beside the caller")
        beside = scene.batch(given, beside=True)
        raw.run()
        progress("")
    rate = statistics.median(raw.rates)
    speed = Table(
        f"A batch of {lines:,} requests, one short text each",
        ["way", "seconds", "texts/s", "× raw"],
    )
    speed.add("raw engine, 32 texts a job, a fifth of them, three times", None, rate, 1.0)
    for name, seconds in (
        ("batch, created to completed", alone.seconds),
        ("the same with upload and download", alone.whole),
        ("batch beside a caller who does not pause for long", beside.seconds),
    ):
        speed.add(name, seconds, lines / seconds, lines / seconds / rate)
    others = Table(
        "What others notice: a caller with one short text, and memory",
        ["", "requests", "p50 ms", "p95 ms", "worker +MB", "API +MB"],
    )
    others.notes.append(f"A full batch takes the raw engine {raw.a_batch * 1000:.0f} ms")
    for name, waits, measured in (
        ("caller without a batch", calm, None),
        ("batch without a caller", [], alone),
        ("both", beside.waits, beside),
    ):
        others.add(
            name,
            len(waits) or None,
            *(percentile(waits, part) * 1000 if waits else None for part in (50, 95)),
            *(measured.growth if measured is not None else (None, None)),
        )
    return [speed, others]


class _Raw:
    """The engine without a service; each run takes the next part of the texts."""

    def __init__(self, raw: models.RawEngine, given: Sequence[str]) -> None:
        self._raw = raw
        size = len(given) // _RAW_PART
        self._parts = [given[at : at + size] for at in range(0, len(given), size)]
        raw.encode(given[:500], 32)
        #: Texts a second, one figure for each run.
        self.rates: list[float] = []

    def run(self) -> None:
        progress("the raw engine")
        part = self._parts[len(self.rates)]
        began = time.perf_counter()
        self._raw.encode(part, 32)
        self.rates.append(len(part) / (time.perf_counter() - began))

    @property
    def a_batch(self) -> float:
        """Mean seconds of a batch. All batches of a run except the last are full."""
        return self._raw.engine.totals.busy_seconds / self._raw.engine.totals.batches


@dataclass
class _Measured:
    """One batch: seconds from creation to completion, and with upload and download."""

    seconds: float = 0.0
    whole: float = 0.0
    #: Seconds of each of the caller's requests during the batch.
    waits: list[float] = field(default_factory=list)
    #: Growth of the worker's and the API's memory over that before the batch, MiB.
    growth: list[float] = field(default_factory=list)


@dataclass
class _Scene:
    """A service, its client and its caller. Only the client runs in this process."""

    worker: Process
    api: Api
    client: openai.OpenAI
    caller: Load
    asked: int = 0

    def batch(self, given: Sequence[str], *, beside: bool) -> _Measured:
        """Run all texts as one batch, with the caller or without."""
        measured = _Measured()
        over = threading.Event()
        caller = threading.Thread(target=lambda: self._call(measured.waits, over))
        watched = (self.worker, self.api.process)
        before = [resident_bytes(process) for process in watched]
        most = list(before)
        began = time.perf_counter()
        batch = _create(self.client, given)
        created = time.perf_counter()
        if beside:
            caller.start()
        while batch.status not in _ENDED:
            over.wait(_LOOK)
            batch = self.client.batches.retrieve(batch.id)
            most = [max(old, resident_bytes(one)) for old, one in zip(most, watched, strict=True)]
        measured.seconds = time.perf_counter() - created
        over.set()
        if beside:
            caller.join()
        _check(self.client, batch, len(given))
        measured.whole = time.perf_counter() - began
        most = [max(old, resident_bytes(one)) for old, one in zip(most, watched, strict=True)]
        measured.growth = [(new - old) / 2**20 for new, old in zip(most, before, strict=True)]
        return measured

    def calls(self, count: int) -> Sequence[float]:
        """Send requests with one short text, one after another; return the seconds of each."""
        # All texts differ: equal requests share a job.
        asked = [f"question number {self.asked + number}" for number in range(count)]
        self.asked += count
        return self.caller(asked, pause=_PAUSE).waits

    def _call(self, waits: list[float], over: threading.Event) -> None:
        while not over.is_set():
            waits += self.calls(_CALLS_A_TURN)


@contextmanager
def _scene(given: Sequence[str]) -> Iterator[_Scene]:
    """Start a service and run a batch of a hundredth of the texts; the block's end stops it."""
    with stage() as processes:
        env = {"EMBEDQ_FILES": str(processes.processes.folder / "files")}
        worker, api = processes.worker(env=env), processes.api(env)
        with (
            openai.OpenAI(base_url=f"{api.url}/v1", api_key="none") as client,
            loads(openai=f"{api.url}/v1/embeddings") as callers,
        ):
            scene = _Scene(worker, api, client, callers["openai"])
            scene.calls(_CALLS_A_TURN)
            scene.batch(given[: len(given) // 100], beside=False)
            yield scene


def _create(client: openai.OpenAI, given: Sequence[str]) -> Batch:
    file = client.files.create(file=_lines(given), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
    )


def _lines(given: Sequence[str]) -> bytes:
    body = {"model": DEFAULT_MODEL_NAME, "encoding_format": "base64"}
    return b"".join(
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/embeddings",
                "body": body | {"input": text},
            }
        ).encode()
        + b"\n"
        for number, text in enumerate(given)
    )


def _check(client: openai.OpenAI, batch: Batch, lines: int) -> None:
    """Check that every line has exactly one answer."""
    assert batch.status == "completed", batch
    assert batch.output_file_id is not None
    answers = client.files.content(batch.output_file_id).iter_lines()
    ids = [json.loads(line)["custom_id"] for line in answers]
    assert len(ids) == len(set(ids)) == lines


if __name__ == "__main__":
    run("bulk", main)
