"""Who takes what waits: an idle slot, a busy one, or the reserved slot."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engine.stand import waiting
from tests.fakes import DEADLINE, FakeEncoder
from worker.contract.lanes import Lane
from worker.engine.backlog import Backlog
from worker.engine.job import Job
from worker.engine.occupancy import Occupancy

MODEL = FakeEncoder().info.name
BUDGETS = {MODEL: 96}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def backlog() -> Backlog:
    return Backlog([MODEL], 0, slots=2)


def line_up(backlog: Backlog, job: Job) -> None:
    pieces = list(job.chunks)
    job.chunks.clear()
    with backlog.lock:
        backlog.line_up([], pieces)


def test_a_slot_leaves_more_to_the_others_the_further_they_are(clock: list[float]) -> None:
    [piece] = waiting("a", [8] * 100).chunks
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


def test_the_reserved_slot_takes_nothing_while_another_slot_is_idle(backlog: Backlog) -> None:
    line_up(backlog, waiting("asked", [8], lane=Lane.INTERACTIVE))
    with backlog.lock:
        backlog.slots.rest("first")
        assert backlog.cut(BUDGETS, interactive=True) is None
        backlog.slots.run("first", [])
        assert backlog.cut(BUDGETS, interactive=True) is not None


def test_the_reserved_slot_leaves_many_texts_to_full_batches(backlog: Backlog) -> None:
    line_up(backlog, waiting("asked", [8] * 5, lane=Lane.INTERACTIVE))
    with backlog.lock:
        assert backlog.cut(BUDGETS, interactive=True) is None
        assert backlog.cut(BUDGETS, interactive=False) is not None


def test_texts_that_the_last_idle_slot_leaves_wake_the_reserved_slot(backlog: Backlog) -> None:
    entered = threading.Event()

    def reserved() -> bool:
        with backlog.lock:
            entered.set()
            return backlog.to_answer.wait(DEADLINE)

    with ThreadPoolExecutor() as pool:
        woken = pool.submit(reserved)
        assert entered.wait(DEADLINE)
        with backlog.lock:
            backlog.slots.rest("first")
        line_up(backlog, waiting("asked", [8] * 4, lane=Lane.INTERACTIVE))
        with backlog.lock:
            taken = backlog.cut(BUDGETS, interactive=False)
            assert taken is not None
            backlog.slots.run("first", taken.pieces)
            assert backlog.queues.tokens > 0
            backlog.found()
        assert woken.result(DEADLINE)
