"""The API under Flask's test client on a real Valkey; the test plays the worker's part."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import redis
from flask import Flask
from flask.testing import FlaskClient
from numpy.typing import NDArray
from werkzeug.test import TestResponse

from api import create_app
from api.backend import EXTENSION, Backend
from tests.documented import watch
from tests.stored import failure_meta
from worker.contract import keys
from worker.contract.errors import JobFailed
from worker.contract.jobs import Status
from worker.contract.lanes import lists_of
from worker.contract.models import ModelInfo
from worker.contract.outcomes import Outcome, TextError
from worker.contract.results import payload, success_meta
from worker.contract.settings import Settings
from worker.engine.slot import BatchTotals
from worker.pool.heartbeat import Heartbeat
from worker.store.jobs import Completion, JobStore
from worker.watchdog import Watchdog

MODEL = ModelInfo(
    name="tiny",
    dimensions=4,
    max_tokens=256,
    device="cpu",
    backend="torch",
    dtype="float32",
    packed=True,
    batch_tokens=1024,
    prompts={"query": "query: "},
    matryoshka=(2,),
    path="layers",
)


@dataclass
class ApiStand:
    """`client` sends requests, `store` completes jobs like a worker, `redis` inspects Redis."""

    settings: Settings
    app: Flask
    client: FlaskClient
    redis: redis.Redis
    store: JobStore

    @property
    def backend(self) -> Backend:
        backend: Backend = self.app.extensions[EXTENSION]
        return backend

    def submit(self, input: Any = "a text", *, query: str = "", **options: Any) -> TestResponse:
        """`POST /jobs`; `headers` go to the request, other options into the body."""
        headers = options.pop("headers", None)
        return self.client.post("/jobs" + query, json={"input": input, **options}, headers=headers)

    def submitted(self, input: Any = "a text", **options: Any) -> str:
        """The id of a job that was accepted."""
        response = self.submit(input, **options)
        assert response.status_code == 202, response.json
        assert response.json is not None
        job_id: str = response.json["id"]
        return job_id

    def worker(self, *models: ModelInfo, rate: float = 1000.0, silent: float = 0.0) -> None:
        """Write the heartbeat of a worker that made progress `silent` seconds ago."""
        engine: Any = SimpleNamespace(
            beat=time.monotonic() - silent,
            budgets={},
            tokens_per_second=lambda: rate,
            waiting_tokens=0,
            totals=BatchTotals(),
            splits=0,
        )
        served = {model.name: model for model in models or (MODEL,)}
        presence = Heartbeat(
            engine,
            self.store,
            self.settings.queue,
            served,
            node="w1@here",
            watchdog=Watchdog([], 60),
        )
        presence._write()

    def messages(self) -> list[dict[str, Any]]:
        """The queued messages, the first lane first, each lane oldest first."""
        raw: list[Any] = []
        for name in lists_of(self.settings.queue):
            raw += reversed(self.redis.lrange(name, 0, -1))  # type: ignore[arg-type]
        return [orjson.loads(one) for one in raw]

    def succeed(
        self,
        job_id: str,
        vectors: NDArray[np.float32],
        *,
        encoding_format: Any = "float",
        errors: tuple[TextError, ...] = (),
        tokens: int = 7,
        token_counts: Sequence[int] = (),
    ) -> None:
        """Complete a job like the worker's bulk completion."""
        outcome = Outcome(MODEL.name, vectors, tokens, errors, token_counts=token_counts)
        meta = success_meta(job_id, payload(outcome, encoding_format), {})
        self.store.complete(
            [
                Completion(
                    job_id,
                    Status.SUCCEEDED,
                    meta=meta,
                    prompt_tokens=tokens,
                    texts=len(vectors),
                    started=time.time(),
                )
            ]
        )

    def fail(self, job_id: str, code: str, message: str) -> None:
        """Complete a job without vectors."""
        meta = failure_meta(job_id, JobFailed(code, message))
        self.store.complete(
            [Completion(job_id, Status.FAILED, meta=meta, code=code, message=message)]
        )

    def expire(self, job_id: str) -> None:
        """Complete a job like Celery in a worker that finds its time limit exceeded."""
        error = {"exc_type": "TaskRevokedError", "exc_message": ["expired"]}
        meta = orjson.dumps({"status": "REVOKED", "result": error, "task_id": job_id})
        self.store.complete([Completion(job_id, Status.CANCELLED, meta=meta)])

    def ledger(self) -> Mapping[str, int]:
        """The counters of the queue."""
        raw: Any = self.redis.hgetall(keys.ledger(self.settings.queue))
        counters = {name.decode(): int(value) for name, value in raw.items()}
        counters.pop("kept_from", None)
        return counters


@contextmanager
def api_stand(redis_url: str, **settings: Any) -> Iterator[ApiStand]:
    """An application on `redis_url` with a live worker; `settings` differ from the defaults."""
    chosen = replace(Settings(broker_url=redis_url, result_backend=redis_url), **settings)
    app = create_app(chosen)
    surprises = watch(app)
    with redis.Redis.from_url(chosen.result_backend) as client:
        store = JobStore(client, chosen.queue, result_ttl=chosen.result_ttl)
        stand = ApiStand(chosen, app, app.test_client(), client, store)
        stand.worker()
        try:
            yield stand
        finally:
            stand.backend.close()
    assert not surprises


def problem(response: TestResponse) -> dict[str, Any]:
    """Return the problem document of an answer after a check of its form."""
    assert response.content_type == "application/problem+json", response.data
    body: dict[str, Any] = orjson.loads(response.data)
    assert body["status"] == response.status_code
    assert {"type", "title", "detail", "code"} <= body.keys()
    return body
