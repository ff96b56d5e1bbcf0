"""Jobs, their outcomes, and the resulting ledger and published events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import redis

from tests.stored import failure_meta
from worker.contract import keys
from worker.contract.errors import JobFailed
from worker.contract.jobs import Status
from worker.contract.outcomes import Outcome
from worker.contract.results import payload, success_meta
from worker.store.jobs import Completion, JobRequest, JobStore

QUEUE = "embedq"
RESULT_TTL = 600


def new_job(job_id: str = "one", **changes: Any) -> JobRequest:
    usual = {"total": 2, "tokens": 100, "result_bytes": 5000, "message": b"m"}
    return JobRequest(job_id, **(usual | changes))


def result_of(texts: int = 2) -> dict[str, Any]:
    return payload(Outcome("tiny", np.ones((texts, 3), dtype=np.float32), 7), "base64")


def success(job_id: str = "one", *, tag: str = "", texts: int = 2) -> Completion:
    meta = success_meta(job_id, result_of(texts), {})
    return Completion(
        job_id,
        Status.SUCCEEDED,
        tag=tag,
        meta=meta,
        prompt_tokens=7,
        texts=texts,
        model="tiny",
        started=time.time(),
    )


def failure(job_id: str = "one") -> Completion:
    error = JobFailed("invalid_text", "input[0]: a int is not a string")
    meta = failure_meta(job_id, error)
    return Completion(job_id, Status.FAILED, meta=meta, code=error.code, message=error.message)


def ledger(client: redis.Redis) -> dict[str, int]:
    """The queue's totals: tokens, bytes of expected results, bytes of stored results."""
    held = client.hmget(keys.ledger(QUEUE), "tokens", "expected", "kept")
    return dict(zip(("tokens", "expected", "stored"), (int(one or 0) for one in held), strict=True))


def shares(client: redis.Redis) -> dict[str, int]:
    """Waiting tokens, by lane and tenant."""
    held = client.hgetall(keys.ledger(QUEUE)).items()
    return {
        name.decode().removeprefix("share:"): int(tokens)
        for name, tokens in held
        if name.startswith(b"share:")
    }


@contextmanager
def heard(client: redis.Redis, *channels: str) -> Iterator[Callable[[], list[bytes]]]:
    """The messages published on some channels inside the block."""
    messages: list[bytes] = []
    with client.pubsub() as pubsub:
        pubsub.subscribe(*channels)
        for _ in channels:
            assert pubsub.get_message(timeout=5)

        def so_far() -> list[bytes]:
            client.publish(channels[0], "mark")
            while True:
                message = pubsub.get_message(timeout=5)
                assert message is not None
                if message["data"] == b"mark":
                    return messages
                messages.append(message["data"])

        yield so_far


#: Ways to end a job, and the resulting status.
WAYS: dict[str, tuple[Callable[[JobStore], object], Status]] = {
    "success": (lambda jobs: jobs.complete([success()]), Status.SUCCEEDED),
    "failure": (lambda jobs: jobs.complete([failure()]), Status.FAILED),
    "cancel": (lambda jobs: jobs.cancel("one"), Status.CANCELLED),
}
