"""Acceptance of jobs, once and within bounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from tests.store.stand import (
    QUEUE,
    failure,
    ledger,
    new_job,
    success,
)
from worker.contract import keys
from worker.contract.jobs import Status
from worker.store import submissions
from worker.store.jobs import RECORD_TTL, Completion, Deduplication, JobStore, QueueCapacity


def test_an_accepted_job_is_queued_recorded_and_counted(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    before = time.time()
    acceptance = jobs.submit(new_job(owner="me", model="tiny", message=b"the message"))
    assert (acceptance.verdict, acceptance.job_id, acceptance.level) == ("accepted", "one", 100)
    assert redis_client.lrange(QUEUE, 0, -1) == [b"the message"]
    record = jobs.read("one")
    assert record is not None
    assert (record.status, record.owner, record.model) == (Status.QUEUED, "me", "tiny")
    assert (record.done, record.total) == (0, 2)
    assert record.created_at is not None
    assert before - 1 <= record.created_at <= time.time()
    assert ledger(redis_client) == {"tokens": 100, "expected": 5000, "stored": 0}
    assert jobs.queued_tokens() == 100
    assert 0 < redis_client.ttl(keys.job("one")) <= RECORD_TTL


def test_a_job_that_is_sent_by_other_means_is_only_recorded(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    assert jobs.submit(new_job(message=None)).verdict == "accepted"
    assert redis_client.llen(QUEUE) == 0
    assert jobs.read("one") is not None


def test_messages_are_taken_in_the_order_they_were_accepted(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    for number in range(3):
        jobs.submit(new_job(f"{number}", message=f"{number}".encode()))
    assert [redis_client.rpop(QUEUE) for _ in range(3)] == [b"0", b"1", b"2"]


def test_a_call_whose_answer_was_lost_may_be_repeated(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    job = new_job()
    for _ in range(3):
        assert jobs.submit(job, QueueCapacity(tokens=100)).verdict == "accepted"
    assert redis_client.llen(QUEUE) == 1
    assert jobs.queued_tokens() == 100


def test_a_task_sent_again_under_its_id_is_counted_once(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    jobs.submit(new_job(tokens=100, message=None))
    jobs.progress([("one", time.time(), 1, 2, 0)])
    jobs.submit(new_job(tokens=30, message=None))
    assert jobs.queued_tokens() == 30
    record = jobs.read("one")
    assert record is not None
    assert (record.status, record.done, record.started_at) == (Status.QUEUED, 0, None)
    jobs.complete([success()])
    assert ledger(redis_client)["tokens"] == ledger(redis_client)["expected"] == 0


@pytest.mark.parametrize("end", [failure, success])
def test_a_task_sent_again_after_a_failure_has_a_new_outcome(
    jobs: JobStore, end: Callable[[], Completion]
) -> None:
    jobs.submit(new_job(message=None))
    jobs.complete([end()])
    first = jobs.raw_outcome("one")
    jobs.submit(new_job(message=None))
    # Like in Celery, a success is final.
    assert jobs.raw_outcome("one") == (first if end is success else None)
    jobs.complete([success()])
    record = jobs.read("one")
    assert record is not None
    assert record.status is Status.SUCCEEDED


def test_a_success_stands_however_often_and_however_the_task_is_run_again(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    jobs.submit(new_job(message=None))
    jobs.complete([success()])
    stored = jobs.raw_outcome("one")
    for _ in range(3):
        jobs.submit(new_job(message=None))
    assert jobs.complete([failure()]) == {0}
    assert jobs.raw_outcome("one") == stored
    record = jobs.read("one")
    assert record is not None
    assert record.status is Status.SUCCEEDED
    jobs.submit(new_job(message=None))
    redis_client.delete(keys.result("one"))
    assert jobs.complete([failure()]) == set(), "it has expired"
    record = jobs.read("one")
    assert record is not None
    assert record.status is Status.FAILED


def test_a_queue_that_holds_enough_tokens_takes_no_more(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    assert jobs.submit(new_job("a", message=b"a"), QueueCapacity(tokens=250)).verdict == "accepted"
    assert jobs.submit(new_job("b", message=b"b"), QueueCapacity(tokens=250)).verdict == "accepted"
    refused = jobs.submit(new_job("c", message=b"c"), QueueCapacity(tokens=250))
    assert (refused.verdict, refused.level) == ("full", 200)
    assert jobs.read("c") is None
    assert redis_client.llen(QUEUE) == 2
    jobs.complete([success("a")])
    assert jobs.submit(new_job("c", message=b"c"), QueueCapacity(tokens=250)).verdict == "accepted"


def test_a_job_larger_than_the_bound_is_taken_by_an_empty_queue(jobs: JobStore) -> None:
    large = new_job("large", tokens=1000, result_bytes=10_000)
    assert jobs.submit(large, QueueCapacity(tokens=10, result_bytes=10)).verdict == "accepted"
    refused = jobs.submit(new_job("b"), QueueCapacity(tokens=10))
    assert refused.verdict == "full"


def test_results_that_hold_enough_bytes_let_no_job_in(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    bounds = QueueCapacity(result_bytes=12_000)
    assert jobs.submit(new_job("a", message=b"a"), bounds).verdict == "accepted"
    assert jobs.submit(new_job("b", message=b"b"), bounds).verdict == "accepted"
    refused = jobs.submit(new_job("c", message=b"c"), bounds)
    assert (refused.verdict, refused.level) == ("results_full", 10_000)
    # The stored size counts instead of the expected one.
    jobs.complete([success("a"), success("b")])
    stored = sum(len(success(job_id).meta) for job_id in "ab")
    assert ledger(redis_client) == {"tokens": 0, "expected": 0, "stored": stored}
    assert jobs.submit(new_job("c", message=b"c"), bounds).verdict == "accepted"
    refused = jobs.submit(new_job("d", result_bytes=12_000, message=b"d"), bounds)
    assert (refused.verdict, refused.level) == ("results_full", 5000 + stored)


def test_bytes_of_results_count_until_they_have_expired(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    minute = int(time.time()) // 60
    held = {"kept": 10_500, f"kept:{minute - 2}": 10_000, f"kept:{minute + 2}": 500}
    ledger_key = keys.ledger(QUEUE)
    redis_client.hset(ledger_key, mapping=held | {"expected": 300, "kept_from": minute - 3})
    refused = jobs.submit(new_job(), QueueCapacity(result_bytes=5000))
    assert (refused.verdict, refused.level) == ("results_full", 800)
    jobs.complete([success("other")])
    assert not redis_client.hexists(ledger_key, f"kept:{minute - 2}"), "the ledger grows"
    assert redis_client.hexists(ledger_key, f"kept:{minute + 2}")


def test_a_deployment_that_stood_still_for_a_week_catches_up_in_bounded_steps(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    minute = int(time.time()) // 60
    week = {f"kept:{at}": 1 for at in range(minute - 10_000, minute)}
    redis_client.hset(
        keys.ledger(QUEUE), mapping=week | {"kept": 10_000, "kept_from": minute - 10_000}
    )
    steps = 0
    while ledger(redis_client)["stored"] and steps < 100:
        jobs.submit(new_job(f"{steps}"), QueueCapacity(result_bytes=1))
        steps += 1
    assert 10_000 // 120 <= steps < 100


def test_submitting_from_many_threads_never_passes_the_bound(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    def submit(number: int) -> str:
        return jobs.submit(new_job(f"{number}"), QueueCapacity(tokens=1000)).verdict

    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(submit, range(40)))
    assert verdicts.count("accepted") == 10
    assert jobs.queued_tokens() == 1000
    assert redis_client.llen(QUEUE) == 10


def test_the_same_submission_under_a_key_is_the_same_job(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    once = Deduplication("key", "body")
    assert jobs.submit(new_job("one"), deduplicate=once).verdict == "accepted"
    again = jobs.submit(new_job("two"), deduplicate=once)
    assert (again.verdict, again.job_id) == ("replayed", "one")
    jobs.complete([success("one")])
    assert jobs.submit(new_job("three"), deduplicate=once).verdict == "replayed"
    assert redis_client.llen(QUEUE) == 1
    assert jobs.read("two") is None


def test_a_call_under_a_key_whose_answer_was_lost_may_be_repeated(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    job, once = new_job(), Deduplication("key", "body")
    verdicts = [jobs.submit(job, deduplicate=once).verdict for _ in range(2)]
    assert verdicts == ["accepted", "accepted"]
    assert redis_client.llen(QUEUE) == 1


def test_another_submission_under_a_key_is_a_conflict(jobs: JobStore) -> None:
    jobs.submit(new_job("one"), deduplicate=Deduplication("key", "body"))
    other = jobs.submit(new_job("two"), deduplicate=Deduplication("key", "other body"))
    assert (other.verdict, other.job_id) == ("conflict", "one")
    assert jobs.read("two") is None


def test_keys_of_different_owners_are_different(jobs: JobStore) -> None:
    once = Deduplication("key", "body")
    jobs.submit(new_job("one", owner="me"), deduplicate=once)
    assert jobs.submit(new_job("two", owner="you"), deduplicate=once).verdict == "accepted"


def test_a_key_of_a_job_that_is_gone_stands_for_a_new_one(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    once = Deduplication("key", "body")
    jobs.submit(new_job("one"), deduplicate=once)
    assert 0 < redis_client.ttl(keys.idempotency(QUEUE, "", "key")) <= submissions.IDEMPOTENCY_TTL
    redis_client.delete(keys.job("one"))
    assert jobs.submit(new_job("two"), deduplicate=once).verdict == "accepted"
    assert jobs.submit(new_job("three"), deduplicate=once).job_id == "two"


def test_a_refused_submission_leaves_its_key_free(jobs: JobStore) -> None:
    jobs.submit(new_job("first"))
    once = Deduplication("key", "body")
    assert (
        jobs.submit(new_job("one"), QueueCapacity(tokens=100), deduplicate=once).verdict == "full"
    )
    assert jobs.submit(new_job("two"), deduplicate=once).verdict == "accepted"
