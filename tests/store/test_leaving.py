"""Cancelled, withdrawn and released jobs; the ledger at the end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from tests.store.stand import (
    RESULT_TTL,
    failure,
    ledger,
    new_job,
    success,
)
from tests.stored import outcome_of
from worker.contract import keys
from worker.contract.jobs import Status
from worker.store.jobs import Completion, JobStore


def test_cancelling_tells_who_waits(jobs: JobStore, redis_client: redis.Redis) -> None:
    jobs.submit(new_job())
    assert jobs.cancel("one")
    assert not jobs.cancel("one")
    record = jobs.read("one")
    assert record is not None
    assert record.status is Status.CANCELLED
    assert record.finished_at is not None
    assert 0 < redis_client.ttl(keys.job("one")) <= RESULT_TTL


def test_a_withdrawn_job_was_never_there(jobs: JobStore, redis_client: redis.Redis) -> None:
    jobs.submit(new_job(owner="me", message=None))
    jobs.withdraw("one")
    jobs.withdraw("one")
    assert jobs.read("one") is None
    assert jobs.page("me", limit=10) == ([], None)
    assert ledger(redis_client) == {"tokens": 0, "expected": 0, "stored": 0}


def test_a_released_job_leaves_early_and_its_bytes_with_it(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    jobs.submit(new_job())
    jobs.complete([success(), success("other")])
    jobs.release("one", 60)
    jobs.release("one", 60)
    assert ledger(redis_client)["stored"] == len(success("other").meta)
    for key in (keys.job("one"), keys.result("one")):
        assert 0 < redis_client.ttl(key) <= 60
    jobs.release("one", 300)
    assert redis_client.ttl(keys.result("one")) <= 60


def test_a_job_that_runs_is_not_released(jobs: JobStore, redis_client: redis.Redis) -> None:
    jobs.submit(new_job())
    jobs.release("one", 60)
    assert redis_client.ttl(keys.job("one")) > 60
    assert jobs.queued_tokens() == 100


def test_a_success_that_was_read_by_who_waited_is_not_kept_long(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    for name in ("one", "other"):
        jobs.submit(new_job(name))
        jobs.read_and_release(name, 60)
        assert redis_client.ttl(keys.job(name)) > 60
    jobs.complete([success("one"), failure("other")])
    for name in ("one", "other"):
        found = jobs.read_with_outcome(name)
        assert jobs.read_and_release(name, 60) == found
    assert 0 < redis_client.ttl(keys.result("one")) <= 60
    # Failures may be inspected later.
    assert redis_client.ttl(keys.result("other")) > 60


@pytest.mark.parametrize("seed", range(5))
def test_the_ledger_returns_to_nothing_whatever_becomes_of_jobs_and_however_often(
    jobs: JobStore, redis_client: redis.Redis, seed: int
) -> None:
    dice = random.Random(seed)
    ids = [f"{number}" for number in range(30)]
    steps: list[Callable[[str], object]] = [
        lambda job_id: jobs.complete([success(job_id)]),
        lambda job_id: jobs.complete([failure(job_id)]),
        lambda job_id: jobs.complete([Completion(job_id, Status.CANCELLED)]),
        jobs.cancel,
        jobs.withdraw,
        lambda job_id: jobs.submit(new_job(job_id, tokens=dice.randint(1, 99))),
        lambda job_id: jobs.progress([(job_id, time.time(), 1, 2, dice.randint(0, 99))]),
        lambda job_id: jobs.release(job_id, 60),
    ]
    for _ in range(400):
        dice.choice(steps)(dice.choice(ids))
        held = ledger(redis_client)
        assert held["tokens"] >= 0
        assert held["expected"] >= 0
    for job_id in ids:
        dice.choice(steps[:5])(job_id)
    assert ledger(redis_client)["tokens"] == ledger(redis_client)["expected"] == 0


def test_ending_and_cancelling_at_once_leave_one_outcome(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    ids = [f"{number}" for number in range(100)]
    for job_id in ids:
        jobs.submit(new_job(job_id))
    together = threading.Barrier(2)

    def finish() -> None:
        together.wait(5)
        for job_id in ids:
            jobs.complete([success(job_id)])

    def cancel() -> list[str]:
        together.wait(5)
        return [job_id for job_id in ids if jobs.cancel(job_id)]

    with ThreadPoolExecutor(2) as threads:
        finishing, cancelling = threads.submit(finish), threads.submit(cancel)
        finishing.result(10)
        cancelled = set(cancelling.result(10))
    for job_id, record in zip(ids, jobs.read_many(ids), strict=True):
        expected = Status.CANCELLED if job_id in cancelled else Status.SUCCEEDED
        assert record is not None
        assert record.status is expected
        outcome = outcome_of(jobs, job_id)
        assert outcome is not None
        assert Status.of_celery(outcome["status"]) is expected
