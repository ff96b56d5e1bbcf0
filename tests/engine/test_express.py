"""Small batches that overtake the one that runs."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.engine.stand import Start, assert_vectors, busy, crashes, texts
from tests.engine.test_lanes import BUDGET, bulk, interactive
from tests.engine.test_schedule import texts_of, tokens_of, waiting
from tests.fakes import POISON, FakeEncoder, RecordingSink, job_of
from worker.contract.lanes import Lane
from worker.engine import Job
from worker.engine.forward import DeviceLost
from worker.engine.schedule import Schedules
from worker.engine.shares import Shares

#: The model of the jobs, and tokens of its batches and of the express's.
BUDGETS, ROOM = {"fake": BUDGET}, {"fake": BUDGET // 2}


def schedules_of(*jobs: Job) -> Schedules:
    schedules = Schedules(["fake"], ["fake"])
    for job in jobs:
        schedules.add(job)
    return schedules


# -- which jobs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", [Lane.BULK, Lane.NORMAL])
def test_a_job_somebody_waits_for_overtakes_a_batch_of_a_lower_lane(lane: Lane) -> None:
    schedules = schedules_of(waiting("others", [10] * 100, lane=lane))
    schedules.cut(BUDGETS)
    schedules.add(interactive("asked", [10] * 2))
    assert texts_of(schedules.cut_express(ROOM)) == {"asked": 2}
    assert schedules.cut_express(ROOM) == []
    assert texts_of(schedules.cut(BUDGETS)) == {"others": 10}


def test_only_jobs_that_somebody_waits_for_overtake() -> None:
    schedules = schedules_of(bulk("bulk", [10] * 100))
    schedules.cut(BUDGETS)
    schedules.add(waiting("normal", [10]))
    assert schedules.cut_express(ROOM) == []


def test_nobody_overtakes_while_the_device_is_free_or_runs_jobs_of_callers_alike() -> None:
    schedules = schedules_of(interactive("first", [10], "one"))
    assert schedules.cut_express(ROOM) == []
    schedules.cut(BUDGETS)
    schedules.add(interactive("second", [10], "two"))
    assert schedules.cut_express(ROOM) == []
    assert texts_of(schedules.cut(BUDGETS)) == {"second": 1}
    assert schedules.cut(BUDGETS) == []
    schedules.add(interactive("third", [10], "two"))
    assert schedules.cut_express(ROOM) == []


def test_callers_with_little_overtake_a_flood_and_the_flood_overtakes_nothing() -> None:
    schedules = schedules_of(interactive("flood", [10] * 10, "flood"))
    schedules.cut(BUDGETS)
    schedules.add(interactive("more", [10], "flood"))
    schedules.add(interactive("other", [10], "other"))
    assert texts_of(schedules.cut_express(ROOM)) == {"other": 1}
    schedules.add(bulk("overflow", [10] * 100, "flood"))
    # Until its turn among those who wait has come, with no more than others have.
    assert texts_of(schedules.cut(BUDGETS)) == {"more": 1}
    schedules.cut(BUDGETS)
    schedules.add(interactive("little", [10], "flood"))
    assert texts_of(schedules.cut_express(ROOM)) == {"little": 1}


def test_a_flood_overtakes_no_lower_lane_while_others_are_about() -> None:
    schedules = schedules_of(interactive("flood", [10] * 10, "flood"), bulk("bulk", [10] * 400))
    schedules.cut(BUDGETS)
    schedules.add(interactive("other", [10], "other"))
    assert texts_of(schedules.cut_express(ROOM)) == {"other": 1}
    for number in range(20):
        assert texts_of(schedules.cut(BUDGETS)) == {"bulk": 10}
        job = interactive(f"{number}", [10], "flood")
        schedules.add(job)
        overtaking = texts_of(schedules.cut_express(ROOM))
        assert overtaking == ({f"{number}": 1} if number >= 16 else {})
        schedules.discard(job)


def test_who_is_alone_with_his_flood_overtakes_his_own_bulk() -> None:
    schedules = schedules_of(interactive("flood", [10] * 10), bulk("bulk", [10] * 400))
    schedules.cut(BUDGETS)
    for number in range(20):
        assert texts_of(schedules.cut(BUDGETS)) == {"bulk": 10}
        schedules.add(interactive(f"{number}", [10]))
        assert texts_of(schedules.cut_express(ROOM)) == {f"{number}": 1}


def test_a_job_that_is_too_large_for_the_express_waits_for_the_device() -> None:
    schedules = schedules_of(bulk("bulk", [10] * 100))
    schedules.cut(BUDGETS)
    schedules.add(interactive("large", [10] * 6, "one"))
    schedules.add(interactive("small", [10] * 2, "two"))
    assert texts_of(schedules.cut_express(ROOM)) == {"small": 2}
    assert texts_of(schedules.cut(BUDGETS)) == {"large": 6}


def test_owners_take_turns_in_the_express() -> None:
    schedules = schedules_of(bulk("bulk", [10] * 1000))
    schedules.cut(BUDGETS)
    for number in range(4):
        schedules.add(interactive(f"{number}", [10] * 4, f"{number}"))
    assert [dict(texts_of(schedules.cut_express(ROOM))) for _ in range(4)] == [
        {f"{number}": 4} for number in range(4)
    ]


def test_a_job_that_is_not_all_there_is_left_alone() -> None:
    shares = Shares()
    begun, unread = interactive("begun", [10] * 4), interactive("unread", [10] * 2)
    unread.texts.append("not tokenised yet")
    for job in (begun, unread):
        shares.add(job)
    begun.take(10, 10, force=False)
    assert shares.take_whole(BUDGET, ()) == []
    # What was on its way has come back.
    begun.done = 1
    assert texts_of(shares.take_whole(BUDGET, ())) == {"begun": 3}


# -- the batches that are overtaken -------------------------------------------------------------


def test_batches_that_can_be_overtaken_are_whole() -> None:
    schedules = schedules_of(bulk("bulk", [10] * 1000))
    for number in range(5):
        schedules.add(interactive(f"{number}", [10]))
        assert tokens_of(schedules.cut(BUDGETS)) == 10
        assert tokens_of(schedules.cut(BUDGETS)) == BUDGET


def test_a_lane_whose_turn_has_come_takes_nobody_along_who_waits() -> None:
    schedules = schedules_of(interactive("asked", [10] * 1000), bulk("bulk", [10] * 1000))
    batches = [set(texts_of(schedules.cut(BUDGETS))) for _ in range(10)]
    assert batches.count({"bulk"}) == 2
    assert batches.count({"asked"}) == 8


def patience_with(*jobs: Job, overtaken: bool = True) -> bool:
    """Whether the next batch, of these jobs, is patient, right after one that was overtaken."""
    schedules = schedules_of(bulk("bulk", [10] * 10))
    schedules.cut(BUDGETS)
    if overtaken:
        schedules.add(interactive("asked", [10], "other"))
        assert schedules.cut_express(ROOM)
        assert not schedules.cut_express(ROOM)
    for job in jobs:
        schedules.add(job)
    assert schedules.cut(BUDGETS)
    return schedules.patient


def test_batches_that_others_overtake_leave_them_the_cores() -> None:
    assert patience_with(bulk("bulk", [10] * 10))
    assert patience_with(interactive("flood", [10] * 10, "flood"))


def test_batches_that_somebody_waits_for_keep_the_cores() -> None:
    assert not patience_with(bulk("bulk", [10]), waiting("normal", [10]))
    assert not patience_with(interactive("asked", [10], "one"))


def test_batches_keep_the_cores_while_nobody_overtakes_them() -> None:
    assert not patience_with(bulk("bulk", [10] * 10), overtaken=False)
    assert not patience_with(interactive("many", [10] * 10), overtaken=False)
    schedules = schedules_of(bulk("bulk", [10] * 1000))
    schedules.cut(BUDGETS)
    schedules.add(interactive("asked", [10]))
    schedules.cut_express(ROOM)
    patient = []
    for _ in range(20):
        schedules.cut(BUDGETS)
        patient.append(schedules.patient)
    assert patient == [True] * 16 + [False] * 4


@pytest.mark.parametrize("seed", range(20))
def test_every_text_is_in_one_batch_whichever_thread_runs_it(seed: int) -> None:
    dice = random.Random(seed)
    schedules = schedules_of()
    jobs: list[Job] = []
    seen: Counter[str] = Counter()
    for _ in range(200):
        for _ in range(dice.randint(0, 2)):
            lengths = [dice.randint(1, 30) for _ in range(dice.choice([1, 2, 30]))]
            lane, tenant = dice.choice(list(Lane)), dice.choice("ab")
            job = waiting(f"{len(jobs)}", lengths, lane=lane, tenant=tenant)
            jobs.append(job)
            schedules.add(job)
        seen += texts_of(schedules.cut(BUDGETS))
        if dice.random() < 0.5:
            pieces = schedules.cut_express(ROOM)
            assert tokens_of(pieces) <= ROOM["fake"]
            seen += texts_of(pieces)
    while pieces := schedules.cut(BUDGETS) + schedules.cut_express(ROOM):
        seen += texts_of(pieces)
    assert seen == {job.id: len(job.texts) for job in jobs}


# -- the thread ---------------------------------------------------------------------------------


@pytest.fixture
def beside(encoder: FakeEncoder) -> FakeEncoder:
    """What the encoder computes with beside its batches."""
    second = FakeEncoder(encoder.info)
    # The same vocabulary.
    second._words = encoder._words
    encoder.express = second.forward
    return second


def asked(given: list[str], job_id: str) -> Job:
    return job_of(given, job_id, lane=Lane.INTERACTIVE)


def test_a_job_somebody_waits_for_ends_while_a_batch_of_others_runs(
    start: Start, encoder: FakeEncoder, beside: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with busy(engine, encoder):
        engine.submit(asked(texts(3), "asked"))
        outcome = sink.outcome("asked")
        assert_vectors(outcome.vectors, texts(3))
        assert outcome.prompt_tokens == 12
        assert beside.batches == [texts(3)]
        assert "busy" not in sink.outcomes
        assert engine.busy_since is not None
    sink.outcome("busy")
    assert sorted(sink.of("started")) == ["asked", "busy"]
    assert (engine.batches, engine.texts, engine.tokens) == (2, 4, 13)
    assert engine.capacity == encoder.info.batch_tokens * 3 // 2


def test_a_text_that_fails_beside_a_batch_fails_alone(
    start: Start, encoder: FakeEncoder, beside: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    given = ["fine", POISON, "fine, too"]
    with busy(engine, encoder):
        engine.submit(asked(given, "asked"))
        outcome = sink.outcome("asked")
    assert_vectors(outcome.vectors, given, but=(1,))
    assert [(error.index, error.code) for error in outcome.errors] == [(1, "encode_failed")]
    assert engine.splits == 2


@crashes
def test_a_device_lost_beside_a_batch_takes_the_engine_down(
    start: Start, encoder: FakeEncoder, beside: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    beside.lost = True
    with busy(engine, encoder):
        engine.submit(asked(["never"], "asked"))
        assert isinstance(sink.wait_for_crash(), DeviceLost)
    assert "asked" in [job.id for job in engine.close(5)]


def test_a_suspect_begins_once_what_overtakes_has_ended(
    start: Start, encoder: FakeEncoder, beside: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with beside.held():
        with busy(engine, encoder):
            engine.submit(asked(["quick"], "asked"))
            beside.wait_until_busy()
            engine.submit(job_of(["suspect"], "suspect", alone=True))
        sink.outcome("busy")
        assert sink.of("isolate") == []
    sink.outcome("suspect")
    sink.outcome("asked")
