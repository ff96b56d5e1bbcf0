"""Records of jobs that are sent and ended by Celery itself."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import redis
from celery import Celery, states
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from tests.processes import free_port
from worker.contract import keys
from worker.contract.app import make_app
from worker.contract.errors import JobFailed
from worker.contract.jobs import TASK_NAME, Status
from worker.contract.outcomes import Outcome
from worker.contract.results import payload, plain
from worker.contract.settings import Settings
from worker.store import celery_jobs
from worker.store.jobs import JobRecord, JobStore
from worker.tasks import EmbedTask

QUEUE = "embedq"


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with make_app(Settings(broker_url=redis_url, result_backend=redis_url)) as app:
        yield app


@pytest.fixture
def jobs(app: Celery) -> JobStore:
    store = celery_jobs.store_of(app)
    assert store is not None
    return store


def task_of(app: Celery) -> EmbedTask:
    """The task, bound to this test's application."""

    def body(input: Any, **options: Any) -> None:
        raise AssertionError("nobody runs it here")

    task: EmbedTask = app._task_from_fun(body, name=TASK_NAME, base=EmbedTask)
    return task


def opened(app: Celery, jobs: JobStore, count: int = 2) -> JobStore:
    celery_jobs.submit(app, "one", ["a text"] * count)
    return jobs


def read(jobs: JobStore) -> JobRecord:
    record = jobs.read("one")
    assert record is not None
    return record


def test_a_text_that_is_read_to_its_end_is_expected_to_cost_as_much(
    app: Celery, jobs: JobStore
) -> None:
    task, text = task_of(app), "word " * 4000
    for long, tokens in (("cut", 512), ("mean", 5002)):
        before = jobs.queued_tokens()
        task.apply_async(([text],), {"long": long})
        assert jobs.queued_tokens() - before == tokens


@pytest.mark.parametrize(
    ("args", "kwargs", "total"),
    [((["a", "b"],), {}, 2), (("a",), {}, 1), ((), {"input": ["a", "b", "c"]}, 3), ((7,), {}, 1)],
)
def test_a_job_is_recorded_before_it_is_queued(
    app: Celery, jobs: JobStore, redis_client: redis.Redis, args: Any, kwargs: Any, total: int
) -> None:
    task_of(app).apply_async(args, kwargs, task_id="one")
    record = read(jobs)
    assert (record.status, record.total) == (Status.QUEUED, total)
    assert redis_client.llen(QUEUE) == 1
    assert jobs.queued_tokens() > 0 or args == (7,)


def test_a_job_that_cannot_be_queued_is_not_recorded(
    app: Celery, jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OperationalError("no broker")

    monkeypatch.setattr(app, "send_task", refuse)
    monkeypatch.setattr("celery.app.task.Task.apply_async", refuse)
    with pytest.raises(OperationalError):
        task_of(app).apply_async((["a"],), task_id="one")
    assert jobs.read("one") is None
    assert jobs.queued_tokens() == 0


def test_a_job_sent_again_by_a_retry_keeps_its_record(app: Celery, jobs: JobStore) -> None:
    began = time.time() - 5.0
    opened(app, jobs).progress([("one", began, 1, 2, 0)])
    task_of(app).apply_async((["a", "b"],), task_id="one", retries=1)
    record = read(jobs)
    assert record.status is Status.RUNNING
    assert record.started_at == pytest.approx(began, abs=1.0)


def test_a_redis_that_is_away_fails_the_call_as_sending_would() -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    with (
        make_app(Settings(broker_url=url, result_backend=url)) as app,
        pytest.raises(OperationalError),
    ):
        celery_jobs.submit(app, "one", ["a"])


def test_withdrawing_a_record_while_redis_is_away_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{closed.getsockname()[1]}/0"
        with make_app(Settings(broker_url=url, result_backend=url)) as app:
            celery_jobs.withdraw(app, "one")
    assert len(caplog.records) == 1


def test_results_that_are_not_on_redis_have_no_records() -> None:
    app = Celery("users", backend="cache+memory://")
    assert celery_jobs.store_of(app) is None
    assert not celery_jobs.submit(app, "one", ["a"])
    celery_jobs.withdraw(app, "one")


@pytest.mark.parametrize("form", ["float", "base64"])
def test_a_success_of_celery_closes_the_record(app: Celery, jobs: JobStore, form: Any) -> None:
    outcome = Outcome("tiny", np.ones((3, 2), dtype=np.float32), 9)
    opened(app, jobs, 3)
    app.backend.store_result("one", plain(payload(outcome, form)), states.SUCCESS)
    record = read(jobs)
    assert (record.status, record.done, record.prompt_tokens) == (Status.SUCCEEDED, 3, 9)
    assert jobs.queued_tokens() == 0


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        (JobFailed("out_of_memory", "too large"), "out_of_memory", "too large"),
        (ValueError("somebody's text"), "internal_error", "the job failed with ValueError"),
        (
            SoftTimeLimitExceeded(3.0),
            "time_limit",
            "the job ran longer than its time limit",
        ),
        ("no exception", "internal_error", "the job failed"),
    ],
)
def test_a_failure_of_celery_closes_the_record(
    app: Celery, jobs: JobStore, value: Any, code: str, message: str
) -> None:
    opened(app, jobs)
    app.backend.store_result("one", value, states.FAILURE)
    record = read(jobs)
    assert (record.status, record.code, record.message) == (Status.FAILED, code, message)


def test_a_record_that_is_closed_stays_as_it_is(
    app: Celery, jobs: JobStore, redis_client: redis.Redis
) -> None:
    opened(app, jobs).cancel("one")
    app.backend.mark_as_failure("one", ValueError())
    assert read(jobs).status is Status.CANCELLED
    assert redis_client.hget(keys.job("one"), "code") is None


def test_one_application_has_one_store(app: Celery) -> None:
    assert celery_jobs.store_of(app) is celery_jobs.store_of(app)
