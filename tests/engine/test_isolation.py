"""A possible poison job has the process to itself, in every stage."""

from __future__ import annotations

import random
import threading

import pytest

from tests.engine.stand import Start, assert_vectors, blocked, busy
from tests.fakes import DEADLINE, UNREADABLE, FakeEncoder, RecordingSink, job_of
from tests.processes import eventually
from worker.contract.lanes import Lane
from worker.engine import Job


class Stages(RecordingSink):
    """Records the steps of all stages in order: name, and jobs or texts."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, set[str]]] = []

    def watch(self, *encoders: FakeEncoder) -> None:
        for encoder in encoders:
            encoder.before_tokens = lambda given: self.note("tokenise", given)
            encoder.before = lambda given: self.note("encode", given)

    def note(self, stage: str, given: list[str]) -> None:
        # Each text begins with the id of its job.
        self.seen.append((stage, {text.split()[0] for text in given}))

    def _hear(self, event: str, jobs: object) -> None:
        self.seen.append((event, {job.id for job in jobs}))  # type: ignore[attr-defined]
        super()._hear(event, jobs)  # type: ignore[arg-type]

    def slices(self) -> list[tuple[str, list[tuple[str, set[str]]]]]:
        """Each slice's job, and the steps from `isolate` to `released`."""
        found: list[tuple[str, list[tuple[str, set[str]]]]] = []
        inside = False
        for stage, jobs in self.seen:
            if stage == "isolate":
                assert not inside
                inside = True
                found.append((*jobs, []))
            elif stage == "released":
                assert inside
                inside = False
            elif inside:
                found[-1][1].append((stage, jobs))
        return found


@pytest.fixture
def sink() -> Stages:
    return Stages()


def named(job_id: str, count: int, **how: object) -> Job:
    return job_of([f"{job_id} text {number}" for number in range(count)], job_id, **how)  # type: ignore[arg-type]


def test_a_job_is_counted_before_its_first_stage(
    start: Start, encoder: FakeEncoder, sink: Stages
) -> None:
    engine = start(encoder)
    sink.watch(encoder)
    engine.submit(named("suspect", 3, isolated=True))
    assert_vectors(sink.outcome("suspect").vectors, [f"suspect text {n}" for n in range(3)])
    sink.wait_for("released", "suspect")
    stages = [stage for stage, _ in sink.seen]
    assert stages == ["isolate", "tokenise", "started", "encode", "completed", "released"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("slots", [1, 3])
def test_nothing_of_other_jobs_happens_meanwhile(
    seed: int, slots: int, start: Start, encoder: FakeEncoder, sink: Stages
) -> None:
    dice = random.Random(seed)
    encoder.slots, encoder.reserved = slots, slots > 1
    engine = start(encoder)
    sink.watch(encoder)
    jobs = [
        named(
            *(f"{number}", dice.choice([1, 2, 30])),
            isolated=dice.random() < 0.3,
            lane=dice.choice(list(Lane)),
        )
        for number in range(120)
    ]
    for job in jobs:
        engine.submit(job)
        if dice.random() < 0.1:
            engine.cancel(dice.choice(jobs))
    eventually(lambda: all(job.cancelled or job.id in sink.outcomes for job in jobs), 30)
    eventually(lambda: engine.waiting_tokens == 0)
    isolated = sink.slices()
    assert {job_id for job_id, _ in isolated} >= {
        job.id for job in jobs if job.isolated and not job.cancelled
    }
    for job_id, stages in isolated:
        assert set().union(*(jobs for _, jobs in stages)) <= {job_id}
    alone = {job.id for job in jobs if job.isolated}
    apart = [jobs for stage, jobs in sink.seen if stage in ("tokenise", "encode")]
    assert all(len(jobs) == 1 for jobs in apart if jobs & alone)


def test_a_large_job_runs_in_slices_between_which_others_have_their_turn(
    start: Start, encoder: FakeEncoder, sink: Stages
) -> None:
    engine = start(encoder)
    with busy(engine, encoder):
        engine.submit(named("suspect", 40, isolated=True), named("large", 40))
    for job_id in ("suspect", "large"):
        sink.outcome(job_id)
    sink.wait_for("released", "suspect")
    order = [{text.split()[0] for text in batch} for batch in encoder.batches[1:]]
    assert {"suspect"} in order[:3]
    assert {"large"} in order[:3]
    assert sink.of("started").count("suspect") == 1
    assert sink.of("isolate").count("suspect") == sink.of("released").count("suspect") > 3


def test_jobs_that_keep_coming_hold_it_up_for_no_more_than_a_batch(
    start: Start, encoder: FakeEncoder, sink: Stages
) -> None:
    engine = start(encoder)
    with busy(engine, encoder):
        for number in range(50):
            engine.submit(named(f"{number}", 8))
        engine.submit(named("suspect", 1, isolated=True))
    sink.outcome("suspect")
    assert list(sink.outcomes).index("suspect") < 20


def test_many_such_jobs_do_not_hold_up_others(
    start: Start, encoder: FakeEncoder, sink: Stages
) -> None:
    engine = start(encoder)
    with busy(engine, encoder):
        engine.submit(*(named(f"{number}", 1, isolated=True) for number in range(50)))
        engine.submit(named("other", 1))
    sink.outcome("other")
    assert list(sink.outcomes).index("other") < 10
    eventually(lambda: len(sink.outcomes) == 52)


def test_one_that_may_not_run_is_forgotten_before_it_is_tokenised(
    start: Start, encoder: FakeEncoder, sink: Stages
) -> None:
    sink.refused = {"no"}
    engine = start(encoder)
    sink.watch(encoder)
    engine.submit(
        named("no", 300, isolated=True), named("yes", 1, isolated=True), named("other", 1)
    )
    sink.outcome("yes")
    sink.outcome("other")
    sink.wait_for("released", "yes")
    assert engine.waiting_tokens == 0
    assert {"no"} not in [jobs for stage, jobs in sink.seen if stage == "tokenise"]
    assert sink.of("released") == ["yes"]


def test_one_that_is_cancelled_when_its_turn_comes_holds_up_nothing(
    start: Start, encoder: FakeEncoder, sink: Stages
) -> None:
    engine = start(encoder)
    suspect, other = named("suspect", 1, isolated=True), named("other", 1)
    with blocked(sink, "completed") as entered:
        engine.submit(named("first", 1))
        entered()
        engine.submit(suspect)
        eventually(lambda: engine._scheduler.isolation.active)
        engine.submit(other)
        assert engine.cancel(suspect)
    sink.outcome("other")
    assert sink.of("isolate") == []


def test_texts_that_are_refused_end_a_slice_without_a_batch(
    start: Start, encoder: FakeEncoder, sink: Stages
) -> None:
    engine = start(encoder)
    engine.submit(job_of([UNREADABLE, 1] * 200, "bad", isolated=True), job_of(["fine"], "other"))
    assert sink.failure("bad").code == "invalid_text"
    sink.outcome("other")
    sink.wait_for("released", "bad")
    assert sink.of("isolate").count("bad") == 2


def test_what_is_told_of_it_blocks_everything_else(
    start: Start, encoder: FakeEncoder, sink: Stages
) -> None:
    engine = start(encoder)
    other = named("other", 1)
    with blocked(sink, "completed") as entered:
        engine.submit(named("suspect", 1, isolated=True))
        entered()
        engine.submit(other)
        assert not threading.Event().wait(0.05)
        assert other.tokenized == 0
    sink.outcome("other")


def test_an_engine_that_closes_in_a_slice_ends_in_time(
    start: Start, encoder: FakeEncoder, sink: Stages
) -> None:
    engine = start(encoder)
    with encoder.held():
        engine.submit(named("suspect", 40, isolated=True), *(named(f"{n}", 1) for n in range(3)))
        encoder.wait_until_busy()
        closing = threading.Thread(target=lambda: left.extend(engine.close(DEADLINE)))
        left: list[Job] = []
        closing.start()
        eventually(lambda: engine._scheduler.closed)
    closing.join(DEADLINE)
    assert {job.id for job in left} == {"suspect", "0", "1", "2"}
    assert engine.stopped
    assert sink.of("released") == []


def test_texts_of_others_are_not_looked_up_meanwhile(
    start: Start, encoder: FakeEncoder, sink: Stages
) -> None:
    looked_up = threading.Event()

    class Cache:
        """Misses every text and records the look-up."""

        class keys:  # noqa: N801
            @staticmethod
            def of(*_: object) -> list[bytes]:
                looked_up.set()
                return [b"key"]

        def find(self, wanted: list[bytes]) -> list[None]:
            return [None for _ in wanted]

        def keep(self, *_: object) -> bool:
            return True

    engine = start(encoder, cache=Cache())
    with encoder.held():
        engine.submit(named("suspect", 1, isolated=True))
        encoder.wait_until_busy()
        engine.submit(named("other", 1))
        assert not looked_up.wait(0.05)
    sink.outcome("other")
    assert looked_up.is_set()
    assert_vectors(sink.outcome("suspect").vectors, ["suspect text 0"])
