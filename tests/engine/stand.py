"""An engine on a fake model that a test can block at any stage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.fakes import DEADLINE, FakeEncoder, RecordingSink, job_of, vector_of
from tests.processes import eventually
from worker.cache.store import Cache
from worker.encoder.tokens import TokenBlock
from worker.engine import Engine, Job, JobCallbacks
from worker.engine.job import Piece

#: pytest would take the report of a dying engine thread for a failure.
crashes = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

#: Starts an engine that ends with the test.
Start = Callable[..., Engine]


class EngineWith(Engine):
    """An engine; its jobs carry the callbacks `sink` unless they have others or an owner."""

    def __init__(
        self, sink: RecordingSink, encoders: Sequence[FakeEncoder], cache: Cache | None = None
    ) -> None:
        named = {encoder.info.name: encoder for encoder in encoders}
        super().__init__(named, crashed=sink.crashed, cache=cache)
        self._sink = sink

    def submit(self, *jobs: Job) -> None:
        for job in jobs:
            if type(job.callbacks) is JobCallbacks and job.owner is None:
                job.callbacks = self._sink
        super().submit(*jobs)


@contextmanager
def busy(engine: Engine, encoder: FakeEncoder) -> Iterator[None]:
    """Block the device inside a batch of its own, so that submitted texts form the next batches."""
    with encoder.held():
        engine.submit(job_of(["busy"], "busy", info=encoder.info))
        encoder.wait_until_busy()
        yield


@contextmanager
def blocked(sink: RecordingSink, event: str) -> Iterator[Callable[[], None]]:
    """Block the sink at its next `event` until the block ends; yields a wait for the event."""
    entered, leave = threading.Event(), threading.Event()

    def wait(heard: str) -> None:
        if heard == event:
            entered.set()
            assert leave.wait(DEADLINE)

    sink.before = wait

    def entry() -> None:
        assert entered.wait(DEADLINE)

    try:
        yield entry
    finally:
        leave.set()


def texts(count: int, first: int = 0) -> list[str]:
    return [f"text {number} of some" for number in range(first, first + count)]


def block_of(lengths: Sequence[int]) -> TokenBlock:
    total, count = sum(lengths), len(lengths)
    return TokenBlock(
        np.zeros(total, dtype=np.int32),
        np.cumsum([0, *lengths], dtype=np.int64),
        np.zeros(count, dtype=np.int32),
        np.zeros(count, dtype=np.bool_),
    )


def waiting(job_id: str, lengths: Sequence[int], *, chunk: int = 256, **options: Any) -> Job:
    """A job with texts of these token counts, tokenized in chunks."""
    job = job_of([""] * len(lengths), job_id, **options)
    for first in range(0, len(lengths), chunk):
        block = block_of(lengths[first : first + chunk])
        job.waiting.append(Piece(job, block, block.offsets.tolist(), 0, len(block), first))
    return job


def wait_until_tokenised(*jobs: Job) -> None:
    eventually(lambda: all(sum(p.texts for p in job.waiting) == len(job.texts) for job in jobs))


def assert_vectors(
    found: np.ndarray, given: list[str], *, but: tuple[int, ...] = (), **how: object
) -> None:
    for row, text in enumerate(given):
        if row in but:
            assert not found[row].any()
        else:
            expected = vector_of(text, **how)  # type: ignore[arg-type]
            np.testing.assert_allclose(found[row], expected, rtol=1e-6)
