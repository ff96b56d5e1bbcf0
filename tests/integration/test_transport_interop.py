"""Our transport and kombu's own on the same queues."""

from __future__ import annotations

import time
from collections.abc import Iterator

import kombu
import pytest
import redis

from tests.integration.transport_loop import JOBS, Received, left, looped, send
from worker.contract.lanes import PRIORITY_STEPS, list_of
from worker.transport import capacity, leases


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    yield
    assert leases.stats()["live"] == 0
    assert capacity.tokens is None


def test_kombus_consumer_takes_what_our_producer_sends(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, {"from": "ours"}, ours=True)
    received = Received()
    with kombu.Connection(redis_url) as other, other.Consumer([JOBS], callbacks=[received]):
        other.drain_events(timeout=5)
    assert received.bodies == [{"from": "ours"}]


def test_consumers_of_both_kinds_share_a_queue(redis_url: str, redis_client: redis.Redis) -> None:
    ours, kombus = Received(), Received()
    send(redis_url, *range(100))
    with kombu.Connection(redis_url) as other, other.Consumer([JOBS], callbacks=[kombus]):
        other.drain_events(timeout=5)
        with looped(redis_url, ours, prefetch=10) as loop:
            loop.until(lambda: len(ours.bodies) + len(kombus.bodies) >= 99)
            other.drain_events(timeout=5) if len(ours.bodies) + len(kombus.bodies) < 100 else None
    assert sorted(ours.bodies + kombus.bodies) == list(range(100))
    assert left(redis_client)[1:] == (0, 0)


def test_kombus_sweep_restores_what_we_leased(redis_url: str, redis_client: redis.Redis) -> None:
    send(redis_url, {"text": "ü"})
    received, again = Received(ack=False), Received()
    with looped(redis_url, received) as loop:
        loop.until(lambda: received.messages)
        tag = received.messages[0].delivery_tag
        redis_client.zadd("unacked_index", {tag: time.time() - 4000})
        options = {"visibility_timeout": 3600, "unacked_restore_throttle": 1}
        with kombu.Connection(redis_url, transport_options=options) as other:
            channel = other.channel()
            channel.qos.restore_visible(num=10, interval=1)
            assert left(redis_client) == (1, 0, 0)
            with other.Consumer([JOBS], callbacks=[again]):
                other.drain_events(timeout=5)
    assert again.bodies == [{"text": "ü"}]
    assert again.messages[0].delivery_info["redelivered"] is True


def test_we_restore_what_a_dead_stock_worker_held(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, "stock")
    with kombu.Connection(redis_url) as other:
        held = JOBS(other.channel()).get()
        redis_client.zadd("unacked_index", {held.delivery_tag: time.time() - 4000})
        received = Received()
        with looped(redis_url, received) as loop:
            loop.until(lambda: received.bodies == ["stock"])
            assert received.messages[0].headers["redelivered"] is True
        held.channel.qos._delivered.clear()
    assert left(redis_client) == (0, 0, 0)


def test_a_stock_consumer_of_our_configuration_serves_and_purges_every_lane(
    redis_url: str, redis_client: redis.Redis
) -> None:
    for step in PRIORITY_STEPS:
        send(redis_url, step, queue=list_of("jobs", step))
        send(redis_url, "purged", queue=list_of("jobs", step))
    received = Received()
    options = {"priority_steps": list(PRIORITY_STEPS)}
    with kombu.Connection(redis_url, transport_options=options) as other:
        with other.Consumer([JOBS], callbacks=[received]):
            while len(received.bodies) < 2:
                other.drain_events(timeout=5)
        assert received.bodies == [-1, "purged"]
        assert JOBS(other.channel()).purge() == 8


def test_a_plain_stock_consumer_serves_what_stock_producers_send(redis_url: str) -> None:
    """A stock consumer without our lanes, next to ours, which has the interactive one."""
    with kombu.Connection(redis_url) as other:
        for priority in (9, 3, 0):
            other.Producer().publish(priority, routing_key="jobs", priority=priority)
        ours, kombus = Received(), Received()
        send(redis_url, "asked", queue=list_of("jobs", -1))
        with other.Consumer([JOBS], callbacks=[kombus]):
            for _ in range(3):
                other.drain_events(timeout=5)
        assert kombus.bodies == [0, 3, 9]
        with looped(redis_url, ours, priority_steps=list(PRIORITY_STEPS)) as loop:
            loop.until(lambda: ours.bodies == ["asked"])


def test_purge_empties_the_queue_and_leaves_leases_alone(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, *range(5))
    received = Received(ack=False)
    with looped(redis_url, received, prefetch=2) as loop:
        loop.until(lambda: len(received.messages) == 2)
        with kombu.Connection(redis_url) as other:
            assert JOBS(other.channel()).purge() == 3
        assert left(redis_client) == (0, 2, 2)
        for message in received.messages:
            message.ack()
        loop.until(lambda: left(redis_client) == (0, 0, 0))
