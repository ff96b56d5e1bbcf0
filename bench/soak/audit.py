"""The outcomes of the accepted jobs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, cast

import numpy as np
import orjson
import redis
from numpy.typing import NDArray

from worker.contract import keys
from worker.contract.lanes import lists_of

Expected = Callable[[Sequence[str]], NDArray[np.float32]]


def wait_for_outcomes(client: redis.Redis, job_ids: Sequence[str], seconds: float) -> list[str]:
    """Wait at most `seconds` for the outcomes of all jobs; return the jobs without one."""
    deadline = time.monotonic() + seconds
    missing = list(job_ids)
    pause = threading.Event()
    while missing and time.monotonic() < deadline:
        with client.pipeline(transaction=False) as pipe:
            for job_id in missing:
                pipe.exists(f"celery-task-meta-{job_id}")
            found = pipe.execute()
        missing = [job_id for job_id, there in zip(missing, found, strict=True) if not there]
        if missing:
            pause.wait(0.5)
    return missing


def outcomes(
    client: redis.Redis, jobs: Mapping[str, Sequence[str]], expected: Expected
) -> Counter[str]:
    """Count jobs by their outcome: `right`, `wrong`, `failed: …`, `missing`."""
    counts: Counter[str] = Counter()
    for job_id, texts in jobs.items():
        raw = client.get(f"celery-task-meta-{job_id}")
        if raw is None:
            counts["missing"] += 1
            continue
        counts[outcome_of(cast("bytes", raw), expected(texts))] += 1
    return counts


def outcome_of(raw: bytes, expected: NDArray[np.float32]) -> str:
    """Classify a stored outcome in Celery's format: `right`, `wrong` or `failed: …`."""
    meta = orjson.loads(raw)
    if meta["status"] != "SUCCESS":
        return f"failed: {meta['result']}"
    return "right" if is_right(meta["result"]["embeddings"], expected) else "wrong"


def is_right(embeddings: Any, expected: NDArray[np.float32]) -> bool:
    """Return whether a result's vectors, as lists of floats, equal the expected ones."""
    vectors = np.asarray(embeddings, dtype=np.float32)
    return vectors.shape == expected.shape and np.allclose(vectors, expected, atol=1e-5)


def unasked(client: redis.Redis, queue: str, ids: Mapping[str, Set[str]]) -> int:
    """Count the jobs in the owners' listings that no caller received an id of."""
    count = 0
    for owner, known in ids.items():
        listed = cast("list[bytes]", client.zrange(keys.jobs(queue, owner), 0, -1))
        count += len({job_id.decode() for job_id in listed} - known)
    return count


def leftovers(client: redis.Redis, queue: str) -> dict[str, int]:
    """Count the messages queued, leased and dead-lettered, and the tokens in the ledger."""
    return {
        "queued": sum(int(client.llen(one)) for one in lists_of(queue)),
        "leased": int(client.hlen("unacked")),
        "dead letters": int(client.llen(f"embedq:dead-letters:{queue}")),
        "ledger tokens": int(client.hget(f"embedq:ledger:{queue}", "tokens") or 0),
    }


def wait_for_empty(client: redis.Redis, queue: str, seconds: float = 30.0) -> None:
    """Wait until second deliveries are acknowledged, at most `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (
        client.exists(*lists_of(queue)) or client.hlen("unacked")
    ):
        client.blpop("embedq:bench:never", timeout=0.5)
