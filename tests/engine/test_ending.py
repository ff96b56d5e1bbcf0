"""Closing an engine, and the remaining state."""

from __future__ import annotations

import random
import threading

import pytest

from tests.engine.stand import EngineWith, Start, blocked, busy, texts, wait_until_tokenised
from tests.fakes import (
    DEADLINE,
    NAN,
    POISON,
    FakeEncoder,
    RecordingSink,
    job_of,
    model_info,
)
from tests.processes import eventually
from worker.contract.lanes import Lane
from worker.engine import Engine, Job


def test_closing_finishes_the_running_batch_and_returns_the_rest(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    running, waiting = job_of(["running"], "running"), job_of(texts(3), "waiting")
    left: list[Job] = []
    closer = threading.Thread(target=lambda: left.extend(engine.close(DEADLINE)))
    with encoder.held():
        engine.submit(running)
        encoder.wait_until_busy()
        engine.submit(waiting)
        closer.start()
        eventually(lambda: refuses(engine))
    closer.join(DEADLINE)
    assert left == [waiting]
    assert set(sink.outcomes) == {"running"}
    assert engine.close(0.0) == []


def refuses(engine: Engine) -> bool:
    try:
        engine.submit(job_of(["late"], "late"))
    except RuntimeError:
        return True
    raise AssertionError("an engine that closes took a job")


def test_closing_returns_a_large_job_that_has_begun(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    large = job_of(texts(2000), "large")
    engine.submit(large)
    sink.wait_for("progressed", "large")
    assert engine.close(DEADLINE) == [large]
    assert sink.outcomes == {}


def test_closing_does_not_wait_longer_than_it_may(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    job = job_of(["stuck"], "stuck")
    with encoder.held():
        engine.submit(job)
        encoder.wait_until_busy()
        assert engine.close(0.05) == [job]
    for thread in threading.enumerate():
        if thread.name.startswith("embedq-"):
            thread.join(DEADLINE)
    assert sink.outcomes == {}, "it was given back"


def test_closing_writes_what_has_ended(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    ended: list[Job] = [job_of([f"text {n}"], f"{n}") for n in range(5)]
    with blocked(sink, "completed") as entered:
        engine.submit(job_of(["first"], "first"))
        entered()
        for job in ended:
            engine.submit(job)
        eventually(lambda: all(job.ended for job in ended))
        closer = threading.Thread(target=engine.close, args=(DEADLINE,))
        closer.start()
    closer.join(DEADLINE)
    assert set(sink.outcomes) == {"first", *(job.id for job in ended)}


def test_an_engine_closes_before_it_has_started() -> None:
    engine = EngineWith(RecordingSink(), [FakeEncoder()])
    job = job_of(["a"], "a")
    engine.submit(job)
    assert engine.close(0.0) == [job]


def test_room_shrinks_with_what_waits_and_comes_back(start: Start, sink: RecordingSink) -> None:
    encoder = FakeEncoder(model_info(batch_tokens=4096))
    engine = start(encoder)
    full = engine.capacity()
    assert full == 8 * 4096
    jobs = [job_of(texts(100), f"{n}", info=encoder.info) for n in range(10)]
    with busy(engine, encoder):
        for job in jobs:
            engine.submit(job)
        wait_until_tokenised(*jobs)
        assert engine.waiting_tokens == 4000
        assert engine.capacity() == full - 4000
    for job in jobs:
        sink.outcome(job.id)
    assert engine.waiting_tokens == 0
    assert engine.capacity() == full


def test_a_large_job_takes_no_more_room_than_a_batch(start: Start, sink: RecordingSink) -> None:
    encoder = FakeEncoder(model_info(batch_tokens=4096))
    engine = start(encoder)
    full = engine.capacity()
    large = job_of(texts(4096), "large", info=encoder.info)
    with busy(engine, encoder):
        engine.submit(large)
        wait_until_tokenised(large)
        assert engine.waiting_tokens == 4 * 4096
        assert engine.capacity() == full - 4096
    sink.outcome("large")
    assert engine.capacity() == full


def test_a_small_budget_still_leaves_room_for_some_texts(
    start: Start, encoder: FakeEncoder
) -> None:
    assert start(encoder).capacity() == 16_384


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_nothing_drifts_over_thousands_of_jobs(
    start: Start, encoder: FakeEncoder, sink: RecordingSink, seed: int
) -> None:
    """Jobs of all kinds from several threads, many cancelled at any time; then all is empty."""
    engine = start(encoder)
    full = engine.capacity()
    told: dict[str, bool] = {}

    def submit(number: int) -> None:
        dice = random.Random(100 * seed + number)
        mine: list[Job] = []
        for at in range(400):
            given: list[object] = [
                dice.choice(["fine text", "word " * 70, 5, POISON, NAN, "one more fine text"])
                for _ in range(dice.choice([1, 1, 2, 20]))
            ]
            job = job_of(
                given, f"{number}.{at}", isolated=dice.random() < 0.02, truncate=dice.random() < 0.9
            )
            engine.submit(job)
            mine.append(job)
            if dice.random() < 0.3:
                gone = dice.choice(mine)
                told[gone.id] = engine.cancel(gone) or told.get(gone.id, False)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    cancelled = {job_id for job_id, gone in told.items() if gone}
    eventually(lambda: len(sink.outcomes) == 1200 - len(cancelled), 30.0)
    assert cancelled.isdisjoint(sink.outcomes)
    assert engine.waiting_tokens == 0
    assert engine.capacity() == full
    assert engine.close(DEADLINE) == []
    assert sink.error is None


def test_texts_of_many_bytes_and_few_tokens_leave_no_room_until_they_end(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    full = engine.capacity()
    with busy(engine, encoder):
        # At most 64 tokens are read of each.
        for number in range(16):
            engine.submit(job_of(["x" * 2**22], f"{number}"))
        assert engine.capacity() <= 0
        assert engine.capacity(Lane.INTERACTIVE) == full
        engine.submit(gone := job_of(["日" * 2**20], "gone"))
        assert engine.capacity() <= -(2**20)
        assert engine.cancel(gone)
    for number in range(16):
        sink.outcome(f"{number}")
    eventually(lambda: engine.capacity() == full)


def test_nothing_runs_after_a_suspect_before_its_end_is_told(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    began = threading.Event()
    encoder.before = lambda _: began.set()
    engine = start(encoder)
    overtaken: list[bool] = []

    def tell(event: str) -> None:
        if event == "completed":
            # Time enough for a batch to begin, if it is allowed to.
            began.clear()
            overtaken.append(began.wait(0.2))

    with busy(engine, encoder):
        sink.before = tell
        for number in (1, 2):
            suspect = job_of([f"suspect {number}"], f"suspect {number}", isolated=True)
            engine.submit(suspect)
    sink.outcome("suspect 2")
    # The first is the busy batch's own end; later batches may overtake it.
    assert len(overtaken) >= 2
    assert not any(overtaken[1:])
