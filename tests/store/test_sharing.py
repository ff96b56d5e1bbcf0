"""Equal submissions that share a job until it ends, and the last caller that leaves it."""

from __future__ import annotations

import redis

from tests.store.stand import QUEUE, RESULT_TTL, failure, ledger, new_job, success
from worker.contract import keys
from worker.contract.jobs import Status
from worker.store import submissions
from worker.store.jobs import Deduplication, JobStore

SHARED = Deduplication(fingerprint="body", shared=True)
NOTHING = {"tokens": 0, "expected": 0, "stored": 0}


def test_equal_submissions_share_a_job_while_it_has_not_ended(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    assert jobs.submit(new_job("one"), deduplicate=SHARED).verdict == "accepted"
    joined = jobs.submit(new_job("two"), deduplicate=SHARED)
    assert (joined.verdict, joined.job_id) == ("replayed", "one")
    assert redis_client.llen(QUEUE) == 1
    jobs.complete([success("one")])
    assert jobs.submit(new_job("three"), deduplicate=SHARED).verdict == "accepted"
    assert jobs.submit(new_job("four"), deduplicate=SHARED).job_id == "three"


def test_other_bodies_and_other_owners_share_nothing(jobs: JobStore) -> None:
    jobs.submit(new_job("one", owner="me"), deduplicate=SHARED)
    other = Deduplication(fingerprint="other", shared=True)
    assert jobs.submit(new_job("two", owner="me"), deduplicate=other).verdict == "accepted"
    assert jobs.submit(new_job("three", owner="you"), deduplicate=SHARED).verdict == "accepted"


def test_nobody_joins_a_job_that_was_cancelled_or_that_celery_ended(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    jobs.submit(new_job("one"), deduplicate=SHARED)
    jobs.cancel("one")
    assert jobs.submit(new_job("two"), deduplicate=SHARED).verdict == "accepted"
    stored = success("two").meta
    redis_client.set(keys.result("two"), stored)
    assert jobs.read_with_outcome("two")[1] == stored
    assert jobs.submit(new_job("three"), deduplicate=SHARED).verdict == "accepted"


def shared_by(jobs: JobStore, *names: str, owner: str = "") -> list[str]:
    """Submit equal jobs of these names; return the callers that share the first of them."""
    submitted = [new_job(name, owner=owner) for name in names]
    for job in submitted:
        jobs.submit(job, deduplicate=SHARED)
    return [job.call for job in submitted]


def test_the_last_who_leaves_an_ended_job_takes_everything_along(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    for number, end in enumerate((success, failure)):
        job_id = f"job{number}"
        callers = shared_by(jobs, job_id, "two", "three", owner="me")
        jobs.complete([end(job_id)])
        for caller in callers:
            assert redis_client.ttl(keys.job(job_id)) > 10
            assert not jobs.leave(job_id, "me", caller)
        # For a repeat of the last call.
        assert 0 < redis_client.ttl(keys.job(job_id)) <= 10
        assert 0 < redis_client.ttl(keys.result(job_id)) <= 10
    assert jobs.page("me", limit=10) == ([], None)
    assert ledger(redis_client) == NOTHING


def test_who_reads_a_shared_job_leaves_it_once_it_has_ended(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    first, second = shared_by(jobs, "one", "two", owner="me")
    for _ in range(3):
        record, meta = jobs.read_and_leave("one", "me", first)
        assert (record, meta) == (jobs.read("one"), None)
    jobs.complete([success("one")])
    found = jobs.read_with_outcome("one")
    assert found[1] is not None
    for caller in (first, first, second, second):
        assert jobs.read_and_leave("one", "me", caller) == found, "also if it is asked again"
    assert 0 < redis_client.ttl(keys.job("one")) <= 10
    assert ledger(redis_client) == NOTHING


def test_a_repeated_call_to_leave_takes_the_job_from_nobody(jobs: JobStore) -> None:
    first, second = shared_by(jobs, "one", "two")
    for _ in range(3):
        assert not jobs.leave("one", "", first), "somebody else waits for it"
    for _ in range(3):
        assert jobs.leave("one", "", second)


def test_a_repeated_call_to_join_counts_once(jobs: JobStore) -> None:
    (first,) = shared_by(jobs, "one")
    joining = new_job("two")
    for _ in range(3):
        assert jobs.submit(joining, deduplicate=SHARED).verdict == "replayed"
    assert not jobs.leave("one", "", first)
    assert jobs.leave("one", "", joining.call)


def test_who_leaves_a_job_alone_that_has_not_ended_is_told_so(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    first, second = shared_by(jobs, "one", "two")
    assert not jobs.leave("one", "", first)
    assert jobs.leave("one", "", second)
    # It is about to be cancelled: it accepts no more callers.
    assert jobs.submit(new_job("three"), deduplicate=SHARED).verdict == "accepted"
    jobs.cancel("one")
    record = jobs.read("one")
    assert record is not None
    assert record.status is Status.CANCELLED
    assert 0 < redis_client.ttl(keys.job("one")) <= RESULT_TTL


def test_leaving_an_earlier_job_does_not_end_a_later_one(jobs: JobStore) -> None:
    (caller,) = shared_by(jobs, "one")
    jobs.complete([success("one")])
    jobs.submit(new_job("two"), deduplicate=SHARED)
    assert not jobs.leave("one", "", caller)
    assert jobs.submit(new_job("three"), deduplicate=SHARED).job_id == "two"


def test_a_lost_answer_makes_no_second_job_and_a_job_that_is_gone_is_left_in_peace(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    job = new_job("one")
    verdicts = [jobs.submit(job, deduplicate=SHARED).verdict for _ in range(2)]
    assert verdicts == ["accepted", "accepted"]
    assert redis_client.llen(QUEUE) == 1
    jobs.complete([success("one")])
    for _ in range(3):
        assert not jobs.leave("one", "", job.call)
    assert ledger(redis_client) == NOTHING


def test_what_is_shared_is_forgotten_in_time(jobs: JobStore, redis_client: redis.Redis) -> None:
    jobs.submit(new_job("one"), deduplicate=SHARED)
    assert 0 < redis_client.ttl(keys.shared(QUEUE, "", "body")) <= submissions.SHARED_TTL
