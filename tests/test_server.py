"""Redis clients from the URLs that Celery takes."""

from __future__ import annotations

import pytest
import redis

from worker.contract import server


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
        ("sentinel://a:1;sentinel://b:2/6", {"db": 6}),
    ],
)
def test_a_client_goes_where_the_url_says(url: str, expected: dict[str, object]) -> None:
    found = fields_of(url)
    assert {name: found[name] for name in expected} == expected


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
        ("sentinel://a;sentinel://b/1", "sentinel://b;sentinel://a/1", True),
        ("sentinel://a;sentinel://b/1", "sentinel://a;sentinel://b/2", False),
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
