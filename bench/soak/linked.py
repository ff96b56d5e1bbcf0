"""The costless worker with a task that records each fired link."""

from __future__ import annotations

import os

import redis
from celery import Task

from bench import costless
from worker.store import server

app = costless.app

#: Set: `JOB TASK` for each message of a job's link. One message may run twice, like any task of a
#: stopped worker; two messages mean that the link was fired twice.
FIRED = "bench:fired"


@app.task(name="bench.fired", bind=True)
def fired(self: Task, job: str) -> None:
    client: redis.Redis = server.connect(os.environ["CELERY_BROKER_URL"], sentinel_master="")
    with client:
        client.sadd(FIRED, f"{job} {self.request.id}")
