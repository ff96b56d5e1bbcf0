"""A worker of one kind and its clients, for tests of tasks."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import redis
from celery import Celery
from celery.result import AsyncResult

import worker
from tests.integration import users_app
from tests.processes import Process, Processes, eventually, start_worker
from worker.contract import messages
from worker.contract.estimates import USUAL_MODEL
from worker.contract.jobs import DEFAULT_OPTIONS, TASK_NAME
from worker.contract.lanes import Lane, lists_of
from worker.contract.outcomes import Matrix
from worker.contract.results import matrix
from worker.store import celery_jobs
from worker.store.jobs import JobRequest, QueueCapacity
from worker.tasks import embed

#: Part of every text, so that a leaked text is found.
MARKER = "zebra9f1c"
TEXTS = [f"{MARKER} crosses the river at dawn", f"{MARKER} sleeps"]
#: Seconds for one answer; the model itself needs milliseconds.
ANSWER_S = 30.0


@contextmanager
def embed_at(url: str) -> Iterator[Celery]:
    """`worker.tasks.embed` of this process, sent to the broker at `url`."""
    names = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
    before = {name: os.environ.get(name) for name in names}
    app = worker.app
    _forget_connections(app)
    os.environ |= dict.fromkeys(names, url)
    try:
        yield app
    finally:
        _forget_connections(app)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _forget_connections(app: Celery) -> None:
    backend = app._backend
    if backend is not None:
        # Results that are collected later have no subscription to end.
        backend.remove_pending_result = lambda result: result
        backend.result_consumer.stop()
        backend.client.close()
        app._backend_cache = None
        del app._local.backend
    app.close()
    app.__dict__.pop("amqp", None)
    celery_jobs._stores.pop(app, None)


@dataclass
class Events:
    """Every event of the workers, as seen by Flower. A thread receives until `close`."""

    app: Celery
    seen: list[dict[str, Any]] = field(default_factory=list)
    _stopped: bool = False

    def __post_init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(ANSWER_S)

    def of(self, job_id: str) -> list[str]:
        """Types of the events about one task, in order."""
        return [event["type"] for event in self.seen if event.get("uuid") == job_id]

    def close(self) -> None:
        self._stopped = True
        self._thread.join(ANSWER_S)

    def _run(self) -> None:
        with self.app.connection_for_read() as connection:
            receiver = self.app.events.Receiver(connection, handlers={"*": self.seen.append})
            with receiver.consumer_context() as (own_connection, _, _):
                self._ready.set()
                while not self._stopped:
                    try:
                        own_connection.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue


@dataclass
class Stand:
    """Workers, their Redis, and functions that submit jobs and read their state."""

    processes: Processes
    app: Celery
    client: redis.Redis

    @property
    def url(self) -> str:
        return str(os.environ["CELERY_BROKER_URL"])

    def start(self, *arguments: str, ready: str | None = " ready.", **env: str) -> Process:
        """A worker with the tasks of `users_app` and a device that the test can stop."""
        app = env.pop("APP", "tests.integration.users_app")
        return start_worker(
            self.processes,
            self.url,
            *arguments,
            app=app,
            ready=ready,
            env={users_app.GATE: str(self.gate)} | env,
        )

    def notes(self) -> list[list[Any]]:
        """Notes of tasks and signal receivers since the test began."""
        return [json.loads(note) for note in self.client.lrange(users_app.NOTES, 0, -1)]

    def noted(self, *what: Any) -> None:
        """Wait for a note."""
        eventually(lambda: list(what) in self.notes(), ANSWER_S, message=lambda: str(self.notes()))

    def record(self, job_id: str) -> tuple[str, str | None]:
        """Status and code of a job, as shown by REST."""
        store = celery_jobs.store_of(self.app)
        assert store is not None
        record = store.read(job_id)
        return (record.status.value, record.code) if record is not None else ("unknown", None)

    def idle(self) -> bool:
        """Whether every message is done: none queued, none leased."""
        return self.messages() == (0, 0)

    def messages(self) -> tuple[int, int]:
        """The numbers of queued and of leased messages."""
        return sum(map(self.client.llen, lists_of("embedq"))), self.client.hlen("unacked")

    @property
    def gate(self) -> Path:
        """The folder that the device checks before each forward pass."""
        return self.processes.folder

    def close_gate(self) -> None:
        """Make the device stand still before each forward pass from now on."""
        for name in (users_app.ENTERED, users_app.STEP):
            self.gate.joinpath(name).unlink(missing_ok=True)
        self.gate.joinpath(users_app.CLOSED).touch()

    def open_gate(self) -> None:
        """Let the device continue."""
        self.gate.joinpath(users_app.CLOSED).unlink(missing_ok=True)

    def step(self) -> None:
        """Let one forward pass continue, and wait until the next one stands still."""
        passed = self.entered()
        self.gate.joinpath(users_app.STEP).touch()
        self.wait_until_encoding(passed + 1)

    def entered(self) -> int:
        """Forward passes that stood still since the gate was closed."""
        entered = self.gate.joinpath(users_app.ENTERED)
        return len(entered.read_text()) if entered.exists() else 0

    @contextmanager
    def busy_device(self) -> Iterator[Callable[[], None]]:
        """A device that stands still inside a forward pass; the yielded function releases it."""
        self.close_gate()
        try:
            yield self.open_gate
        finally:
            self.open_gate()

    def wait_until_encoding(self, times: int = 1) -> None:
        """Wait until the device stands still in a forward pass."""
        eventually(lambda: self.entered() >= times, ANSWER_S)

    def submit(
        self, job_id: str, lane: Lane, *, texts: int = 1, owner: str = "", share: int = 0
    ) -> AsyncResult:
        """Submit a job like the API; its id is made unique."""
        job_id = f"{job_id}-{messages.new_id()}"
        # Words of one token each: the amount that a worker fetches is bounded by bytes.
        given = [f"{number} {job_id[:12]} " + "something " * 10 for number in range(texts)]
        store = celery_jobs.store_of(self.app)
        assert store is not None
        job = JobRequest.of(
            *(given, DEFAULT_OPTIONS, USUAL_MODEL),
            queue="embedq",
            job_id=job_id,
            owner=owner,
            lane=lane,
        )
        store.submit(job, QueueCapacity(lane_share=share))
        return self.app.AsyncResult(job_id)

    def inspect(self, what: str, **options: Any) -> Any:
        """The worker's answer to `celery inspect`; repeated while the worker connects."""
        ask = self.app.control.inspect(timeout=2.0, limit=1)

        def replies() -> Any:
            try:
                return ask._request(what, **options)
            except redis.ConnectionError:
                # A pooled connection of an earlier test, closed with its server or by a kill.
                return None

        (reply,) = eventually(replies, ANSWER_S).values()
        return reply


def vectors(result: Any) -> Matrix:
    """Return the vectors of a result of `embed` after a check of its shape."""
    assert set(result) == {"model", "dimensions", "embeddings", "usage", "truncated", "errors"}
    found, _ = matrix(result["embeddings"])
    assert found.shape[1] == result["dimensions"] == 384
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    return found


def send(texts: Any = TEXTS, **options: Any) -> AsyncResult:
    """`embed.apply_async` of some texts."""
    return embed.apply_async((texts,), **options)


def send_by_name(app: Celery, *args: Any, **options: Any) -> AsyncResult:
    """The same from an application without our code."""
    return app.send_task(TASK_NAME, args=args, **options)


def held_texts(things: Sequence[Any]) -> list[Any]:
    """The elements of `things` that contain a text."""
    return [thing for thing in things if MARKER in json.dumps(thing, default=str)]
