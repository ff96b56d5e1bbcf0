"""The cache in Redis: bounded, in one round trip, and without delays for jobs."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.processes import ValkeyServer, eventually, free_port
from worker.cache import store
from worker.cache.entries import Keys
from worker.cache.store import Cache
from worker.contract import keys
from worker.contract.jobs import DEFAULT_OPTIONS

QUEUE = "embedq"
MIB = 2**20


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def entries(numbers: range, size: int = 1544) -> dict[bytes, bytes]:
    return {key(number): number.to_bytes(4, "big") * (size // 4) for number in numbers}


def cache_of(client: redis.Redis, bound: int = MIB) -> Cache:
    return Cache(Keys({}), client, client, queue=QUEUE, bound=bound)


def held(client: redis.Redis) -> int:
    """Bytes of Redis's memory that the cache uses."""
    names = (keys.cache(QUEUE), keys.cache_used(QUEUE))
    return sum(client.memory_usage(name, samples=0) or 0 for name in names)


@pytest.fixture
def cache(redis_client: redis.Redis) -> Cache:
    return cache_of(redis_client)


def found(cache: Cache, numbers: range) -> list[int]:
    """The numbers with a cached entry."""
    answer = cache.find([key(number) for number in numbers])
    assert answer is not None
    return [number for number, value in zip(numbers, answer, strict=True) if value is not None]


def test_what_was_kept_is_found_each_under_its_key(cache: Cache) -> None:
    assert cache.keep(entries(range(0, 1200, 2), 64), ())
    answer = cache.find([key(number) for number in range(1200)])
    assert answer is not None
    for number, value in enumerate(answer):
        assert value == (None if number % 2 else number.to_bytes(4, "big") * 16)


def test_it_never_takes_more_memory_than_it_may(redis_client: redis.Redis) -> None:
    cache = cache_of(redis_client)
    for size in (16, 1544, 4104, 136):
        for start in range(0, 3000, 500):
            cache.keep(entries(range(start + size, start + size + 500), size), ())
            assert held(redis_client) <= MIB
    assert held(redis_client) > MIB // 3
    assert found(cache, range(3135, 3136)) == [3135]


def test_what_was_used_longest_ago_makes_room(cache: Cache) -> None:
    for number in range(300):
        cache.keep(entries(range(number, number + 1)), ())
    assert found(cache, range(300)) == list(range(300))
    cache.keep({}, [key(number) for number in range(50)])
    cache.keep(entries(range(300, 500)), ())
    left = found(cache, range(500))
    assert left[:50] == list(range(50))
    assert left[-200:] == list(range(300, 500))
    assert 50 not in left


def test_a_key_kept_again_is_counted_once(cache: Cache, redis_client: redis.Redis) -> None:
    for _ in range(20):
        cache.keep(entries(range(200)), ())
    assert found(cache, range(200)) == list(range(200))
    assert redis_client.zcard(keys.cache_used(QUEUE)) == 200


def test_an_entry_larger_than_the_bound_is_not_kept(redis_client: redis.Redis) -> None:
    cache = cache_of(redis_client, bound=4000)
    cache.keep(entries(range(1)), ())
    cache.keep(entries(range(1, 2), 8000), ())
    assert found(cache, range(2)) == []


def test_a_smaller_bound_is_reached_in_steps(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_MOST_REMOVED", 100)
    cache_of(redis_client).keep(entries(range(400)), ())
    smaller = cache_of(redis_client, bound=MIB // 8)
    for number in range(400, 405):
        smaller.keep(entries(range(number, number + 1)), ())
    assert held(redis_client) <= MIB // 8
    assert 404 in found(smaller, range(405))


@pytest.mark.parametrize("gone", [keys.cache(QUEUE), keys.cache_used(QUEUE)])
def test_half_of_it_removed_by_hand_does_not_let_it_grow(
    gone: str, cache: Cache, redis_client: redis.Redis
) -> None:
    cache.keep(entries(range(300)), ())
    redis_client.delete(gone)
    for start in range(1000, 3000, 200):
        cache.keep(entries(range(start, start + 200)), ())
        assert held(redis_client) <= MIB
    assert 2999 in found(cache, range(3000))


def test_a_cache_that_nobody_uses_expires(cache: Cache, redis_client: redis.Redis) -> None:
    cache.keep(entries(range(1)), ())
    for name in (keys.cache(QUEUE), keys.cache_used(QUEUE)):
        assert 0 < redis_client.ttl(name) <= 7 * 24 * 3600


def test_a_job_is_one_round_trip_each_way(cache: Cache, redis_client: redis.Redis) -> None:
    executed = []
    send = redis.client.Pipeline.execute

    def execute(pipe: Any, *args: Any, **options: Any) -> Any:
        executed.append(len(pipe.command_stack))
        return send(pipe, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis.client.Pipeline, "execute", execute)
        cache.keep(entries(range(4096), 136), [key(1)])
        found(cache, range(4096))
    assert executed == [1 + 3, 8]


def test_no_text_is_in_redis(redis_client: redis.Redis) -> None:
    cache = Cache(Keys({"m": b"r"}), redis_client, redis_client, queue=QUEUE, bound=MIB)
    (of_text,) = cache.keys.of("m", "secret prompt", DEFAULT_OPTIONS, ["a secret text"])
    assert of_text is not None
    cache.keep({of_text: b"vector"}, ())
    for name in redis_client.keys("*"):
        assert b"secret" not in redis_client.dump(name)


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


@pytest.mark.parametrize("kind", ["silent", "absent"])
def test_a_redis_that_does_not_answer_is_asked_once_in_a_while(
    kind: str, silent: str, valkey: ValkeyServer, redis_url: str
) -> None:
    url = silent if kind == "silent" else f"redis://127.0.0.1:{free_port()}/0"
    with (
        redis.Redis.from_url(url, socket_timeout=0.05, retry=None) as away,
        valkey.client() as client,
    ):
        cache = cache_of(away)
        begun = time.monotonic()
        assert not cache.keep(entries(range(1)), ())
        assert cache.find([key(0)]) is None
        # The cache pauses although this client would answer.
        cache._finder = cache._keeper = client
        assert cache.keep(entries(range(1)), ())
        if time.monotonic() < begun + 1.0:
            assert cache.find([key(0)]) is None
        eventually(lambda: cache.find([key(0)]) is not None)
        assert found(cache, range(1)) == [0]


def test_where_redis_is_full_the_cache_gives_way(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_MOST_REMOVED", 100)
    cache = cache_of(redis_client)
    cache.keep(entries(range(300)), ())
    redis_client.config_set("maxmemory", 1)
    try:
        assert not cache.keep(entries(range(300, 301)), ())
        assert len(found(cache, range(301))) == 200
        for _ in range(3):
            assert not cache.keep(entries(range(300, 301)), ())
        assert found(cache, range(301)) == []
    finally:
        redis_client.config_set("maxmemory", 0)
    assert cache.keep(entries(range(300)), ())
    assert found(cache, range(300)) == list(range(300))
