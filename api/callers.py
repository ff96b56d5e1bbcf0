"""Who asks: the one place that decides whose jobs a request may see."""

from __future__ import annotations

from worker.contract.store import JobRecord

#: Jobs submitted without an API key, or through Celery, belong to everybody.
EVERYBODY = ""


def owner() -> str:
    """The owner of what the current request submits and lists."""
    return EVERYBODY


def may_see(record: JobRecord) -> bool:
    """Whether a job exists, as far as the current request is concerned."""
    return record.owner == owner()
