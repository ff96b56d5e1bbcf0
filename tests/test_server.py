"""Redis clients from the URLs that Celery takes."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from tests.integration.transport_proxy import proxy
from tests.processes import ValkeyServer
from worker.store import server
from worker.transport.connection import Connection


@pytest.fixture
def tls_port(valkey: ValkeyServer, tmp_path: Path) -> Iterator[int]:
    """A port that speaks TLS with an untrusted certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=nobody")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run(["openssl", *request, *files], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with proxy(valkey.port, tls=context) as between:
        yield between.port


def fields_of(url: str) -> dict[str, object]:
    client = server.connect(url, sentinel_master="main")
    found = client.connection_pool.connection_kwargs
    client.close()
    return {
        name: found.get(name) for name in ("host", "port", "path", "db", "username", "password")
    }


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://there:7000/3", {"host": "there", "port": 7000, "db": 3}),
        ("redis://me:secret@there/", {"host": "there", "username": "me", "password": "secret"}),
        ("rediss://there:7000/3", {"host": "there", "port": 7000, "db": 3}),
        ("redis+socket:///run/redis.sock?virtual_host=4", {"path": "/run/redis.sock", "db": 4}),
        ("redis+socket:///run/redis.sock?virtual_host=/4", {"path": "/run/redis.sock", "db": 4}),
        ("unix:///run/redis.sock?db=5", {"path": "/run/redis.sock", "db": 5}),
        ("unix:///run/redis.sock", {"path": "/run/redis.sock", "db": 0}),
        ("redis://me:p%40w@there/", {"username": "me", "password": "p@w"}),
        ("sentinel://a:1/6;sentinel://b:2/6", {"db": 6}),
        ("sentinel://m%40e:p%2Fw@a:1;sentinel://b:2", {"username": "m@e", "password": "p/w"}),
        ("redis+socket://me:p%2Fw%3A@/run/a%20b?virtual_host=4", {"path": "/run/a b", "db": 4}),
        ("redis+socket://m%40e:p%2Fw%3A@/run/s", {"username": "m@e", "password": "p/w:"}),
        ("unix://m%40e:p%2Fw%3A@/run/s", {"username": "m@e", "password": "p/w:"}),
    ],
)
def test_a_client_goes_where_the_url_says(url: str, expected: dict[str, object]) -> None:
    found = fields_of(url)
    assert {name: found[name] for name in expected} == expected


URLS = [
    "redis://m%40e:p%2Fw@there:7/3",
    "rediss://:p%2Fw@there:7/3?ssl_cert_reqs=CERT_NONE",
    "rediss://there:7/?ssl_cert_reqs=CERT_OPTIONAL&ssl_check_hostname=false&ssl_ca_certs=/a",
    "rediss://there:7/?ssl_cert_reqs=CERT_REQUIRED",
    "rediss://there:7/?ssl_cert_reqs=none",
    "rediss://there:7/?ssl_cert_reqs=optional",
    "rediss://there:7/?ssl_cert_reqs=required",
    "redis+socket://m%40e:p%2Fw@/run/a%20b?virtual_host=4",
    "redis+socket:///run/s",
    "unix://:p%2Fw@/run/s?db=2",
    "sentinel://m%40e:p%2Fw@a:1/5;sentinel://:other@b:2/6",
    "sentinel://a:1;sentinel://b:2/6",
    "sentinel://:p@a:1/5?ssl_cert_reqs=CERT_NONE;sentinel://b:2",
]


@pytest.mark.parametrize("url", URLS)
def test_a_client_goes_where_kombu_goes(url: str) -> None:
    options = {"master_name": "main"}
    with Connection(url, transport_options=options) as connection:
        channel: Any = object.__new__(connection.get_transport_cls().Channel)
        channel.connection = SimpleNamespace(client=connection, default_port=6379)
        theirs = channel._connparams()
    with server.connect(url, sentinel_master="main") as client:
        pool = client.connection_pool
        ours = pool.connection_kwargs
        is_tls = issubclass(pool.connection_class, redis.SSLConnection)
    if "sentinel" in url:
        # Sentinels name the host.
        theirs = {**theirs, "host": None, "port": None}
    for name in ("host", "port", "path", "username", "password"):
        assert ours.get(name) == theirs.get(name), name
    assert ours.get("db", 0) == theirs["db"]
    assert is_tls == issubclass(theirs["connection_class"], redis.SSLConnection)
    if is_tls:
        made = pool.connection_class(**ours)
        assert made.cert_reqs == theirs["ssl_cert_reqs"]
        assert made.ca_certs == theirs.get("ssl_ca_certs")
        if made.cert_reqs != ssl.CERT_NONE:
            assert made.check_hostname == theirs.get("ssl_check_hostname", True)


@pytest.mark.parametrize("flag", ["CERT_NONE", "none"])
def test_tls_without_verification_reaches_the_server(tls_port: int, flag: str) -> None:
    url = f"rediss://127.0.0.1:{tls_port}/0?ssl_cert_reqs={flag}"
    with server.connect(url, sentinel_master="main") as client:
        assert client.ping()
    with (
        server.connect(url.replace(flag, "required"), sentinel_master="main") as client,
        pytest.raises(redis.ConnectionError),
    ):
        client.ping()


def test_a_client_is_patient_but_not_for_ever() -> None:
    client = server.connect("redis://there", sentinel_master="main", socket_timeout=3.0)
    found = client.connection_pool.connection_kwargs
    assert found["socket_timeout"] == 3.0
    assert found["socket_connect_timeout"] == 5.0


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("redis://a/0", "redis://a:6379", True),
        ("redis://a/", "redis://user:secret@a/0", True),
        ("redis://a/0", "redis://a/1", False),
        ("redis://a", "redis://b", False),
        ("redis://a:1", "redis://a:2", False),
        ("redis+socket:///s?virtual_host=0", "unix:///s", True),
        ("redis+socket:///s?virtual_host=1", "unix:///s", False),
        ("redis+socket:///s", "redis+socket:///t", False),
        ("sentinel://a/1;sentinel://b/1", "sentinel://:p@b/1;sentinel://a/1", True),
        ("sentinel://a/1;sentinel://b", "sentinel://a/2;sentinel://b", False),
        ("redis+socket://:p%2F@/a%20b", "unix:///a b", True),
        ("sentinel://a", "redis://a", False),
    ],
)
def test_one_script_can_serve_two_urls_only_on_one_database(
    first: str, second: str, same: bool
) -> None:
    assert server.same_server(first, second) is same
    assert server.same_server(second, first) is same


def test_callers_past_the_bound_wait_for_a_connection(redis_url: str) -> None:
    client = server.share(server.connect(redis_url, sentinel_master="main"), 1, patience=0.01)
    with client, client.pubsub() as pubsub:
        pubsub.subscribe("a")
        with pytest.raises(redis.ConnectionError):
            client.ping()


def test_the_reason_of_an_error_is_the_servers_code_without_what_it_quotes(
    valkey: ValkeyServer,
) -> None:
    with valkey.client() as client:
        client.set("a string", "a text to embed")
        with pytest.raises(redis.ResponseError) as wrong_type:
            client.lpush("a string", "a text to embed")
        with pytest.raises(redis.ResponseError) as unknown:
            client.execute_command("a text to embed")
    assert server.reason(wrong_type.value) == "ResponseError WRONGTYPE"
    assert server.reason(unknown.value) == "ResponseError"
    assert server.reason(redis.ConnectionError("to somewhere")) == "ConnectionError"
