"""OpenAI's API under gunicorn: callers that hang up, and retries in another process."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests

from tests.api_stand import MODEL, ApiStand, api_stand
from tests.processes import Api, eventually

BODY = {"model": MODEL.name, "input": "a text"}


@pytest.fixture
def served(api_process: Callable[..., Api]) -> Api:
    return api_process()


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    """Another process of the same service; the test plays the worker's part in it."""
    with api_stand(redis_url) as stand:
        yield stand


def send(served: Api, body: Any = BODY) -> socket.socket:
    """A connection with a request already sent."""
    address = urlsplit(served.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=30)
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + data)
    return connection


def job_of(api: ApiStand, number: int = 0) -> str:
    eventually(lambda: len(api.messages()) > number)
    job_id: str = api.messages()[number]["headers"]["id"]
    return job_id


def callers_of(api: ApiStand, job_id: str) -> int:
    return int(api.redis.hget(f"embedq:job:{job_id}", "callers") or 0)


def test_a_caller_who_hangs_up_costs_nothing_and_others_are_still_served(
    served: Api, api: ApiStand
) -> None:
    with send(served):
        job_id = job_of(api)
        stays = send(served, BODY | {"input": "another"})
        other = job_of(api, 1)
    eventually(lambda: api.store.read(job_id).status == "cancelled", 20)  # type: ignore[union-attr]
    with stays:
        api.succeed(other, np.ones((1, 4), np.float32), encoding_format="base64")
        answer = stays.makefile("rb").readline()
    assert b"200" in answer


def test_a_caller_who_hangs_up_does_not_take_the_job_from_one_who_shares_it(
    served: Api, api: ApiStand
) -> None:
    with send(served) as stays:
        job_id = job_of(api)
        with send(served):
            eventually(lambda: callers_of(api, job_id) == 2, 20)
        eventually(lambda: callers_of(api, job_id) == 1, 20)
        api.succeed(job_id, np.ones((1, 4), np.float32), encoding_format="base64")
        assert b"200" in stays.makefile("rb").readline()


def test_a_retry_in_another_process_joins_the_request_under_way(served: Api, api: ApiStand) -> None:
    with send(served) as first:
        job_id = job_of(api)
        timeout = {"X-Stainless-Read-Timeout": "0.5"}
        retried = api.client.post("/v1/embeddings", json=BODY, headers=timeout)
        assert retried.status_code == 503
        assert len(api.messages()) == 1
        api.succeed(job_id, np.ones((1, 4), np.float32), encoding_format="base64")
        assert b"200" in first.makefile("rb").readline()
    assert requests.get(f"{served.url}/v1/models/{MODEL.name}", timeout=10).status_code == 200
