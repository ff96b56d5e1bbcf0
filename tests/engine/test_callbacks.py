"""The calls of a job's callbacks, their threads, and their effect on other stages."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from tests.engine.stand import (
    Start,
    assert_vectors,
    blocked,
    busy,
    crashes,
    texts,
    wait_until_tokenised,
)
from tests.fakes import (
    DEADLINE,
    FakeEncoder,
    RecordingSink,
    job_of,
)
from tests.processes import eventually
from worker.contract.errors import JobFailed
from worker.contract.outcomes import Outcome
from worker.engine.scheduler import BATCHES_TO_WRITE


def test_the_sink_is_told_in_order_and_on_the_threads_it_was_promised(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    start(encoder).submit(job_of(texts(100), "a"))
    sink.outcome("a")
    events = [event for event, _, _ in sink.heard]
    assert events[:2] == ["admit", "started"]
    assert events[-1] == "completed"
    assert set(events[2:-1]) == {"progressed"}
    assert sink.threads_of("admit") == sink.threads_of("started") == {"embedq-encode"}
    assert sink.threads_of("progressed") == sink.threads_of("completed") == {"embedq-write"}


def test_a_sink_that_blocks_holds_the_device_back_and_loses_nothing(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with blocked(sink, "completed") as entered:
        engine.submit(job_of(["first"], "first"))
        entered()
        for number in range(30):
            job = job_of(["word " * 32], f"{number}")
            engine.submit(job)
        eventually(lambda: len(encoder.batches) == 1 + BATCHES_TO_WRITE)
        # Without the limit, the next batch would start at once.
        assert not threading.Event().wait(0.05)
        assert len(encoder.batches) == 1 + BATCHES_TO_WRITE
        assert engine.busy_since is None
    for number in range(30):
        sink.outcome(f"{number}")
    assert len(encoder.batches) == 31


def test_a_sink_that_blocks_does_not_hold_back_batches_before_the_bound(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with blocked(sink, "completed") as entered:
        engine.submit(job_of(["first"], "first"))
        entered()
        second = job_of(["second"], "second")
        engine.submit(second)
        eventually(lambda: second.ended)


@crashes
@pytest.mark.parametrize("event", ["admit", "started", "progressed", "completed"])
def test_a_sink_that_raises_takes_the_engine_down_and_no_job_is_forgotten(
    start: Start, encoder: FakeEncoder, event: str
) -> None:
    class Broken(RecordingSink):
        def _hear(self, heard: str, jobs: object) -> None:
            if heard == event:
                raise LookupError(event)

    sink = Broken()
    engine = start(encoder, sink=sink)
    engine.submit(job_of(texts(1000), "large"))
    if event == "completed":
        engine.submit(job_of(["small"], "small"))
    assert isinstance(sink.wait_for_crash(), LookupError)
    left = {job.id for job in engine.close(DEADLINE)}
    assert left == ({"large", "small"} if event == "completed" else {"large"})


def test_a_job_cancelled_while_it_waits_is_never_encoded(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    gone, other = job_of(["gone"], "gone"), job_of(["other"], "other")
    with busy(engine, encoder):
        engine.submit(gone)
        engine.submit(other)
        wait_until_tokenised(gone, other)
        assert engine.cancel(gone)
        assert not engine.cancel(gone)
    sink.outcome("other")
    assert "gone" not in encoder.seen
    assert "gone" not in {job_id for _, job_id, _ in sink.heard}


def test_a_job_cancelled_in_the_tokenizer_is_heard_of_no_more(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    gone = job_of(texts(4096), "gone")
    entered, leave = threading.Event(), threading.Event()

    def hold(_: list[str]) -> None:
        entered.set()
        assert leave.wait(DEADLINE)

    encoder.before_tokens = hold
    engine.submit(gone)
    assert entered.wait(DEADLINE)
    assert engine.cancel(gone)
    engine.submit(job_of(["other"], "other"))
    leave.set()
    sink.outcome("other")
    assert engine.waiting_tokens == 0
    assert "gone" not in {job_id for _, job_id, _ in sink.heard}
    assert sum(encoder.tokenised) < 512, "it is tokenised to the end for nobody"


def test_a_running_job_that_is_cancelled_takes_no_further_batch(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    large = job_of(texts(1000), "large")
    with encoder.held():
        engine.submit(large)
        encoder.wait_until_busy()
        assert engine.cancel(large)
        engine.submit(job_of(["after"], "after"))
    sink.outcome("after")
    assert len(encoder.batches) == 2
    assert "large" not in sink.outcomes
    assert sink.of("progressed") == []


def test_a_job_that_ended_but_is_not_written_can_be_cancelled(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    first, second = job_of(["first"], "first"), job_of(["second"], "second")
    with blocked(sink, "completed") as entered:
        engine.submit(first)
        entered()
        engine.submit(second)
        eventually(lambda: second.ended)
        assert engine.cancel(second)
        assert not engine.cancel(first), "the sink has it"
        engine.submit(job_of(["third"], "third"))
    sink.outcome("third")
    assert set(sink.outcomes) == {"first", "third"}


def test_a_job_that_may_not_start_is_forgotten(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    sink.refused = {"no"}
    engine = start(encoder)
    no, yes = job_of(texts(300), "no"), job_of(["yes"], "yes")
    with busy(engine, encoder):
        engine.submit(no)
        engine.submit(yes)
        eventually(lambda: no.waiting and yes.waiting)
    sink.outcome("yes")
    eventually(lambda: engine.waiting_tokens == 0)
    assert sink.of("admit").count("no") == 1
    assert sink.of("started") == ["busy", "yes"]
    assert "text 0 of some" not in encoder.seen
    assert not engine.cancel(no)


def test_jobs_of_a_batch_complete_with_their_own_callbacks(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    other = RecordingSink()
    engine = start(encoder)
    mine = [job_of([f"mine {n}"], f"mine {n}") for n in range(3)]
    others = [job_of([f"other {n}"], f"other {n}") for n in range(3)]
    for job in others:
        job.callbacks = other
    with busy(engine, encoder):
        for pair in zip(mine, others, strict=True):
            engine.submit(*pair)
        wait_until_tokenised(*mine, *others)
    for n in range(3):
        sink.outcome(f"mine {n}")
        other.outcome(f"other {n}")
    assert len(encoder.batches) == 2
    assert sink.of("started") == ["busy", "mine 0", "mine 1", "mine 2"]
    assert set(other.of("started")) == set(other.outcomes) == {"other 0", "other 1", "other 2"}


def test_a_job_without_callbacks_completes_its_future(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    waited: Future[Outcome | JobFailed] = Future()
    given_up: Future[Outcome | JobFailed] = Future()
    with busy(engine, encoder):
        for text, future in (("waited", waited), ("given up", given_up)):
            job = job_of([text], text)
            job.owner = future
            engine.submit(job)
        given_up.cancel()
    outcome = waited.result(DEADLINE)
    assert isinstance(outcome, Outcome)
    assert_vectors(outcome.vectors, ["waited"])
    engine.close(DEADLINE)
    assert "given up" not in encoder.seen
    assert set(sink.outcomes) == {"busy"}
