"""Outcomes in Celery's format, for tests that play the worker's part."""

from __future__ import annotations

from typing import Any

import orjson

from worker.contract.errors import JobFailed
from worker.store.jobs import JobStore


def outcome_of(jobs: JobStore, job_id: str) -> dict[str, Any] | None:
    """The stored outcome in Celery's format, or None if there is none."""
    raw = jobs.raw_outcome(job_id)
    return None if raw is None else orjson.loads(raw)


def failure_meta(job_id: str, error: JobFailed) -> bytes:
    """A stored failure that `.get()` raises again."""
    exception = {
        "exc_type": type(error).__name__,
        "exc_message": [error.code, error.message],
        "exc_module": type(error).__module__,
    }
    meta = {
        "status": "FAILURE",
        "result": exception,
        "traceback": None,
        "children": [],
        "date_done": "2026-01-01T00:00:00+00:00",
        "task_id": job_id,
    }
    return orjson.dumps(meta)
