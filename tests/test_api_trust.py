"""Without keys, no web page of another site can read or change any data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import create_environ, run_wsgi_app

import api
from tests.api_stand import ApiStand, api_stand, problem
from worker.store.api_keys import KeyFile, new_key

REBOUND = "http://attacker.example"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def stand(redis_url: str, tmp_path: Path) -> Iterator[ApiStand]:
    with api_stand(redis_url, files=str(tmp_path / "files")) as stand:
        yield stand


def with_host(client: FlaskClient, host: str | None, path: str = "/jobs", **environ: str) -> int:
    """The status of a GET with this `Host`; None sends no `Host`."""
    given = create_environ(path) | environ
    del given["HTTP_HOST"]
    _, status, _ = run_wsgi_app(
        client.application, given | ({} if host is None else {"HTTP_HOST": host})
    )
    return int(status.split()[0])


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LOCALHOST", "localhost.", "app.localhost:80"),
        *("127.0.0.1", "127.8.8.8:1", "[::1]", "[::1]:8000", "192.168.1.7:8000", "[2001:db8::1]"),
    ],
)
def test_loopback_names_and_addresses_are_trusted(stand: ApiStand, host: str) -> None:
    assert with_host(stand.client, host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *(
            "attacker.example",
            "attacker.example:8000",
            "localhost.attacker.example",
            "notlocalhost",
        ),
        *("127.0.0.1.attacker.example", "", " ", ":8000", "localhost:x", "a@localhost", "[::1"),
        *("localhost,attacker.example", "localhost/attacker", "::1", "[localhost]", "127.1", None),
        *("localhost..", "\u212aocalhost", "localhost\\.attacker.example", "[127.0.0.1]"),
    ],
)
def test_other_hosts_are_refused(stand: ApiStand, host: str | None) -> None:
    assert with_host(stand.client, host) == 400


def test_a_refused_host_is_named_with_its_setting(stand: ApiStand) -> None:
    body = problem(stand.client.get("/jobs", base_url=REBOUND))
    assert body["code"] == "untrusted_host"
    assert "attacker.example" in body["detail"]
    assert "EMBEDQ_TRUSTED_HOSTS" in body["detail"]
    error = stand.client.get("/v1/models", base_url=REBOUND)
    assert error.status_code == 400
    assert error.get_json()["error"]["code"] == "untrusted_host"


def test_headers_of_proxies_do_not_make_a_host_trusted(stand: ApiStand) -> None:
    for name in ("X-Forwarded-Host", "Forwarded", "X-Host", "X-Original-Host"):
        value = "host=localhost" if name == "Forwarded" else "localhost"
        response = stand.client.get("/jobs", base_url=REBOUND, headers={name: value})
        assert response.status_code == 400


def test_the_host_of_an_absolute_target_is_checked_too(stand: ApiStand) -> None:
    client = stand.client
    for name in ("RAW_URI", "REQUEST_URI"):
        target = {name: "http://attacker.example/jobs"}
        assert with_host(client, "localhost", **target) == 400
        assert with_host(client, "localhost", **{name: "http://localhost:80?a"}) == 200
        assert with_host(client, "localhost", **{name: "http://[/jobs"}) == 400
        assert with_host(client, "attacker.example", **{name: "http://localhost/jobs"}) == 400


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes_may_use_any_host(stand: ApiStand, path: str) -> None:
    assert stand.client.get(path, base_url=REBOUND).status_code == 200
    assert with_host(stand.client, None, path) == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/status", "/openapi.json", "/none", "/healthz/x"])
def test_everything_else_needs_a_trusted_host(stand: ApiStand, path: str) -> None:
    assert stand.client.get(path, base_url=REBOUND).status_code == 400


def test_the_setting_replaces_the_default(redis_url: str) -> None:
    hosts = ("embed.example", ".corp.example", "10.0.0.0/8")
    with api_stand(redis_url, trusted_hosts=hosts) as stand:
        good = (
            "embed.example",
            "EMBED.example.:80",
            "a.b.corp.example",
            "corp.example",
            "10.1.2.3",
        )
        for host in good:
            assert with_host(stand.client, host) == 200, host
        for host in ("localhost", "127.0.0.1", "a.embed.example", "xcorp.example", "[::1]"):
            assert with_host(stand.client, host) == 400, host


def keys_file(folder: Path) -> tuple[Path, str]:
    key, secret = new_key(name="a")
    file = KeyFile(folder / "keys.json")
    file.add(key)
    return file.path, secret


def test_with_keys_any_host_and_site_is_fine_unless_hosts_are_named(
    redis_url: str, tmp_path: Path
) -> None:
    path, secret = keys_file(tmp_path)
    headers = {
        "Authorization": f"Bearer {secret}",
        "Origin": REBOUND,
        "Sec-Fetch-Site": "cross-site",
    }
    with api_stand(redis_url, api_keys_file=path) as stand:
        answer = stand.client.post("/jobs", json={"input": "a"}, headers=headers, base_url=REBOUND)
        assert answer.status_code == 202
    with api_stand(redis_url, api_keys_file=path, trusted_hosts=("embed.example",)) as stand:
        assert stand.client.get("/jobs", base_url=REBOUND, headers=headers).status_code == 400


CROSS_SITE = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "Cross-Site"},
    {"Sec-Fetch-Site": "whatever", "Origin": "http://localhost"},
    {"Sec-Fetch-Site": ""},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": REBOUND},
    {"Origin": "http://localhost:3000"},
    {"Origin": "https://localhost:444"},
    {"Origin": "file://"},
    {"Origin": "http://localhost.attacker.example"},
    {"Origin": "http://[::1]"},
    {"Origin": "chrome-extension://localhost"},
]
SAME_SITE = [
    {},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://behind.a.proxy"},
    {"Origin": "http://localhost"},
    {"Origin": "http://LOCALHOST:80"},
    {"Origin": "https://localhost"},
]


@pytest.mark.parametrize("headers", CROSS_SITE)
def test_another_sites_page_changes_nothing(stand: ApiStand, headers: dict[str, str]) -> None:
    job = stand.submitted()
    before = stand.redis.dbsize()
    for method, path in [
        ("POST", "/jobs"),
        ("DELETE", f"/jobs/{job}"),
        ("POST", f"/jobs/{job}/cancel"),
        ("PUT", "/jobs"),
        ("PATCH", "/jobs"),
        ("POST", "/none"),
    ]:
        body = problem(stand.client.open(path, method=method, json={"input": "a"}, headers=headers))
        assert (body["status"], body["code"]) == (403, "cross_site")
    for path in ("/v1/files", "/v1/embeddings", "/v1/batches"):
        answer = stand.client.post(path, data=b"x", headers=headers)
        assert answer.status_code == 403
        assert answer.get_json()["error"]["code"] == "cross_site"
    assert stand.redis.dbsize() == before
    assert stand.client.get(f"/jobs/{job}", headers=headers).get_json()["status"] == "queued"


@pytest.mark.parametrize("headers", SAME_SITE)
def test_its_own_page_and_other_programs_do(stand: ApiStand, headers: dict[str, str]) -> None:
    assert stand.submit(headers=headers).status_code == 202


def test_an_origin_is_compared_with_the_port_that_was_called(stand: ApiStand) -> None:
    for host, origin in [
        ("localhost:8000", "http://localhost:8000"),
        ("[::1]:1", "http://[::1]:1"),
    ]:
        given = {"HTTP_HOST": host, "HTTP_ORIGIN": origin}
        answer = stand.client.post("/jobs", json={"input": "a"}, environ_overrides=given)
        assert answer.status_code == 202
        given["HTTP_HOST"] = "localhost:81"
        answer = stand.client.post("/jobs", json={"input": "a"}, environ_overrides=given)
        assert answer.status_code == 403


def test_both_rules_hold_below_a_prefix_and_for_its_routes_alone(redis_url: str) -> None:
    with api_stand(redis_url) as stand:
        app = Flask("own")
        app.add_url_rule("/", view_func=lambda: "hello", methods=["GET", "POST"])
        app.register_blueprint(api.blueprint(stand.settings), url_prefix="/embeddings")
        client = app.test_client()
        headers = {"Origin": REBOUND}
        assert client.post("/", base_url=REBOUND, headers=headers).status_code == 200
        assert client.get("/embeddings/jobs", base_url=REBOUND).status_code == 400
        assert client.get("/embeddings/healthz", base_url=REBOUND).status_code == 200
        answer = client.post("/embeddings/v1/files", headers=headers)
        assert answer.get_json()["error"]["code"] == "cross_site"
        assert client.post("/embeddings/jobs", json={"input": "a"}).status_code == 202
        app.extensions["embedq"].close()
