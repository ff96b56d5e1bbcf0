"""Outcomes: the first is final, and is published once."""

from __future__ import annotations

import itertools
import time

import orjson
import pytest
import redis
from celery import Celery, states

from tests.store.stand import (
    RESULT_TTL,
    WAYS,
    failure,
    heard,
    ledger,
    new_job,
    result_of,
    success,
)
from tests.stored import outcome_of
from worker.contract import keys
from worker.contract.jobs import Status
from worker.contract.results import plain
from worker.store.jobs import JobStore, LeaseKeys

#: Celery's own way of storing a result.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


def test_a_finished_job_has_a_result_that_expires(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    jobs.submit(new_job())
    jobs.complete([success()])
    record = jobs.read("one")
    assert record is not None
    assert (record.status, record.done, record.total) == (Status.SUCCEEDED, 2, 2)
    assert record.prompt_tokens == 7
    assert record.created_at is not None
    assert record.started_at is not None
    assert record.finished_at is not None
    assert record.created_at <= record.started_at <= record.finished_at
    outcome = outcome_of(jobs, "one")
    assert outcome is not None
    assert outcome["result"] == plain(result_of())
    for key in (keys.job("one"), keys.result("one")):
        assert RESULT_TTL - 5 < redis_client.ttl(key) <= RESULT_TTL


def test_a_failed_job_says_why(jobs: JobStore) -> None:
    jobs.submit(new_job())
    jobs.complete([failure()])
    record = jobs.read("one")
    assert record is not None
    assert (record.status, record.code) == (Status.FAILED, "invalid_text")
    assert record.message == "input[0]: a int is not a string"


def test_a_job_whose_result_nobody_wants_ends_by_its_record(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    jobs.submit(new_job())
    jobs.complete([success()._replace(meta=b"")])
    record = jobs.read("one")
    assert record is not None
    assert record.status is Status.SUCCEEDED
    assert not jobs.cancel("one")
    assert not redis_client.exists(keys.result("one"))


@pytest.mark.parametrize(
    "order", [*itertools.product(WAYS, repeat=2), *itertools.permutations(WAYS)], ids=" ".join
)
def test_the_first_outcome_stands_whatever_comes_after(
    jobs: JobStore, redis_client: redis.Redis, order: tuple[str, ...]
) -> None:
    jobs.submit(new_job())
    with heard(redis_client, keys.EVENTS, keys.result("one")) as so_far:
        for way in order:
            WAYS[way][0](jobs)
        outcome = jobs.raw_outcome("one")
        assert so_far() == [outcome, b'{"ended":["one"]}'], "told once"
    record = jobs.read("one")
    assert record is not None
    assert record.status is WAYS[order[0]][1]
    found = outcome_of(jobs, "one")
    assert found is not None
    assert Status.of_celery(found["status"]) is record.status
    assert ledger(redis_client)["tokens"] == ledger(redis_client)["expected"] == 0


@pytest.mark.parametrize("state", [states.RETRY, states.STARTED])
@pytest.mark.parametrize("way", WAYS)
def test_a_state_that_is_no_outcome_is_overwritten(
    jobs: JobStore, celery_app: Celery, state: str, way: str
) -> None:
    jobs.submit(new_job())
    value = ValueError("again") if state == states.RETRY else {"pid": 1}
    celery_app.backend.store_result("one", value, state)
    record = jobs.read("one")
    assert record is not None
    assert not record.status.ended
    WAYS[way][0](jobs)
    found = outcome_of(jobs, "one")
    assert found is not None
    assert Status.of_celery(found["status"]) is WAYS[way][1]


def test_a_job_with_a_state_that_is_no_outcome_runs(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    jobs.note("stranger", b'{"status": "STARTED"}')
    assert not redis_client.exists(keys.job("stranger"))
    jobs.submit(new_job())
    jobs.note("one", b'{"status": "STARTED"}')
    record = jobs.read("one")
    assert record is not None
    assert record.status is Status.RUNNING
    jobs.complete([success()])
    jobs.note("one", b'{"status": "STARTED"}')
    found = outcome_of(jobs, "one")
    assert found is not None
    assert found["status"] == "SUCCESS"


def test_an_outcome_that_celery_stored_is_not_overwritten(
    jobs: JobStore, celery_app: Celery, redis_client: redis.Redis
) -> None:
    jobs.submit(new_job())
    celery_app.backend.store_result("one", {"theirs": 1}, states.SUCCESS)
    stored = jobs.raw_outcome("one")
    assert stored is not None
    assert not jobs.cancel("one")
    jobs.complete([failure()])
    assert jobs.raw_outcome("one") == stored
    record = jobs.read("one")
    assert record is not None
    assert (record.status, record.code) == (Status.SUCCEEDED, None)
    assert ledger(redis_client) == {"tokens": 0, "expected": 0, "stored": len(stored)}
    assert 0 < redis_client.ttl(keys.job("one")) <= RESULT_TTL


def test_many_jobs_end_in_one_call_with_one_notice(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    ids = [f"{number}" for number in range(50)]
    for job_id in ids:
        jobs.submit(new_job(job_id))
    jobs.cancel("7")
    with heard(redis_client, keys.EVENTS) as so_far:
        jobs.complete([success(job_id) for job_id in ids])
        (notice,) = so_far()
    assert orjson.loads(notice) == {"ended": [job_id for job_id in ids if job_id != "7"]}


def test_leases_end_with_their_jobs_and_others_stay(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    for tag in ("mine", "late", "other"):
        redis_client.hset("leased", tag, "message")
        redis_client.zadd("index", {tag: 1})
    jobs.submit(new_job("one"))
    jobs.submit(new_job("two"))
    jobs.cancel("two")
    jobs.complete(
        [success("one", tag="mine"), success("two", tag="late")], LeaseKeys("leased", "index")
    )
    assert redis_client.hkeys("leased") == [b"other"]
    assert redis_client.zrange("index", 0, -1) == [b"other"]


def test_a_job_that_never_had_a_record_can_end(jobs: JobStore, redis_client: redis.Redis) -> None:
    jobs.complete([success("stranger")])
    record = jobs.read("stranger")
    assert record is not None
    assert (record.status, record.total, record.model) == (Status.SUCCEEDED, 2, "tiny")
    assert ledger(redis_client)["tokens"] == 0


def test_progress_shows_and_is_told(jobs: JobStore, redis_client: redis.Redis) -> None:
    jobs.submit(new_job("one", total=300))
    jobs.submit(new_job("two", total=9))
    began = time.time() - 5.0
    with heard(redis_client, keys.EVENTS) as so_far:
        jobs.progress([("one", began, 128, 300, 0), ("two", began, 1, 9, 0)])
        (notice,) = so_far()
    assert orjson.loads(notice) == {"progress": {"one": [128, 300], "two": [1, 9]}}
    record = jobs.read("one")
    assert record is not None
    assert record.status is Status.RUNNING
    assert record.started_at == pytest.approx(began, abs=1.0)
    assert (record.done, record.total) == (128, 300)
    assert jobs.queued_tokens() == 200, "it is still to be done"


@pytest.mark.parametrize("way", WAYS)
def test_progress_that_comes_late_does_not_revive_a_job(
    jobs: JobStore, redis_client: redis.Redis, way: str
) -> None:
    jobs.submit(new_job())
    WAYS[way][0](jobs)
    with heard(redis_client, keys.EVENTS) as so_far:
        jobs.progress([("one", time.time(), 1, 2, 0)])
        assert so_far() == []
    record = jobs.read("one")
    assert record is not None
    assert record.status is WAYS[way][1]
    assert redis_client.hget(keys.job("one"), "status") == record.status.value.encode()
    assert redis_client.ttl(keys.job("one")) <= RESULT_TTL


def test_progress_of_a_job_that_celery_ended_is_not_told(
    jobs: JobStore, celery_app: Celery, redis_client: redis.Redis
) -> None:
    jobs.submit(new_job())
    celery_app.backend.store_result("one", {"theirs": 1}, states.SUCCESS)
    jobs.read("one")
    with heard(redis_client, keys.EVENTS) as so_far:
        jobs.progress([("one", time.time(), 1, 2, 0)])
        assert so_far() == []


def test_progress_of_a_job_that_ended_without_a_result_is_not_told(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    jobs.submit(new_job())
    jobs.complete([success()._replace(meta=b"")])
    with heard(redis_client, keys.EVENTS) as so_far:
        jobs.progress([("one", time.time(), 1, 2, 0)])
        assert so_far() == []
    record = jobs.read("one")
    assert record is not None
    assert record.status is Status.SUCCEEDED


def test_progress_of_a_job_without_a_record_makes_one_that_its_end_closes(
    jobs: JobStore,
) -> None:
    jobs.progress([("stranger", time.time(), 1, 2, 0)])
    record = jobs.read("stranger")
    assert record is not None
    assert (record.status, record.done, record.total) == (Status.RUNNING, 1, 2)
    jobs.complete([success("stranger")])
    record = jobs.read("stranger")
    assert record is not None
    assert record.status is Status.SUCCEEDED
