"""Jobs, their endings, and what the ledger and the channels say of them."""

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
from worker.contract.results import (
    Outcome,
    payload,
    success_meta,
)
from worker.contract.store import Ending, JobStore, NewJob

QUEUE = "embedq"
RESULT_TTL = 600


def new_job(job_id: str = "one", **changes: Any) -> NewJob:
    return NewJob(job_id, **({"total": 2, "tokens": 100, "result_bytes": 5000} | changes))


def result_of(texts: int = 2) -> dict[str, Any]:
    return payload(Outcome("tiny", np.ones((texts, 3), dtype=np.float32), 7), "base64")


def success(job_id: str = "one", *, tag: str = "", texts: int = 2) -> Ending:
    meta = success_meta(job_id, result_of(texts), {})
    return Ending(
        job_id,
        Status.SUCCEEDED,
        tag=tag,
        meta=meta,
        prompt_tokens=7,
        texts=texts,
        started=time.time(),
    )


def failure(job_id: str = "one") -> Ending:
    error = JobFailed("invalid_text", "input[0]: a int is not a string")
    meta = failure_meta(job_id, error)
    return Ending(job_id, Status.FAILED, meta=meta, code=error.code, message=error.message)


def ledger(client: redis.Redis) -> dict[str, int]:
    """What the queue holds, its results of all minutes as one."""
    found = {"tokens": 0, "expected": 0, "stored": 0}
    for name, value in client.hgetall(keys.ledger(QUEUE)).items():
        kind = name.decode().split(":")[0]
        if kind in found:
            found[kind] += int(value)
    return found


def shares(client: redis.Redis) -> dict[str, int]:
    """Tokens that wait, by lane and owner."""
    held = client.hgetall(keys.ledger(QUEUE)).items()
    return {
        name.decode().removeprefix("share:"): int(tokens)
        for name, tokens in held
        if name.startswith(b"share:")
    }


@contextmanager
def heard(client: redis.Redis, *channels: str) -> Iterator[Callable[[], list[bytes]]]:
    """What is published on some channels inside the block."""
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


#: Ways to end a job, the status that they give it, and whether they end one that waits.
WAYS: dict[str, tuple[Callable[[JobStore], object], Status]] = {
    "success": (lambda jobs: jobs.finish([success()]), Status.SUCCEEDED),
    "failure": (lambda jobs: jobs.finish([failure()]), Status.FAILED),
    "cancel": (lambda jobs: jobs.cancel("one"), Status.CANCELLED),
}
