"""Batches that begin while the one before leaves a core idle."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.engine.stand import (
    Start,
    assert_vectors,
    blocked,
    busy,
    texts,
    wait_until_tokenised,
)
from tests.fakes import DEADLINE, POISON, FakeEncoder, RecordingSink, job_of
from tests.processes import eventually
from worker.contract.lanes import Lane
from worker.engine.outbox import MOST_BATCHES
from worker.tokens import TokenBlock

#: Texts of four words that fill a batch.
FULL = 8


class Beginning(NamedTuple):
    """A batch as it began: its texts, and whether another one was running."""

    texts: int
    beside: bool
    patient: bool


class InParts(FakeEncoder):
    """Its batches run on a thread of their own, in turn, and leave a core idle once told so."""

    def __init__(self) -> None:
        super().__init__()
        self.beginnings: list[Beginning] = []
        self.leaves_core, self.ends = threading.Event(), threading.Event()
        self._running: list[Future[NDArray[np.float32]]] = []
        self.thread = ThreadPoolExecutor(1)

    def begin(self, batch: TokenBlock, *, patient: bool = False) -> Running:
        beside = any(not running.done() for running in self._running)
        self.beginnings.append(Beginning(len(batch), beside, patient))
        self._running.append(self.thread.submit(self.forward, batch, patient=patient))
        return Running(self, self._running[-1])


class Running:
    def __init__(self, encoder: InParts, future: Future[NDArray[np.float32]]) -> None:
        self._encoder = encoder
        self._future = future

    def wait_for_core(self) -> None:
        assert self._encoder.leaves_core.wait(DEADLINE)

    def vectors(self) -> NDArray[np.float32]:
        self._encoder.ends.set()
        return self._future.result()


@pytest.fixture
def encoder() -> Iterator[InParts]:
    encoder = InParts()
    assert encoder.info.batch_tokens == 4 * FULL
    yield encoder
    encoder.thread.shutdown()


def test_a_batch_that_is_full_begins_before_the_one_before_has_ended(
    start: Start, encoder: InParts, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with busy(engine, encoder):
        job = job_of(texts(FULL), "full")
        engine.submit(job)
        wait_until_tokenised(job)
        encoder.leaves_core.set()
        eventually(lambda: encoder.beginnings[1:] == [Beginning(FULL, beside=True, patient=False)])
        assert engine.busy_since is not None
        assert sink.outcomes == {}
    assert_vectors(sink.outcome("full").vectors, texts(FULL))
    assert_vectors(sink.outcome("busy").vectors, ["busy"])
    assert sink.of("finished") == ["busy", "full"]
    assert (engine.batches, engine.texts) == (2, FULL + 1)
    assert engine.capacity == 2 * encoder.info.batch_tokens
    eventually(lambda: engine.busy_since is None)


def test_less_than_a_batch_waits_for_more_until_the_device_is_free(
    start: Start, encoder: InParts, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with busy(engine, encoder):
        early = job_of(texts(FULL - 1), "early")
        engine.submit(early)
        wait_until_tokenised(early)
        encoder.leaves_core.set()
        assert encoder.ends.wait(DEADLINE)
        late = job_of(["late"], "late")
        engine.submit(late)
        wait_until_tokenised(late)
    sink.outcome("late")
    assert encoder.beginnings[1:] == [Beginning(FULL, beside=False, patient=False)]


def test_nothing_begins_before_a_suspect_has_ended(
    start: Start, encoder: InParts, sink: RecordingSink
) -> None:
    engine = start(encoder)
    encoder.leaves_core.set()
    with encoder.held():
        engine.submit(job_of(["suspect"], "suspect", alone=True))
        encoder.wait_until_busy()
        others = job_of(texts(FULL), "others")
        engine.submit(others)
        assert encoder.ends.wait(DEADLINE)
        assert len(encoder.beginnings) == 1
        assert others.tokenised == 0
    sink.outcome("others")


def test_a_suspect_begins_when_nothing_else_runs(
    start: Start, encoder: InParts, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with busy(engine, encoder):
        suspects = [job_of([f"suspect {n}"], f"suspect {n}", alone=True) for n in range(3)]
        others = job_of(texts(8 * FULL), "others")
        engine.submit(*suspects, others)
        wait_until_tokenised(others)
        encoder.leaves_core.set()
    for job in (*suspects, others):
        sink.outcome(job.id)
    alone = [at for at, began in enumerate(encoder.beginnings) if began.texts == 1][1:]
    assert len(alone) == 3
    assert not any(encoder.beginnings[at].beside for at in alone)


def test_nothing_runs_beside_a_batch_that_leaves_the_cores_to_others(
    start: Start, encoder: InParts, sink: RecordingSink
) -> None:
    overtaking = FakeEncoder(encoder.info)
    overtaking._words = encoder._words
    encoder.express = overtaking.forward
    engine = start(encoder)
    encoder.leaves_core.set()
    with busy(engine, encoder):
        engine.submit(job_of(texts(2), "asked", lane=Lane.INTERACTIVE))
        sink.outcome("asked")
        engine.submit(job_of(texts(8 * FULL), "bulk", lane=Lane.BULK))
    sink.outcome("bulk")
    patient = [began for began in encoder.beginnings if began.patient]
    assert len(patient) >= 8
    assert not any(began.beside for began in patient[1:])


def test_a_text_that_fails_harms_neither_its_batch_nor_the_one_beside(
    start: Start, encoder: InParts, sink: RecordingSink
) -> None:
    engine = start(encoder)
    given = [*texts(FULL - 1), f"{POISON} is in here"]
    with busy(engine, encoder):
        jobs = [job_of(given, "first"), job_of(texts(FULL, 50), "second")]
        engine.submit(*jobs)
        wait_until_tokenised(*jobs)
        encoder.leaves_core.set()
        eventually(lambda: [began.beside for began in encoder.beginnings] == [False, True])
    first, second = sink.outcome("first"), sink.outcome("second")
    assert_vectors(first.vectors, given, but=(FULL - 1,))
    assert [(error.index, error.code) for error in first.errors] == [(FULL - 1, "encode_failed")]
    assert_vectors(second.vectors, texts(FULL, 50))
    assert second.errors == []


def test_no_batch_begins_ahead_of_a_writer_that_has_enough_to_tell(
    start: Start, encoder: InParts, sink: RecordingSink
) -> None:
    engine = start(encoder)
    encoder.leaves_core.set()
    job = job_of(texts(4 * MOST_BATCHES * FULL), "job")
    with blocked(sink, "progressed") as wait_until_blocked:
        engine.submit(job)
        wait_until_blocked()
        eventually(lambda: engine._backlog.outbox.full)
        # What the writer took at once, no more than waits for it now, and those that have begun.
        with pytest.raises(AssertionError, match="not so within"):
            eventually(lambda: len(encoder.beginnings) > 3 * MOST_BATCHES, timeout=0.5)
    sink.outcome("job")


def test_an_engine_that_closes_ends_both_batches(
    start: Start, encoder: InParts, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with ThreadPoolExecutor(1) as closer:
        with busy(engine, encoder):
            begun = job_of(texts(FULL), "begun")
            engine.submit(begun)
            wait_until_tokenised(begun)
            encoder.leaves_core.set()
            eventually(lambda: len(encoder.beginnings) == 2)
            engine.submit(job_of(texts(FULL), "waiting"))
            closing = closer.submit(engine.close, DEADLINE)
            eventually(lambda: engine._backlog.closing)
        assert [job.id for job in closing.result(DEADLINE)] == ["waiting"]
    assert sink.of("finished") == ["busy", "begun"]
