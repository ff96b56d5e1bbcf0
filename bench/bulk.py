"""A file of requests as one batch, beside the raw engine over the same texts.

Also what it costs others: the wait of a caller with one short text, with and without the batch, and
the memory of worker and API, beyond what they took for a batch of one hundredth. The callers run on
the same cores.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

import openai
from openai.types import Batch

from bench import models
from bench.measure import percentile
from bench.report import Options, Table, run
from bench.stage import Stage, resident_bytes, stage
from bench.texts import texts
from tests.processes import Api, Process
from worker.contract.settings import DEFAULT_MODEL_NAME

_LINES = 50_000
#: The raw engine gets this part of the texts.
_RAW_PART = 5
#: Seconds between two looks at the batch and the memory, and between two requests of the caller.
_LOOK = 0.5
_ENDED = ("completed", "failed", "expired", "cancelled")


def main(options: Options) -> list[Table]:
    given = texts("short", _LINES // (10 if options.quick else 1), seed=5)
    with closing(models.RawEngine(models.encoder())) as engine:
        engine.encode(given[:500], 32)
        part = given[: len(given) // _RAW_PART]
        began = time.perf_counter()
        engine.encode(part, 32)
        raw = (time.perf_counter() - began) * _RAW_PART
    with stage() as processes:
        measured = _Measured.of(processes, given)
    lines = len(given)
    speed = Table(
        f"A batch of {lines:,} requests, one short text each",
        ["way", "seconds", "texts/s", "× raw"],
    )
    # Its rate does not change on the way; only the batch's might.
    speed.add("raw engine, 32 texts a job, a fifth of them", None, lines / raw, 1.0)
    speed.add(
        "batch, created to completed",
        measured.seconds,
        lines / measured.seconds,
        raw / measured.seconds,
    )
    speed.add(
        "the same with upload and download",
        measured.whole,
        lines / measured.whole,
        raw / measured.whole,
    )
    others = Table(
        "What others notice: a caller with one short text, and memory",
        ["", "requests", "p50 ms", "p95 ms", "worker +MB", "API +MB"],
    )
    for name, waits in (("without a batch", measured.calm), ("with it", measured.busy)):
        growth = (
            (measured.worker_growth, measured.api_growth) if name == "with it" else (None, None)
        )
        others.add(
            name,
            len(waits),
            percentile(waits, 50) * 1000,
            percentile(waits, 95) * 1000,
            *(None if one is None else one / 2**20 for one in growth),
        )
    return [speed, others]


@dataclass
class _Measured:
    """Seconds, waits and bytes of one batch."""

    seconds: float = 0.0
    whole: float = 0.0
    calm: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    worker_growth: int = 0
    api_growth: int = 0

    @classmethod
    def of(cls, processes: Stage, given: Sequence[str]) -> _Measured:
        env = {"EMBEDQ_FILES": str(processes.processes.folder / "files")}
        worker, api = processes.worker(env=env), processes.api(env)
        measured = cls()
        with openai.OpenAI(base_url=f"{api.url}/v1", api_key="none") as client:
            _run(client, given[: len(given) // 100])
            measured.calm = _waits(client, until=threading.Event(), most=40)
            measured._run(client, worker, api, given)
        return measured

    def _run(self, client: openai.OpenAI, worker: Process, api: Api, given: Sequence[str]) -> None:
        watched = (worker, api.process)
        before = [resident_bytes(process) for process in watched]
        most = list(before)
        began = time.perf_counter()
        batch = _create(client, given)
        created = time.perf_counter()
        over = threading.Event()
        caller = threading.Thread(target=lambda: self.busy.extend(_waits(client, until=over)))
        caller.start()
        while batch.status not in _ENDED:
            over.wait(_LOOK)
            batch = client.batches.retrieve(batch.id)
            most = [max(old, resident_bytes(one)) for old, one in zip(most, watched, strict=True)]
        self.seconds = time.perf_counter() - created
        over.set()
        caller.join()
        _check(client, batch, len(given))
        self.whole = time.perf_counter() - began
        most = [max(old, resident_bytes(one)) for old, one in zip(most, watched, strict=True)]
        self.worker_growth, self.api_growth = (
            new - old for new, old in zip(most, before, strict=True)
        )


def _run(client: openai.OpenAI, given: Sequence[str]) -> None:
    """A batch from its file to its end."""
    batch = _create(client, given)
    pause = threading.Event()
    while client.batches.retrieve(batch.id).status not in _ENDED:
        pause.wait(_LOOK)


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


def _waits(client: openai.OpenAI, *, until: threading.Event, most: int = 10_000) -> list[float]:
    """Seconds of requests with one short text, one after another."""
    waits: list[float] = []
    while len(waits) < most and not until.wait(_LOOK / 5):
        began = time.perf_counter()
        client.embeddings.create(model=DEFAULT_MODEL_NAME, input=f"question number {len(waits)}")
        waits.append(time.perf_counter() - began)
    return waits


def _check(client: openai.OpenAI, batch: Batch, lines: int) -> None:
    """Every line has its answer, once."""
    assert batch.status == "completed", batch
    assert batch.output_file_id is not None
    answers = client.files.content(batch.output_file_id).iter_lines()
    ids = [json.loads(line)["custom_id"] for line in answers]
    assert len(ids) == len(set(ids)) == lines


if __name__ == "__main__":
    run("bulk", main)
