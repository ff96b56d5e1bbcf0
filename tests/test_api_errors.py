"""Every error is a problem document with its own code, in time."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from werkzeug.test import TestResponse

from api import create_app
from api.errors import STATUS_OF
from tests.api_stand import ApiStand, api_stand, problem
from tests.processes import ValkeyServer, eventually
from worker.contract.settings import Settings

#: A write that is acknowledged right before a SIGKILL survives it.
SYNCED = ("--appendfsync", "always")
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as stand:
        yield stand


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ([], 422, "invalid_request", None),
        ({}, 422, "invalid_request", "input"),
        ({"input": []}, 422, "invalid_request", "input"),
        ({"input": 3}, 422, "invalid_request", "input"),
        ({"input": ["a", None]}, 422, "invalid_request", "input[1]"),
        ({"input": ["a"] * 4097}, 422, "invalid_request", "input"),
        ({"input": "a", "dimensions": "4"}, 422, "invalid_request", "dimensions"),
        ({"input": "a", "normalize": 1}, 422, "invalid_request", "normalize"),
        ({"input": "a", "encoding_format": "hex"}, 422, "invalid_request", "encoding_format"),
        ({"input": "a", "colour": 1}, 422, "invalid_request", "colour"),
        ({"input": "a", "\ud800": 1}, 422, "invalid_request", "?"),
        ({"input": "a", "model": "gpt"}, 422, "model_not_found", "model"),
        ({"input": "a", "dimensions": 3}, 422, "invalid_dimensions", "dimensions"),
        ({"input": "a", "prompt_name": "x"}, 422, "invalid_prompt", "prompt_name"),
        ({"input": "a", "prompt_name": "query", "prompt": "x"}, 422, "invalid_prompt", "prompt"),
        ({"input": ["a"] * 256, "prompt": "x" * 2**17}, 422, "invalid_prompt", "prompt"),
    ],
)
def test_a_job_that_is_not_valid_is_refused_by_field(
    api: ApiStand, body: Any, status: int, code: str, field: str | None
) -> None:
    response = api.client.post("/jobs", json=body)
    found = problem(response)
    assert (response.status_code, found["code"], found.get("field")) == (status, code, field)
    assert not api.messages()


@pytest.mark.parametrize("dimensions", [4, 2])
def test_native_and_trained_sizes_are_accepted(api: ApiStand, dimensions: int) -> None:
    assert api.submit(dimensions=dimensions).status_code == 202


def test_an_unknown_path_is_404(api: ApiStand) -> None:
    assert problem(api.client.get("/nothing"))["code"] == "not_found"


def test_a_wrong_method_is_405_and_says_which_are_right(api: ApiStand) -> None:
    response = api.client.put("/jobs")
    assert response.status_code == 405
    assert problem(response)["code"] == "method_not_allowed"
    assert {"GET", "POST"} <= set(response.headers["Allow"].split(", "))


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("status=done", "status")],
)
def test_a_listing_says_which_parameter_is_wrong(api: ApiStand, query: str, field: str) -> None:
    response = api.client.get(f"/jobs?{query}")
    assert response.status_code == 422
    assert problem(response)["field"] == field


def test_an_unknown_form_of_a_result_is_422(api: ApiStand) -> None:
    response = api.client.get(f"/jobs/{api.submitted()}/result?encoding_format=hex")
    assert response.status_code == 422
    assert problem(response)["field"] == "encoding_format"


def test_a_bug_is_a_500_that_tells_nothing_and_is_logged(
    api: ApiStand, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(job_id: str) -> None:
        raise ZeroDivisionError("inner life")

    monkeypatch.setattr(api.backend.store, "read", broken)
    response = api.client.get("/jobs/x")
    assert response.status_code == 500
    assert problem(response)["code"] == "internal_error"
    assert b"inner life" not in response.data
    assert any(record.levelno == logging.ERROR for record in caplog.records)


def test_no_text_is_in_the_log_of_a_refused_job(
    api: ApiStand, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for body in ({"input": ["secret", 3]}, {"input": "secret", "dimensions": 3}):
        response = api.client.post("/jobs", json=body)
        assert b"secret" not in response.data
    assert "secret" not in caplog.text


@pytest.mark.alone
@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.post("/jobs", json={"input": "a"}),
        lambda client: client.get("/jobs"),
        lambda client: client.get("/jobs/x"),
        lambda client: client.get("/jobs/x?wait=5"),
        lambda client: client.get("/jobs/x/result"),
        lambda client: client.get("/jobs/x/events"),
        lambda client: client.delete("/jobs/x"),
        lambda client: client.get("/readyz"),
    ],
)
def test_without_redis_every_answer_is_503_at_once(ask: Callable[[Any], TestResponse]) -> None:
    app = create_app(Settings(broker_url=NOWHERE, result_backend=NOWHERE))
    client = app.test_client()
    began = time.monotonic()
    response = ask(client)
    assert time.monotonic() - began < 1
    assert response.status_code == 503
    assert problem(response)["code"] == "redis_unavailable"
    assert 1 <= int(response.headers["Retry-After"]) <= 120
    assert client.get("/healthz").status_code == 200
    assert b"embedq_redis_up 0.0" in client.get("/metrics").data
    app.extensions["embedq"].close()


@pytest.mark.alone
def test_a_redis_that_hangs_is_a_503_within_two_seconds_and_is_forgiven(
    valkey_server: Callable[..., ValkeyServer],
) -> None:
    server = valkey_server()
    with api_stand(server.url) as api:
        job_id = api.submitted()
        assert server.process is not None
        server.process.signal(signal.SIGSTOP)
        try:
            for path in (f"/jobs/{job_id}", "/readyz"):
                began = time.monotonic()
                response = api.client.get(path)
                assert time.monotonic() - began < 2.5
                assert problem(response)["code"] == "redis_unavailable"
        finally:
            server.process.signal(signal.SIGCONT)
        assert api.client.get(f"/jobs/{job_id}").status_code == 200


def test_the_api_recovers_by_itself_after_a_restart_of_redis(
    valkey_server: Callable[..., ValkeyServer],
) -> None:
    server = valkey_server(*SYNCED)
    with api_stand(server.url) as api:
        job_id = api.submitted()
        server.kill()
        assert api.client.get(f"/jobs/{job_id}").status_code == 503
        server.start()
        # No stale connection, no missing script.
        assert api.client.get(f"/jobs/{job_id}").status_code == 200
        api.worker()
        eventually(lambda: api.submit().status_code == 202, 3)
        assert api.client.delete(f"/jobs/{job_id}").status_code == 200


def test_a_full_redis_refuses_jobs_and_keeps_the_rest(
    valkey_server: Callable[..., ValkeyServer],
) -> None:
    server = valkey_server("--maxmemory-policy", "noeviction")
    with api_stand(server.url) as api:
        job_id = api.submitted()
        api.redis.config_set("maxmemory", 1)
        response = api.submit()
        assert response.status_code == 503
        assert problem(response)["code"] == "results_full"
        assert 1 <= int(response.headers["Retry-After"]) <= 120
        assert api.client.get(f"/jobs/{job_id}").get_json()["status"] == "queued"


def test_every_code_has_a_status_of_an_error() -> None:
    assert all(status >= 400 for status in STATUS_OF.values())
