"""Jobs that complete through Celery's tracer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from tests.processes import eventually
from tests.stored import outcome_of
from worker import tasks
from worker.contract.app import make_app
from worker.contract.errors import JobFailed
from worker.contract.jobs import Status
from worker.contract.lanes import Lane
from worker.contract.outcomes import Outcome
from worker.contract.settings import Settings
from worker.pool import celery_tracer
from worker.pool.celery_tracer import Tracer
from worker.pool.failures import Failures
from worker.pool.job_metrics import JobMetrics
from worker.pool.loop import LoopCalls
from worker.pool.poison_jobs import PoisonJobs
from worker.pool.result_writer import ResultWriter
from worker.store.jobs import Completion, JobRequest, JobStore


class Request:
    """A request as in Celery's records of running ones; they hold it weakly."""

    id = "job"


class FakeInFlightJob:
    """A job as the tracer sees it."""

    def __init__(self, target: Callable[..., Any], *, redelivered: bool = False) -> None:
        self.id = "job"
        self.tag = ""
        self.lane = Lane.BULK
        self.lease: Any = None
        self.args = ("embedq.embed", "job")
        self.target = target
        self.redelivered = redelivered
        self.heard: list[Any] = []
        self.open = True
        self.submitted_at: float | None = None
        self.request = Request()

    def end(self, answer: Any) -> bool:
        self.heard.append(answer)
        return self.open

    def discard(self) -> None:
        self.heard.append("discarded")

    def put_back(self) -> None:
        self.heard.append("put back")

    def close(self) -> bool:
        self.heard.append("closed")
        return True


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client, "embedq", result_ttl=60)


@pytest.fixture
def loop() -> LoopCalls:
    return LoopCalls()


@pytest.fixture
def counts() -> JobMetrics:
    return JobMetrics()


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with make_app(Settings(broker_url=redis_url, result_backend=redis_url)) as app:
        yield app


@pytest.fixture
def failures(app: Celery) -> Iterator[Failures]:
    failures = Failures(app)
    yield failures
    failures.close()


def writer(store: JobStore) -> ResultWriter:
    return ResultWriter(store, "embedq", atomic=True, observe=lambda *_: None)


@pytest.fixture
def suspects(store: JobStore) -> PoisonJobs:
    return PoisonJobs(store, max_attempts=1)


@pytest.fixture
def tracer(
    store: JobStore, loop: LoopCalls, counts: JobMetrics, failures: Failures, suspects: PoisonJobs
) -> Iterator[Tracer]:
    tracer = Tracer(store, loop, counts, writer(store), failures, suspects)
    yield tracer
    tracer.close(5)


def heard(in_flight: Any, loop: LoopCalls) -> Any:
    """The calls to a running job on the loop's thread, which is this one."""

    def told() -> list[Any]:
        loop.run()
        return list(in_flight.heard)

    (answer,) = eventually(told)
    return answer


def outcome() -> Outcome:
    return Outcome("m", np.ones((2, 3), dtype=np.float32), prompt_tokens=7)


def test_the_tasks_body_finds_the_outcome(tracer: Tracer, loop: LoopCalls) -> None:
    found: list[Any] = []

    def target(name: str, job_id: str) -> tuple[int, str, float]:
        found.append(tasks.ready[job_id])
        return 0, "repr", 0.5

    in_flight: Any = FakeInFlightJob(target)
    tracer.end(in_flight, outcome())
    assert heard(in_flight, loop) == (0, "repr", 0.5)
    assert found[0]["embeddings"] == [[1.0] * 3] * 2
    assert found[0]["usage"]["prompt_tokens"] == 7
    failed: Any = FakeInFlightJob(target)
    error = JobFailed("model_not_found", "no such model")
    tracer.end(failed, error)
    heard(failed, loop)
    assert found[1] is error
    assert tasks.ready == {}


def away(*_: Any) -> None:
    raise ConnectionError("nowhere to store it")


def test_a_job_whose_outcome_cannot_be_stored_is_put_back(
    tracer: Tracer, loop: LoopCalls, caplog: pytest.LogCaptureFixture
) -> None:
    in_flight: Any = FakeInFlightJob(away)
    with caplog.at_level(logging.CRITICAL, "worker.pool.celery_tracer"):
        tracer.end(in_flight, outcome())
        assert heard(in_flight, loop) == "put back"
    assert tasks.ready == {}


def test_a_job_that_would_fail_to_end_in_every_worker_fails(
    tracer: Tracer, loop: LoopCalls, counts: JobMetrics, store: JobStore
) -> None:
    def target(*_: Any) -> None:
        raise TypeError("a link is no signature")

    store.submit(JobRequest("job", total=2, tokens=1, result_bytes=1))
    in_flight: Any = FakeInFlightJob(target)
    tracer.end(in_flight, outcome())
    assert heard(in_flight, loop) == "closed"
    failure = eventually(lambda: outcome_of(store, "job"))
    assert "what follows the job cannot be sent (TypeError)" in str(failure["result"])
    assert counts.values()["jobs_ended"] == [["failed", "invalid_request", 1]]


def test_a_job_whose_links_cannot_be_sent_is_put_back_and_others_fail(
    tracer: Tracer, loop: LoopCalls, app: Celery
) -> None:
    def publish() -> None:
        raise OperationalError("the server is full")

    in_flight: Any = FakeInFlightJob(lambda *_: app.amqp._retry_publish(publish))
    tracer.end(in_flight, outcome())
    assert heard(in_flight, loop) == "put back"
    with pytest.raises(OperationalError):
        app.amqp._retry_publish(publish)


def test_a_job_put_back_for_want_of_room_is_no_suspect(
    tracer: Tracer, loop: LoopCalls, suspects: PoisonJobs
) -> None:
    for attempt in range(3):
        in_flight: Any = FakeInFlightJob(away, redelivered=True)
        in_flight.tag = f"tag {attempt}"
        assert suspects.begin("job", in_flight.tag) == 0
        tracer.end(in_flight, outcome())
        assert heard(in_flight, loop) == "put back"


@pytest.mark.parametrize("redelivered", [True, False])
def test_a_job_that_has_ended_is_not_run_again(
    tracer: Tracer, loop: LoopCalls, store: JobStore, redelivered: bool
) -> None:
    def target(name: str, job_id: str) -> None:
        raise AssertionError("its links would be sent twice")

    store.complete([Completion("job", Status.FAILED, meta=b'{"status": "FAILURE", "result": {}}')])
    in_flight: Any = FakeInFlightJob(target, redelivered=redelivered)
    tracer.end(in_flight, outcome())
    assert heard(in_flight, loop) == "discarded"


def test_a_job_whose_lease_another_worker_has_is_not_run_again(
    tracer: Tracer, loop: LoopCalls, redis_client: redis.Redis
) -> None:
    def target(name: str, job_id: str) -> None:
        raise AssertionError("its links would be sent twice")

    in_flight: Any = FakeInFlightJob(target)
    in_flight.tag = "mine"
    in_flight.lease = SimpleNamespace(
        tag="mine", unacked_key="unacked", store=SimpleNamespace(client=redis_client)
    )
    redis_client.hset("unacked", "theirs", "the message")
    tracer.end(in_flight, outcome())
    assert heard(in_flight, loop) == "discarded"


def test_a_job_whose_outcome_redis_refuses_for_good_fails_alone(
    tracer: Tracer, loop: LoopCalls, store: JobStore
) -> None:
    def target(name: str, job_id: str) -> None:
        raise redis.ResponseError("WRONGTYPE Operation against a key")

    store.submit(JobRequest("job", total=2, tokens=1, result_bytes=1))
    in_flight: Any = FakeInFlightJob(target)
    tracer.end(in_flight, outcome())
    assert heard(in_flight, loop) == "discarded"
    record = store.read("job")
    assert record is not None
    assert (record.status, record.code) == (Status.FAILED, "internal_error")
    assert "WRONGTYPE" in str(record.message)


def test_an_outcome_is_counted_for_a_job_that_was_open(
    tracer: Tracer, loop: LoopCalls, counts: JobMetrics
) -> None:
    ended: Any = FakeInFlightJob(lambda *_: (0, "", 0.0))
    failed: Any = FakeInFlightJob(lambda *_: (1, "", 0.0))
    # Its link could not be dispatched, for example.
    not_handed_on: Any = FakeInFlightJob(lambda *_: (1, "", 0.0))
    closed: Any = FakeInFlightJob(lambda *_: (0, "", 0.0))
    closed.open = False
    for in_flight, what in (
        (ended, outcome()),
        (failed, JobFailed("poisoned", "it kills")),
        (not_handed_on, outcome()),
        (closed, outcome()),
    ):
        tracer.end(in_flight, what)
        heard(in_flight, loop)
    assert counts.values()["jobs_ended"] == [
        ["succeeded", "", 1],
        ["failed", "poisoned", 1],
        ["failed", "other", 1],
    ]


def test_a_wait_ends_with_what_came_before_or_in_time(
    tracer: Tracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = threading.Event()
    held: Any = FakeInFlightJob(lambda *_: (not leave.wait(10), "", 0.0))
    tracer.end(held, outcome())
    thread = threading.Thread(target=tracer.wait)
    thread.start()
    eventually(lambda: tracer._threads.backlog == 2)
    monkeypatch.setattr(celery_tracer, "_LONGEST_WAIT", 0.01)
    tracer.wait()
    assert thread.is_alive()
    leave.set()
    thread.join(10)
    assert not thread.is_alive()


def test_a_tracer_that_lags_behind_stops_the_fetching_of_its_lane(
    tracer: Tracer, loop: LoopCalls
) -> None:
    def lags() -> bool:
        return not tracer.has_room(Lane.BULK)

    assert not lags()
    in_flight_jobs: list[Any] = [FakeInFlightJob(lambda *_: (0, "", 0.0)) for _ in range(4200)]
    waits: Any = FakeInFlightJob(lambda *_: (not eventually(lags, 20), "", 0.0))
    for in_flight in (waits, *in_flight_jobs):
        tracer.end(in_flight, outcome())
    assert tracer.has_room(Lane.INTERACTIVE)
    heard(waits, loop)
    eventually(lambda: not lags())
