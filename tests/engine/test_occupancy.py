"""The slot that takes the waiting texts: an idle one, a busy one, or the reserved one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engine.stand import waiting
from tests.fakes import DEADLINE, FakeEncoder
from worker.contract.lanes import Lane
from worker.engine.job import Job
from worker.engine.occupancy import Occupancy
from worker.engine.scheduler import Scheduler

MODEL = FakeEncoder().info.name
BUDGETS = {MODEL: 96}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(BUDGETS, slots=2)


def add(scheduler: Scheduler, job: Job) -> None:
    pieces = list(job.waiting)
    job.waiting.clear()
    with scheduler.lock:
        scheduler.add(pieces)


def test_a_slot_leaves_more_to_the_others_the_further_they_are(clock: list[float]) -> None:
    [piece] = waiting("a", [8] * 100).waiting
    slots = Occupancy(2)
    for one in ("first", "second"):
        slots.rest(one)
    slots.run("first", [piece])
    assert slots.share(800) == 800, "nothing is known about the batch that runs"
    clock[0] += 10
    slots.rest("first")
    slots.run("first", [piece])
    clock[0] += 5
    assert slots.share(800) == 600, "half of that batch is left"
    clock[0] += 50
    assert slots.share(800) == 400
    assert slots.share(0) == 1


def test_the_reserved_slot_takes_nothing_while_another_slot_is_idle(scheduler: Scheduler) -> None:
    add(scheduler, waiting("asked", [8], lane=Lane.INTERACTIVE))
    with scheduler.lock:
        scheduler.slots.rest("first")
        assert scheduler.next_batch(BUDGETS, interactive=True) is None
        scheduler.slots.run("first", [])
        assert scheduler.next_batch(BUDGETS, interactive=True) is not None


def test_the_reserved_slot_leaves_many_texts_to_full_batches(scheduler: Scheduler) -> None:
    add(scheduler, waiting("asked", [8] * 5, lane=Lane.INTERACTIVE))
    with scheduler.lock:
        assert scheduler.next_batch(BUDGETS, interactive=True) is None
        assert scheduler.next_batch(BUDGETS, interactive=False) is not None


def test_texts_that_the_last_idle_slot_leaves_wake_the_reserved_slot(scheduler: Scheduler) -> None:
    entered = threading.Event()

    def reserved() -> bool:
        with scheduler.lock:
            entered.set()
            return scheduler.to_answer.wait(DEADLINE)

    with ThreadPoolExecutor() as pool:
        woken = pool.submit(reserved)
        assert entered.wait(DEADLINE)
        with scheduler.lock:
            scheduler.slots.rest("first")
        add(scheduler, waiting("asked", [8] * 4, lane=Lane.INTERACTIVE))
        with scheduler.lock:
            taken = scheduler.next_batch(BUDGETS, interactive=False)
            assert taken is not None
            scheduler.slots.run("first", taken.pieces)
            assert scheduler.queues.tokens > 0
            scheduler.wake_others()
        assert woken.result(DEADLINE)
