"""A store, and a Celery application with its results on the same server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from celery import Celery

from tests.store.stand import QUEUE, RESULT_TTL
from worker.store.jobs import JobStore


@pytest.fixture
def jobs(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client, QUEUE, result_ttl=RESULT_TTL)


@pytest.fixture
def celery_app(redis_url: str) -> Iterator[Celery]:
    app = Celery("users", broker=redis_url, backend=redis_url)
    app.conf.accept_content = ["json"]
    yield app
    app.close()
