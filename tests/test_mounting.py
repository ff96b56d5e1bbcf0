"""The service as a blueprint in a user's Flask application."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from flask import Flask, Response, abort, request
from flask.testing import FlaskClient

import api
from tests.api_stand import ApiStand, api_stand, problem
from worker.store.api_keys import KeyFile, new_key

VECTOR = np.full((1, 4), 0.5, dtype=np.float32)


@dataclass
class Mounted:
    """A user's application; the test plays the worker's part."""

    app: Flask
    client: FlaskClient
    worker: ApiStand


def own_application() -> Flask:
    """An application with its own route, error page and hook."""
    app = Flask("own")

    @app.get("/")
    def hello() -> str:
        return "hello"

    @app.get("/broken")
    def broken() -> str:
        raise ValueError("their bug")

    @app.errorhandler(404)
    def missing(_: Exception) -> tuple[str, int]:
        return "their own page", 404

    @app.errorhandler(ValueError)
    def bug(_: Exception) -> tuple[str, int]:
        return "their own bug", 500

    @app.before_request
    def refuse() -> None:
        if "X-Refused" in request.headers:
            abort(403)

    return app


@pytest.fixture
def mounted(redis_url: str) -> Iterator[Mounted]:
    with api_stand(redis_url) as worker:
        app = own_application()
        app.register_blueprint(api.blueprint(worker.settings), url_prefix="/embeddings")
        try:
            yield Mounted(app, app.test_client(), worker)
        finally:
            app.extensions["embedq"].close()


def test_a_job_goes_in_and_out_below_the_prefix(mounted: Mounted) -> None:
    client = mounted.client
    accepted = client.post("/embeddings/jobs", json={"input": "a text"})
    assert accepted.status_code == 202, accepted.data
    job = accepted.get_json()
    assert accepted.headers["Location"] == f"/embeddings/jobs/{job['id']}"
    mounted.worker.succeed(job["id"], VECTOR)
    assert client.get(job["links"]["result"]).get_json()["embeddings"] == VECTOR.tolist()
    assert client.get(job["links"]["self"]).get_json()["status"] == "succeeded"
    client.post("/embeddings/jobs", json={"input": "another"})
    page = client.get("/embeddings/jobs?limit=1").get_json()
    assert client.get(page["next"]).get_json()["data"][0]["id"] == job["id"]
    events = client.get(f"{job['links']['self']}/events").text
    assert f"/embeddings/jobs/{job['id']}" in events


def test_a_location_is_ascii_below_any_prefix(mounted: Mounted) -> None:
    prefix = {"SCRIPT_NAME": "/caf\u00e9".encode().decode("latin-1")}
    accepted = mounted.client.post(
        "/embeddings/jobs", json={"input": "a text"}, environ_overrides=prefix
    )
    job = accepted.get_json()
    assert job["links"]["self"] == f"/café/embeddings/jobs/{job['id']}"
    assert accepted.headers["Location"] == f"/caf%C3%A9/embeddings/jobs/{job['id']}"


def test_every_route_answers_in_its_own_form(mounted: Mounted) -> None:
    client = mounted.client
    assert problem(client.get("/embeddings/jobs/none"))["code"] == "not_found"
    wrong = client.post("/embeddings/v1/embeddings", json={"model": "tiny", "input": 7})
    assert wrong.get_json()["error"]["param"] == "input"
    assert "openai-processing-ms" in wrong.headers
    assert client.get("/embeddings/readyz").status_code == 200
    metrics = client.get("/embeddings/metrics").text
    assert 'route="/v1/embeddings"' in metrics
    document = client.get("/embeddings/openapi.json").get_json()
    assert document["servers"] == [{"url": "/embeddings"}]


def test_the_page_and_what_it_is_made_of_are_below_the_prefix(mounted: Mounted) -> None:
    client = mounted.client
    page = client.get("/embeddings/")
    assert b"<h1>" in page.data
    (script,) = (part for part in page.text.split('"') if part.endswith("page.js"))
    assert not script.startswith("/")
    assert client.get(f"/embeddings/{script}").status_code == 200


def test_what_is_not_ours_stays_as_it_was(mounted: Mounted) -> None:
    client = mounted.client
    theirs: Response = client.get("/")
    assert theirs.data == b"hello"
    assert "Content-Security-Policy" not in theirs.headers
    assert "X-Request-Id" not in theirs.headers
    assert client.get("/nothing").data == b"their own page"
    assert client.get("/broken").data == b"their own bug"


def test_a_hook_of_theirs_that_refuses_has_the_last_word(mounted: Mounted) -> None:
    for path in ("/embeddings/jobs", "/embeddings/v1/models"):
        assert mounted.client.get(path, headers={"X-Refused": "1"}).status_code == 403


def test_keys_are_asked_for_below_the_prefix_only(redis_url: str, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    made = new_key()
    file.add(made.key)
    with api_stand(redis_url) as worker:
        app, client = own_application(), None
        settings = replace(worker.settings, api_keys_file=file.path)
        app.register_blueprint(api.blueprint(settings), url_prefix="/embeddings")
        client = app.test_client()
        assert client.get("/").status_code == 200
        assert client.get("/embeddings/healthz").status_code == 200
        assert client.get("/embeddings/jobs").status_code == 401
        headers = {"Authorization": f"Bearer {made.secret}"}
        assert client.get("/embeddings/jobs", headers=headers).status_code == 200
        app.extensions["embedq"].close()
