"""A Celery task that calls `encode`, as written without embedq; for comparison.

`celery -A bench.plain_task worker -P solo`: stock transport, stock pool, one model in one process.
"""

from __future__ import annotations

import functools
import os

from celery import Celery
from celery.signals import worker_init

app = Celery(
    "plain",
    broker=os.environ.get("CELERY_BROKER_URL"),
    backend=os.environ.get("CELERY_RESULT_BACKEND"),
)
app.conf.update(
    task_default_queue="plain",
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)


@app.task(name="bench.encode")
def encode(texts: list[str]) -> list[list[float]]:
    """Return the vectors of some texts."""
    vectors: list[list[float]] = _model().encode(texts).tolist()
    return vectors


@worker_init.connect
def _load(**_: object) -> None:
    _model().encode(["warm"])


@functools.cache
def _model():  # type: ignore[no-untyped-def]
    # Only in the worker.
    from bench.models import library

    return library()
