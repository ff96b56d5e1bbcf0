"""Records of jobs that Celery itself sends and completes."""

from __future__ import annotations

import socket
import time
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
import redis
from celery import Celery, states
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from tests.processes import free_port
from worker.contract import keys
from worker.contract.app import make_app
from worker.contract.errors import InvalidJob, JobFailed
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


def test_many_jobs_are_submitted_in_one_round_trip_as_each_alone(
    app: Celery, jobs: JobStore, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, inputs = task_of(app), [["a", "b"], ["c"], ["d", 7]]
    trips: list[int] = []
    call = jobs._trips.call

    def counted(*commands: Any) -> list[Any]:
        trips.append(len(commands))
        return call(*commands)

    alone = [task.delay(one, long="mean").id for one in inputs]
    monkeypatch.setattr(jobs._trips, "call", counted)
    together = [result.id for result in task.delay_many(inputs, long="mean")]
    assert trips == [3]
    queued = [orjson.loads(one) for one in redis_client.lrange(QUEUE, 0, -1)][::-1]
    assert [one["headers"]["id"] for one in queued] == alone + together
    bodies = [b64decode(one["body"]) if one["properties"]["body_encoding"] == "base64"
              else one["body"].encode() for one in queued]  # fmt: skip
    assert [orjson.loads(one) for one in bodies[:3]] == [orjson.loads(one) for one in bodies[3:]]
    for one, other in zip(jobs.read_many(alone), jobs.read_many(together), strict=True):
        assert one is not None
        assert other is not None
        assert replace(one, id="", created_at=0.0) == replace(other, id="", created_at=0.0)
    assert task.delay_many([]) == []


def test_many_jobs_of_which_one_is_invalid_are_not_submitted(
    app: Celery, redis_client: redis.Redis
) -> None:
    task = task_of(app)
    with pytest.raises(InvalidJob):
        task.delay_many(["a", 7])
    with pytest.raises(InvalidJob):
        task.delay_many(["a"], dimensions="many")
    assert not redis_client.exists(QUEUE)


def test_many_jobs_go_to_a_broker_of_its_own(redis_url: str, redis_client: redis.Redis) -> None:
    results = redis_url.removesuffix("/0") + "/1"
    with make_app(Settings(broker_url=redis_url, result_backend=results)) as app:
        ids = [result.id for result in task_of(app).delay_many(["a", "b"])]
        store = celery_jobs.store_of(app)
        assert store is not None
        assert [record is not None for record in store.read_many(ids)] == [True, True]
        assert not store.client.exists(QUEUE, keys.outbox(QUEUE))
    assert redis_client.llen(QUEUE) == 2


def test_many_jobs_without_a_redis_of_messages_are_sent_by_celery(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    with make_app(Settings(broker_url=redis_url, result_backend=redis_url)) as app:
        app.conf.broker_url = "memory://"
        task = task_of(app)
        monkeypatch.setattr(task, "delay", lambda *args, **options: sent.append((args, options)))
        task.delay_many(["a", ["b"]], normalize=False)
    assert sent == [((["a"],), {"normalize": False}), ((["b"],), {"normalize": False})]


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
