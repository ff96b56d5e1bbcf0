"""A task's messages are held until its outcome is stored, and sent in the same step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import redis
from celery import Celery, states

from worker.contract import keys
from worker.contract.app import make_app
from worker.contract.jobs import TASK_NAME
from worker.contract.settings import Settings
from worker.store import celery_jobs
from worker.store.jobs import JobRequest, JobStore
from worker.transport import EndedElsewhere, Following, Lease, following
from worker.transport.lease_store import LeaseStore

RESULT = {"model": "m", "embeddings": [[1.0]], "usage": {"prompt_tokens": 3}}


class Request:
    """Celery's context of the task."""

    task = TASK_NAME
    group = parent_id = chord = None
    children: tuple[Any, ...] = ()


@pytest.fixture(params=[False, True], ids=["one server", "two servers"])
def app(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Celery]:
    results = redis_url.removesuffix("/0") + ("/1" if request.param else "/0")
    with make_app(Settings(broker_url=redis_url, result_backend=results)) as app:
        yield app


@pytest.fixture
def jobs(app: Celery) -> JobStore:
    store = celery_jobs.store_of(app)
    assert store is not None
    store.submit(JobRequest("one", 1, 1, 1))
    return store


@pytest.fixture
def held(app: Celery) -> Iterator[Following]:
    """The delivery of the job, as the tracer has it."""
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        lease_store: LeaseStore = channel.store
        lease = Lease("timed:0:fetch:0000", "embedq", False, lease_store, object())
        found = Following("one", lease)
        token = following.set(found)
        yield found
        following.reset(token)


def ids(client: redis.Redis, queue: str = "users") -> list[str]:
    return [orjson.loads(one)["headers"]["id"] for one in client.lrange(queue, 0, -1)]


def test_links_are_sent_with_the_outcome_and_once(
    app: Celery, jobs: JobStore, held: Following, redis_client: redis.Redis
) -> None:
    for name in ("first", "second"):
        app.send_task("users.task", task_id=name, queue="users")
    assert ids(redis_client) == []
    app.backend.store_result("one", RESULT, states.SUCCESS, request=Request())
    assert ids(redis_client) == ["second", "first"]
    record = jobs.read("one")
    assert record is not None
    assert record.status == "succeeded"
    assert not jobs.client.exists(keys.outbox("embedq"))
    # Later messages, of a chord for example, are sent at once.
    app.send_task("users.task", task_id="third", queue="users")
    assert ids(redis_client)[0] == "third"


def test_nothing_follows_a_delivery_that_is_not_the_first_to_end_its_job(
    app: Celery, jobs: JobStore, held: Following, redis_client: redis.Redis
) -> None:
    app.send_task("users.task", task_id="first", queue="users")
    jobs.cancel("one")
    with pytest.raises(EndedElsewhere):
        app.backend.store_result("one", RESULT, states.SUCCESS, request=Request())
    assert ids(redis_client) == []


def test_links_of_a_success_do_not_follow_a_failure(
    app: Celery, jobs: JobStore, held: Following, redis_client: redis.Redis
) -> None:
    app.send_task("users.task", task_id="first", queue="users")
    app.backend.store_result("one", ValueError(), states.FAILURE, request=Request())
    assert ids(redis_client) == []


def test_links_that_a_dead_process_did_not_send_to_another_server_are_sent_by_a_worker(
    app: Celery,
    jobs: JobStore,
    held: Following,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if jobs.broker is jobs.client:
        pytest.skip("one script sends them")
    app.send_task("users.task", task_id="first", queue="users")

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("worker.store.outbox.MessageOutbox.send", die)
        with pytest.raises(SystemExit):
            app.backend.store_result("one", RESULT, states.SUCCESS, request=Request())
    assert ids(redis_client) == []
    monkeypatch.setattr("worker.store.outbox._RESEND_AFTER", -1.0)
    jobs.sweep()
    assert ids(redis_client) == ["first"]
