"""The API under gunicorn with our configuration, as processes of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import requests

from tests.processes import Api, eventually
from worker.store.jobs import JobRequest, JobStore

OURS = ("-c", "python:api.serving")


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client, "embedq", result_ttl=3600)


@contextmanager
def waiting(url: str, path: str) -> Iterator[dict[str, Any]]:
    """A client that waits; `answer` holds its result after the block."""
    got: dict[str, Any] = {}
    thread = threading.Thread(
        target=lambda: got.update(answer=requests.get(url + path, timeout=60))
    )
    thread.start()

    def is_waiting() -> bool:
        return "embedq_waiting_clients 1.0" in requests.get(f"{url}/metrics", timeout=5).text

    eventually(is_waiting)
    yield got
    thread.join(30)


@pytest.mark.parametrize("path", ["/jobs/one?wait=60", "/jobs/one/events"])
def test_a_stop_answers_those_who_wait_at_once(
    api_process: Callable[..., Api], store: JobStore, path: str
) -> None:
    api = api_process(*OURS)
    store.submit(JobRequest("one", total=1, tokens=1, result_bytes=1))
    with waiting(api.url, path) as got:
        began = time.monotonic()
        assert api.process.stop(timeout=20) == 0
        assert time.monotonic() - began < 4.5
    assert got["answer"].status_code == 200
    assert '"queued"' in got["answer"].text


def test_our_configuration_lets_gevent_patch_before_anything_is_imported(
    api_process: Callable[..., Api],
) -> None:
    api = api_process(*OURS)
    assert "MonkeyPatchWarning" not in api.process.log()
