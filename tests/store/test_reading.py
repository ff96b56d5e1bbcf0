"""Records as read and listed, for all ways to complete a job."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import orjson
import pytest
import redis
from celery import Celery, states

from tests.store.stand import (
    new_job,
    result_of,
    success,
)
from tests.stored import outcome_of
from worker.contract import keys
from worker.contract.errors import JobFailed
from worker.contract.jobs import Status
from worker.contract.outcomes import Outcome
from worker.contract.results import payload, plain, revoked_meta
from worker.store.jobs import JobStore

#: Celery's own way of storing a result.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


def test_an_id_that_nobody_submitted_is_unknown(jobs: JobStore) -> None:
    assert jobs.read("nobody") is None
    assert jobs.read_many(["nobody", "none"]) == [None, None]
    assert jobs.read_with_outcome("nobody") == (None, None)
    assert outcome_of(jobs, "nobody") is None


ENDED_BY_CELERY = [
    (states.SUCCESS, plain(result_of(3)), Status.SUCCEEDED, None),
    (states.FAILURE, JobFailed("out_of_memory", "no"), Status.FAILED, "out_of_memory"),
    (states.FAILURE, ValueError("somebody's text"), Status.FAILED, "internal_error"),
    (states.REVOKED, RuntimeError("revoked"), Status.CANCELLED, None),
]


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(("state", "value", "status", "code"), ENDED_BY_CELERY)
def test_a_job_that_a_worker_of_an_older_version_ended_reads_like_any_other(
    jobs: JobStore,
    celery_app: Celery,
    recorded: bool,
    state: str,
    value: Any,
    status: Status,
    code: str | None,
) -> None:
    before = time.time()
    if recorded:
        jobs.submit(new_job(total=3))
    celery_app.backend.store_result("one", value, state)
    record = jobs.read("one")
    if not recorded and status is not Status.SUCCEEDED:
        assert record is None, "nothing tells that it is a job of ours"
        return
    assert record is not None
    assert (record.status, record.code) == (status, code)
    assert record.finished_at is not None
    assert before - 1 <= record.finished_at <= time.time() + 1
    assert "somebody's text" not in str(record)
    if status is Status.SUCCEEDED:
        assert (record.done, record.total, record.prompt_tokens) == (3, 3, 7)
    assert jobs.read_with_outcome("one") == (record, jobs.raw_outcome("one"))


def test_a_task_of_another_program_is_no_job(jobs: JobStore, celery_app: Celery) -> None:
    for state in (states.SUCCESS, states.FAILURE, states.STARTED, states.RETRY):
        celery_app.backend.store_result(state, {"theirs": 1}, state)
        assert jobs.read(state) is None
        assert jobs.read_with_outcome(state) == (None, None)


def test_a_job_of_another_deployment_is_not_shown(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    theirs = JobStore(redis_client, "theirs", result_ttl=60)
    theirs.submit(new_job("one"))
    theirs.submit(new_job("two"))
    theirs.complete([success("two")])
    for job_id in ("one", "two"):
        assert theirs.read(job_id) is not None
        assert jobs.read(job_id) is None
        assert jobs.read_with_outcome(job_id) == (None, None)
    assert jobs.page("", limit=10) == ([], None)
    assert len(theirs.page("", limit=10)[0]) == 2


def test_floats_that_celery_stored_count_like_a_blob(jobs: JobStore, celery_app: Celery) -> None:
    result = plain(payload(Outcome("tiny", np.ones((3, 2), dtype=np.float32), 5), "float"))
    celery_app.backend.store_result("one", result, states.SUCCESS)
    record = jobs.read("one")
    assert record is not None
    assert (record.total, record.prompt_tokens) == (3, 5)


def test_jobs_are_listed_newest_first_page_by_page(jobs: JobStore) -> None:
    for number in range(7):
        jobs.submit(new_job(f"{number}", owner="me", message=None))
    jobs.submit(new_job("theirs", owner="you", message=None))
    pages, after = [], None
    while True:
        found, after = jobs.page("me", limit=3, after=after)
        pages.append("".join(record.id for record in found))
        if after is None:
            break
    assert pages == ["654", "321", "0"]


def test_a_page_that_holds_the_last_job_has_no_next(jobs: JobStore) -> None:
    for number in range(4):
        jobs.submit(new_job(f"{number}", message=None))
    assert jobs.page("", limit=4)[1] is None
    assert jobs.page("", limit=2)[1] == "2"
    assert jobs.page("", limit=2, after="2")[1] is None
    assert jobs.page("", limit=9)[1] is None
    with pytest.raises(KeyError):
        jobs.page("", limit=2, after="unknown")


def test_jobs_of_one_status_are_listed_alone_and_expired_ones_not_at_all(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    for number in range(10):
        jobs.submit(new_job(f"{number}", message=None))
    jobs.complete([success(job_id) for job_id in "258"])
    redis_client.delete(keys.job("5"), keys.result("5"))
    found, after = jobs.page("", limit=1, status=Status.SUCCEEDED)
    assert [record.id for record in found] == ["8"]
    assert after is not None
    found, after = jobs.page("", limit=1, status=Status.SUCCEEDED, after=after)
    assert [record.id for record in found] == ["2"]
    assert after is None
    assert len(jobs.page("", limit=100)[0]) == 9


def test_a_listing_keeps_the_newest_jobs(
    jobs: JobStore, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.store.jobs.LISTED_JOBS", 3)
    for number in range(5):
        jobs.submit(new_job(f"{number}", message=None))
    assert [record.id for record in jobs.page("", limit=10)[0]] == ["4", "3", "2"]


def test_a_revoked_outcome_is_the_one_that_celery_would_store(
    jobs: JobStore, celery_app: Celery
) -> None:
    jobs.submit(new_job())
    jobs.cancel("one")
    celery_app.backend.mark_as_revoked("two", "revoked")
    ours, theirs = outcome_of(jobs, "one"), outcome_of(jobs, "two")
    assert ours is not None
    assert theirs is not None
    changing = {"task_id", "date_done", "children"}
    assert {k: v for k, v in ours.items() if k not in changing} == {
        k: v for k, v in theirs.items() if k not in changing
    }
    assert orjson.loads(revoked_meta("one"))["status"] == "REVOKED"
