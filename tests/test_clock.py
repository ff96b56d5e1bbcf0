"""Redis' clock, as seen by processes with other clocks."""

from __future__ import annotations

import time

import pytest
import redis

from worker.store.clock import Clock


def by_redis(client: redis.Redis) -> float:
    seconds, micros = client.time()
    return seconds + micros / 1e6


def test_it_shows_the_servers_time_whatever_the_hosts_clock_says(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(redis_client)
    monkeypatch.setattr(time, "time", lambda: 12.0)
    assert clock.estimate() == 12.0, "nothing was measured yet"
    assert clock.now() == pytest.approx(by_redis(redis_client), abs=1.0)
    assert clock.estimate() == pytest.approx(by_redis(redis_client), abs=1.0)


def test_it_goes_on_while_redis_is_away(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(redis_client)
    clock.measure()
    began = time.monotonic()

    def away() -> None:
        raise redis.ConnectionError("away")

    monkeypatch.setattr(redis_client, "time", away)
    before = clock.now()
    monkeypatch.setattr(time, "monotonic", lambda: began + 100.0)
    assert clock.now() == pytest.approx(before + 100.0, abs=1.0)


def test_without_any_measurement_it_says_that_redis_is_away(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise redis.ConnectionError("away")

    monkeypatch.setattr(redis_client, "time", away)
    with pytest.raises(redis.ConnectionError):
        Clock(redis_client).now()
