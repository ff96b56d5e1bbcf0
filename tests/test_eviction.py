"""A server that may evict keys is named in the log at start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.api_stand import api_stand
from tests.processes import Processes, ValkeyServer, eventually, start_worker
from worker.store.eviction import eviction_policy


@pytest.fixture
def evicting(valkey_server: Callable[..., ValkeyServer]) -> ValkeyServer:
    return valkey_server("--maxmemory-policy", "allkeys-lru", "--maxmemory", "1gb")


def test_the_api_and_a_worker_warn_of_it(
    evicting: ValkeyServer, processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    with api_stand(evicting.url) as stand:
        for _ in range(3):
            assert stand.client.get("/healthz").status_code == 200
        eventually(lambda: "maxmemory-policy allkeys-lru" in caplog.text)
    assert caplog.text.count("allkeys-lru") == 1
    worker = start_worker(processes, evicting.url)
    eventually(lambda: "maxmemory-policy allkeys-lru" in worker.log())


@pytest.mark.parametrize(
    ("refused", "policy"), [(["-info"], "allkeys-lru"), (["-info", "-config|get"], "")]
)
def test_a_server_that_refuses_to_tell_is_no_problem(
    evicting: ValkeyServer, refused: list[str], policy: str
) -> None:
    with evicting.client() as client:
        client.execute_command("ACL", "SETUSER", "me", "on", ">pw", "~*", "+@all", *refused)
    url = evicting.url.replace("//", "//me:pw@")
    with redis.Redis.from_url(url) as client:
        assert eviction_policy(client) == policy


def test_a_server_that_keeps_its_keys_is_not_warned_of(redis_client: redis.Redis) -> None:
    assert eviction_policy(redis_client) == "noeviction"
