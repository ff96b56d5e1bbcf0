"""What became of every accepted job."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import orjson
import redis
from numpy.typing import NDArray

from worker.contract.lanes import lists_of

Expected = Callable[[Sequence[str]], NDArray[np.float32]]


def wait_for_outcomes(client: redis.Redis, job_ids: Sequence[str], seconds: float) -> list[str]:
    """Wait until each job has an outcome; those that have none by then."""
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
    """How many jobs ended how: `right`, `wrong`, `failed: …`, `missing`."""
    counts: Counter[str] = Counter()
    for job_id, texts in jobs.items():
        raw = client.get(f"celery-task-meta-{job_id}")
        if raw is None:
            counts["missing"] += 1
            continue
        meta = orjson.loads(raw)  # type: ignore[arg-type]
        if meta["status"] != "SUCCESS":
            counts[f"failed: {meta['result']}"] += 1
            continue
        vectors = np.asarray(meta["result"]["embeddings"], dtype=np.float32)
        right = np.allclose(vectors, expected(texts), atol=1e-5)
        counts["right" if right else "wrong"] += 1
    return counts


def leftovers(client: redis.Redis, queue: str) -> dict[str, int]:
    """What is still in the queue, leased, dead-lettered or on the ledger."""
    return {
        "queued": sum(int(client.llen(one)) for one in lists_of(queue)),  # type: ignore[arg-type]
        "leased": int(client.hlen("unacked")),  # type: ignore[arg-type]
        "dead letters": int(client.llen(f"embedq:dead-letters:{queue}")),  # type: ignore[arg-type]
        "ledger tokens": int(client.hget(f"embedq:ledger:{queue}", "tokens") or 0),  # type: ignore[arg-type]
    }
