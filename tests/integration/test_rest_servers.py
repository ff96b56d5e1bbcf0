"""The application under the usual servers, with restarts of Redis."""

from __future__ import annotations

import gzip
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests

from tests.api_stand import ApiStand, api_stand
from tests.conftest import Service
from tests.processes import (
    START_TIMEOUT_S,
    Api,
    Processes,
    ValkeyServer,
    answers,
    eventually,
    free_port,
)

VECTOR = np.full((1, 4), 0.5, dtype=np.float32)
#: Command lines as the documentation shows them; the port follows.
SERVERS = {
    "gevent": ("gunicorn", "-k", "gevent", "api:create_app()", "-b"),
    "preloaded": ("gunicorn", "-k", "gevent", "-w", "2", "--preload", "api:create_app()", "-b"),
    "sync": ("gunicorn", "api:create_app()", "-b"),
    "threads": ("gunicorn", "-k", "gthread", "--threads", "40", "api:create_app()", "-b"),
    "flask": ("flask", "--app", "api", "run", "--port"),
}
#: Enough that some arrive while the first of their process is still starting its subscription.
CLIENTS = 32
CONCURRENT = ["gevent", "preloaded", "threads", "flask"]


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as pool:
        yield pool


@pytest.fixture
def stand(redis_url: str) -> Iterator[ApiStand]:
    """A worker's part, played by the test."""
    with api_stand(redis_url) as stand:
        yield stand


@pytest.fixture
def serve(processes: Processes) -> Callable[[str, str], Api]:
    """Starts the API under one of SERVERS."""

    def start(server: str, redis_url: str) -> Api:
        port = free_port()
        address = str(port) if server == "flask" else f"127.0.0.1:{port}"
        env = {"CELERY_BROKER_URL": redis_url, "CELERY_RESULT_BACKEND": redis_url}
        process = processes.python("-m", *SERVERS[server], address, name=server, env=env)
        api = Api(process, f"http://127.0.0.1:{port}")
        eventually(lambda: answers(api), START_TIMEOUT_S, message=process.log)
        return api

    return start


@pytest.mark.parametrize("server", SERVERS)
def test_jobs_go_in_and_out_under_every_server(
    stand: ApiStand, serve: Callable[[str, str], Api], redis_url: str, server: str
) -> None:
    api = serve(server, redis_url)

    def pieces() -> Iterator[bytes]:
        body = gzip.compress(b'{"input": ["a"]}')
        yield body[:5]
        yield body[5:]

    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    accepted = requests.post(f"{api.url}/jobs", data=pieces(), headers=headers, timeout=10)
    assert accepted.status_code == 202, accepted.text
    job_id = accepted.json()["id"]
    over = requests.get(f"{api.url}/jobs/{job_id}?wait=1", timeout=10)
    assert over.json()["status"] == "queued"
    stand.succeed(job_id, VECTOR)
    result = requests.get(f"{api.url}/jobs/{job_id}/result", timeout=10)
    assert result.json()["embeddings"] == VECTOR.tolist()
    events = requests.get(f"{api.url}/jobs/{job_id}/events", timeout=10)
    assert "event: done" in events.text
    missing = requests.get(f"{api.url}/jobs/x", timeout=10)
    assert missing.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("server", CONCURRENT)
def test_waiting_clients_that_come_at_once_are_woken_and_block_nobody(
    stand: ApiStand,
    serve: Callable[[str, str], Api],
    redis_url: str,
    background: ThreadPoolExecutor,
    server: str,
) -> None:
    api = serve(server, redis_url)
    job_id = stand.submitted()
    url = f"{api.url}/jobs/{job_id}?wait=50"
    waiting = [background.submit(requests.get, url, timeout=60) for _ in range(CLIENTS)]
    eventually(lambda: any(f"clients {n}.0" in _metrics(api) for n in range(1, CLIENTS + 1)))
    stand.succeed(job_id, VECTOR)
    for answer in waiting:
        assert answer.result(20).json()["status"] == "succeeded"


def test_a_body_that_is_too_large_is_refused_while_it_is_sent(
    stand: ApiStand, serve: Callable[[str, str], Api], redis_url: str
) -> None:
    api = serve("gevent", redis_url)

    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 100_000

    headers = {"Content-Type": "application/json"}
    response = requests.post(f"{api.url}/jobs", data=endless(), headers=headers, timeout=20)
    assert response.status_code == 413
    assert response.json()["code"] == "too_large"
    assert answers(api)


@pytest.mark.alone
def test_a_broker_that_hangs_does_not_hold_up_a_cancellation(
    valkey_server: Callable[..., ValkeyServer],
) -> None:
    """Messages go to one server and results to another."""
    results, broker = valkey_server(), valkey_server()
    with api_stand(broker.url, result_backend=results.url) as stand:
        job_id = stand.submitted()
        assert broker.process is not None
        broker.process.signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            response = stand.client.delete(f"/jobs/{job_id}")
            assert time.monotonic() - began < 1
        finally:
            broker.process.signal(signal.SIGCONT)
        assert response.get_json()["status"] == "cancelled"


@pytest.mark.alone
def test_a_service_works_on_after_a_restart_of_redis(service: Service) -> None:
    with service.valkey.client() as client:
        # A write that is acknowledged right before the SIGKILL survives it.
        client.config_set("appendfsync", "always")
    before = _submit(service, "before")
    service.valkey.kill()
    began = time.monotonic()
    refused = requests.post(f"{service.url}/jobs", json={"input": "x"}, timeout=10)
    assert time.monotonic() - began < 2
    assert refused.status_code == 503
    assert refused.json()["code"] == "redis_unavailable"
    assert "Retry-After" in refused.headers
    assert requests.get(f"{service.url}/readyz", timeout=10).status_code == 503
    assert requests.get(f"{service.url}/healthz", timeout=10).status_code == 200
    service.valkey.start()
    eventually(lambda: answers(service.api, "/readyz"), 20)
    after = _submit(service, "after")
    for job_id in (before, after):
        response = requests.get(f"{service.url}/jobs/{job_id}?wait=30", timeout=40)
        assert response.json()["status"] == "succeeded"


@pytest.mark.alone
def test_a_round_trip_costs_little_more_than_the_model(service: Service) -> None:
    """A bound that holds on a busy machine; `bench/latency` has the measurements."""
    with requests.Session() as session:

        def round_trip() -> float:
            began = time.perf_counter()
            response = session.post(
                f"{service.url}/jobs?wait=10", json={"input": "a text"}, timeout=20
            )
            assert response.status_code == 200
            return time.perf_counter() - began

        taken = sorted(round_trip() for _ in range(20))
    assert taken[10] < 0.5


def _submit(service: Service, text: str) -> str:
    response = requests.post(f"{service.url}/jobs", json={"input": text}, timeout=10)
    assert response.status_code == 202, response.text
    job_id: str = response.json()["id"]
    return job_id


def _metrics(api: Api) -> str:
    return requests.get(f"{api.url}/metrics", timeout=5).text
