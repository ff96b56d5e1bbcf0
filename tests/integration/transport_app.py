"""A Celery application on our transport, or on kombu's if STOCK is set, for workers in tests."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery

app = Celery(
    "transport-test",
    broker=os.environ["CELERY_BROKER_URL"],
    backend=os.environ["CELERY_RESULT_BACKEND"],
    amqp=None if os.environ.get("STOCK") else "worker.transport:AMQP",
)
app.conf.update(
    accept_content=["json"],
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "lease_timeout": float(os.environ.get("LEASE", "3")),
        "master_name": os.environ.get("MASTER"),
        "priority_steps": [0],
    },
    result_backend_transport_options={"master_name": os.environ.get("MASTER")},
    result_backend_always_retry=True,
    task_acks_late=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_enable_prefetch_count_reduction=False,
    worker_prefetch_multiplier=int(os.environ.get("PREFETCH", "0")),
)


@app.task
def add(first: int, second: int) -> int:
    return first + second


@app.task(ignore_result=True)
def note(path: str, number: int, seconds: float = 0.0) -> None:
    """Append one line to a file; the operating system writes it atomically."""
    with Path(path).open("a") as file:
        file.write(f"{number}\n")
    time.sleep(seconds)
