"""The page and the documents over HTTP: contents, caching, and permitted sources."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from api import create_app
from api.status import workers
from tests.api_stand import MODEL, ApiStand, api_stand, problem
from tests.processes import free_port
from tests.test_history import sample
from worker.contract import keys
from worker.contract.settings import Settings
from worker.store.worker_registry import SILENCE


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as stand:
        yield stand


def addresses(html: str) -> list[str]:
    """The resources that a page loads automatically."""
    return re.findall(r'<(?:link|script|img)[^>]* (?:href|src)="([^"]+)"', html)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_nothing_but_its_own_assets(api: ApiStand, path: str) -> None:
    page = api.client.get(path)
    assert page.status_code == 200
    assert page.content_type == "text/html; charset=utf-8"
    found = addresses(page.text)
    assert len(found) >= 3
    for address in found:
        asset = api.client.get("/" + address)
        assert asset.status_code == 200, address
        assert asset.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert asset.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_may_run_no_script_that_stands_inside_it(api: ApiStand, path: str) -> None:
    page = api.client.get(path)
    policy = dict(
        rule.strip().partition(" ")[::2]
        for rule in page.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in str(policy)
    assert "style=" not in page.text
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=", page.text)


def test_a_page_that_has_not_changed_is_not_sent_again(api: ApiStand) -> None:
    first = api.client.get("/")
    assert first.headers["Cache-Control"] == "no-cache"
    again = api.client.get("/", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_assets_are_sent_compressed_to_who_takes_that(api: ApiStand) -> None:
    address = "/" + next(one for one in addresses(api.client.get("/docs").text) if "bundle" in one)
    plain = api.client.get(address)
    packed = api.client.get(address, headers={"Accept-Encoding": "br, gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.data) < len(plain.data) / 2
    assert gzip.decompress(packed.data) == plain.data
    assert plain.headers["Vary"] == packed.headers["Vary"] == "Accept-Encoding"
    refused = api.client.get(address, headers={"Accept-Encoding": "gzip;q=0"})
    assert "Content-Encoding" not in refused.headers


@pytest.mark.parametrize("path", ["/assets/0000000000000000/page.js", "/assets/x/../page.py"])
def test_an_asset_of_another_version_is_a_problem_document(api: ApiStand, path: str) -> None:
    response = api.client.get(path)
    assert response.status_code == 404
    assert problem(response)["code"] == "not_found"
    assert response.headers["Cache-Control"] == "no-store"


def test_the_page_works_under_the_path_that_it_is_mounted_at(api: ApiStand) -> None:
    client = Client(DispatcherMiddleware(Flask("elsewhere"), {"/embed": api.app}))
    page = client.get("/embed/")
    assert page.status_code == 200
    for address in addresses(page.text):
        assert not address.startswith(("/", "http"))
        assert client.get(f"/embed/{address}").status_code == 200


def test_the_status_tells_the_queue_and_the_workers(api: ApiStand) -> None:
    job_id = api.submitted(["one", "two"])
    api.redis.hset(keys.LEASED, "tag", "message")
    status = api.client.get("/status").get_json()
    assert status["queue"] == {
        "name": api.settings.queue,
        "tokens": api.ledger()["tokens"],
        "most_tokens": api.settings.max_queued_tokens,
        "waiting": 1,
        "taken": 1,
    }
    (worker,) = status["workers"]
    assert (worker["name"], worker["live"], worker["busy"]) == ("w1@here", True, None)
    (model,) = worker["models"]
    assert model == {
        "name": MODEL.name,
        "dimensions": 4,
        "max_tokens": 256,
        "device": "cpu",
        "backend": "torch",
        "dtype": "float32",
        "path": "layers",
    }
    assert job_id not in str(status)


def test_the_status_is_503_while_redis_is_away() -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    client = create_app(Settings(broker_url=url, result_backend=url)).test_client()
    response = client.get("/status")
    assert response.status_code == 503
    assert problem(response)["code"] == "redis_unavailable"
    assert client.get("/").status_code == 200


def test_a_silent_worker_is_shown_as_one(api: ApiStand) -> None:
    api.worker(silent=SILENCE + 5)
    (worker,) = api.client.get("/status").get_json()["workers"]
    assert not worker["live"]
    assert SILENCE + 4 < worker["silent_seconds"] < SILENCE + 60


def test_a_worker_of_another_version_hides_no_other(api: ApiStand) -> None:
    api.redis.hset(keys.workers(api.settings.queue), "a@old", b'{"at": 1}')
    api.redis.hset(keys.workers(api.settings.queue), "b@old", b"[]")
    shown = api.client.get("/status").get_json()["workers"]
    assert [worker["name"] for worker in shown] == ["w1@here"]


def test_a_worker_is_as_busy_as_its_last_samples(api: ApiStand) -> None:
    raw: Any = api.redis.hgetall(keys.workers(api.settings.queue))
    now = time.time()
    samples = [
        sample(now - 60, "w1@here", busy_seconds=2.0),
        sample(now - 3, "w1@here", busy_seconds=1.0),
        sample(now - 1, "w1@here", busy_seconds=0.5),
        sample(now - 1, "other", busy_seconds=2.0),
    ]
    (worker,) = workers(raw, samples, now)
    assert worker.busy == 0.375
    one_long_pass = [sample(now - 1, "w1@here", busy_seconds=9.0)]
    assert workers(raw, one_long_pass, now)[0].busy == 1.0
