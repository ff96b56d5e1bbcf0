"""Which jobs are looked up together."""

from __future__ import annotations

import threading

from tests.fakes import job_of
from worker.contract.lanes import Lane
from worker.engine.arrivals import Arrivals
from worker.engine.isolation import Isolation
from worker.engine.job import Job


def arrivals_of(*jobs: Job) -> Arrivals:
    lock = threading.Lock()
    # Nobody else uses it: the lock that its methods ask for is held for good.
    lock.acquire()
    arrivals = Arrivals(lock, Isolation(threading.Condition(lock)))
    for job in jobs:
        arrivals.put(job)
    return arrivals


def taken(arrivals: Arrivals, texts: int) -> list[str]:
    return [job.id for job in arrivals.take(texts)]


def named(job_id: str, texts: int, lane: Lane = Lane.NORMAL) -> Job:
    return job_of([""] * texts, job_id, lane=lane)


def test_all_that_wait_are_taken_together_up_to_so_many_texts() -> None:
    arrivals = arrivals_of(named("a", 4), named("b", 4), named("c", 4))
    assert taken(arrivals, 10) == ["a", "b"]
    assert taken(arrivals, 10) == ["c"]


def test_a_job_of_more_texts_is_taken_alone() -> None:
    arrivals = arrivals_of(named("large", 40), named("small", 1))
    assert taken(arrivals, 10) == ["large"]
    assert taken(arrivals, 10) == ["small"]


def test_lanes_come_in_their_order() -> None:
    arrivals = arrivals_of(
        named("bulk", 9, Lane.BULK), named("normal", 9), named("waited for", 1, Lane.INTERACTIVE)
    )
    assert taken(arrivals, 10) == ["waited for", "normal"]
    assert taken(arrivals, 10) == ["bulk"]


def test_no_lane_waits_for_ever() -> None:
    arrivals = arrivals_of(named("large", 40, Lane.BULK))
    turns = []
    for number in range(3):
        arrivals.put(named(f"{number}", 1, Lane.INTERACTIVE))
        turns.append(taken(arrivals, 10))
    assert turns == [["0"], ["large"], ["1", "2"]]


def test_nothing_comes_once_it_is_closed() -> None:
    arrivals = arrivals_of(named("a", 1))
    arrivals.close()
    assert taken(arrivals, 10) == []
