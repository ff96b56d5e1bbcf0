"""Consumers on our transport, on a real server, with and without an event loop."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import kombu
import pytest
import redis
from kombu.asynchronous import Hub

from tests.integration.transport_loop import (
    FAST,
    JOBS,
    Received,
    backlog,
    left,
    looped,
    plain,
    send,
)
from tests.processes import ValkeyServer
from worker.contract.lanes import PRIORITY_STEPS, Lane, list_of, lists_of
from worker.transport import Connection, capacity, fetcher, lease_of, leases
from worker.transport.message import Message


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    yield
    assert leases.stats()["live"] == 0
    assert capacity.tokens is None


# Without a loop.


def test_a_consumer_without_a_loop_gets_one_message_a_call(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, 1, 2, 3)
    received = Received()
    with plain(redis_url, received) as connection:
        for expected in ([1], [1, 2], [1, 2, 3]):
            while received.bodies != expected:
                connection.drain_events(timeout=5)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.2)
    assert left(redis_client) == (0, 0, 0)


def test_a_waiting_consumer_without_a_loop_wakes_for_a_message(redis_url: str) -> None:
    received = Received()
    with plain(redis_url, received) as connection:
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.2)
        threading.Timer(0.3, send, (redis_url, "late")).start()
        connection.drain_events(timeout=5)
    assert received.bodies == ["late"]


def test_a_simple_queue_works(redis_url: str, redis_client: redis.Redis) -> None:
    with Connection(redis_url) as connection, connection.SimpleQueue("jobs") as queue:
        queue.put({"n": 1})
        message = queue.get(timeout=5)
        assert message.payload == {"n": 1}
        assert left(redis_client) == (0, 1, 1)
        message.ack()
    assert left(redis_client) == (0, 0, 0)


def test_a_single_get_leases_its_message(redis_url: str, redis_client: redis.Redis) -> None:
    send(redis_url, "one")
    with Connection(redis_url) as connection:
        queue = JOBS(connection.channel())
        message = queue.get()
        assert lease_of(message) is not None
        assert left(redis_client) == (0, 1, 1)
        message.reject(requeue=True)
        assert left(redis_client) == (1, 0, 0)
        queue.get().ack()
        assert queue.get() is None
    assert left(redis_client) == (0, 0, 0)


# With a loop.


def test_a_loop_gets_many_messages_in_one_fetch(redis_url: str, redis_client: redis.Redis) -> None:
    send(redis_url, *range(300))
    received = Received()
    with looped(redis_url, received) as loop:
        redis_client.config_resetstat()
        loop.until(lambda: len(received.bodies) == 300)
        loop.until(lambda: left(redis_client) == (0, 0, 0))
        calls = redis_client.info("commandstats")
    assert received.bodies == list(range(300))
    fetches = calls["cmdstat_hset"]["calls"]
    assert fetches == 1, calls


@pytest.mark.alone
def test_an_idle_loop_asks_for_nothing_and_still_wakes_at_once(
    redis_url: str, redis_client: redis.Redis
) -> None:
    received = Received()
    with looped(redis_url, received, restore_interval=60) as loop:
        loop.turn_for(1.0)
        redis_client.config_resetstat()
        loop.turn_for(1.5)
        calls = redis_client.info("commandstats")
        asked = {name for name in calls if name.startswith(("cmdstat_eval", "cmdstat_blmove"))}
        assert asked <= {"cmdstat_evalsha"}, calls
        send(redis_url, "late")
        begun = time.monotonic()
        loop.until(lambda: received.bodies)
        assert time.monotonic() - begun < 0.5


def test_several_queues_and_priorities_are_served(redis_url: str) -> None:
    received = Received()
    steps = [0, 3, 6, 9]
    queues = [kombu.Queue("a", routing_key="a"), kombu.Queue("b", routing_key="b")]
    with kombu.Connection(redis_url, transport_options={"priority_steps": steps}) as connection:
        producer = connection.Producer()
        for queue, priority in (("a", 9), ("b", 3), ("a", 0), ("b", 0)):
            producer.publish(f"{queue}{priority}", routing_key=queue, priority=priority)
        with looped(redis_url, received, *queues, priority_steps=steps) as loop:
            loop.until(lambda: len(received.bodies) == 4)
            assert set(received.bodies[:2]) == {"a0", "b0"}
            assert received.bodies[2:] == ["b3", "a9"]
            loop.turn_for(0.2)
            producer.publish("low", routing_key="b", priority=9)
            loop.until(lambda: received.bodies[4:] == ["low"])


def test_fanout_and_unacknowledged_queues_stay_with_kombu(
    redis_url: str, redis_client: redis.Redis
) -> None:
    received = Received()
    news = kombu.Exchange("news", type="fanout")
    with looped(redis_url, received, kombu.Queue("listener", news, auto_delete=True)) as loop:
        replies = kombu.Queue("replies", routing_key="replies")
        loop.connection.Consumer([replies], callbacks=[received], no_ack=True).consume()
        loop.turn_for(0.3)
        send(redis_url, "reply", queue="replies")
        with kombu.Connection(redis_url) as other:
            other.Producer().publish("hello", exchange=news, declare=[news])
        loop.until(lambda: sorted(received.bodies) == ["hello", "reply"])
        assert [lease_of(message) for message in received.messages] == [None, None]
    assert left(redis_client) == (0, 0, 0)


def test_kombus_prefetch_count_bounds_what_is_held(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, *range(10))
    received = Received(ack=False)
    with looped(redis_url, received, prefetch=4) as loop:
        loop.until(lambda: len(received.bodies) == 4)
        loop.turn_for(0.3)
        assert left(redis_client) == (6, 4, 4)
        for message in received.messages[:3]:
            message.ack()
        loop.until(lambda: len(received.bodies) == 7)
        loop.turn_for(0.2)
        assert left(redis_client) == (3, 4, 4)
    assert left(redis_client) == (7, 0, 0)


def test_the_pool_decides_how_much_is_fetched(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # About 250 tokens each.
    send(redis_url, *["x" * 1000 for _ in range(20)])
    room = 0
    received = Received(ack=False)
    monkeypatch.setattr(capacity, "tokens", lambda _: room)
    with looped(redis_url, received) as loop:
        loop.turn_for(0.3)
        assert received.bodies == []
        room = 1000
        loop.until(lambda: received.bodies)
        room = 0
        loop.turn_for(0.2)
        assert 3 <= len(received.bodies) <= 5
        room = 1_000_000
        loop.until(lambda: len(received.bodies) == 20)
    monkeypatch.undo()
    assert left(redis_client) == (20, 0, 0)


def test_a_lane_is_fetched_however_full_the_others_are(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = dict.fromkeys(Lane, 0)
    received = Received(ack=False)
    monkeypatch.setattr(capacity, "tokens", rooms.__getitem__)
    with looped(redis_url, received, priority_steps=list(PRIORITY_STEPS)) as loop:
        loop.turn_for(0.2)
        redis_client.rename(backlog(redis_url, redis_client, 100), list_of("jobs", 9))
        rooms[Lane.INTERACTIVE] = 1000
        loop.turn_for(0.2)
        assert received.bodies == []
        redis_client.rename(backlog(redis_url, redis_client, 1), list_of("jobs", -1))
        loop.until(lambda: len(received.bodies) == 1)
        loop.turn_for(0.1)
        redis_client.rename(backlog(redis_url, redis_client, 2), list_of("jobs", -1))
        loop.until(lambda: len(received.bodies) == 3)
        assert [lease_of(message).priority for message in received.messages] == [-1] * 3
    monkeypatch.undo()
    # Each went back to its original list.
    assert [redis_client.llen(name) for name in lists_of("jobs")] == [3, 0, 0, 0, 100]


def test_jobs_somebody_waits_for_come_between_those_fetched_before(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = Received()
    urgent = backlog(redis_url, redis_client, 1, first=1000)

    def ask(body: int, message: Message) -> None:
        received(body, message)
        if body == 5:
            redis_client.rename(urgent, list_of("jobs", -1))

    monkeypatch.setattr(capacity, "tokens", lambda _: 1_000_000)
    # A receiver that always takes longer than a slice.
    monkeypatch.setattr(fetcher, "SLICE_SECONDS", 0)
    send(redis_url, *range(200))
    steps = list(PRIORITY_STEPS)
    with looped(redis_url, ask, priority_steps=steps) as loop:
        loop.until(lambda: len(received.bodies) == 201)
    assert received.bodies.index(1000) < 190
    monkeypatch.undo()


def test_the_pool_is_told_when_messages_that_came_at_once_were_handed_over(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = Received()
    following: list[bool] = []
    told: list[int] = []

    def receive(body: int, message: Message) -> None:
        received(body, message)
        following.append(capacity.more_follow)

    monkeypatch.setattr(capacity, "delivered", lambda: told.append(len(received.bodies)))
    jobs = backlog(redis_url, redis_client, 20)
    with looped(redis_url, receive) as loop:
        loop.turn_for(0.2)
        redis_client.rename(jobs, "jobs")
        loop.until(lambda: len(received.bodies) == 20)
    assert following == [True] * 20
    assert told[-1] == 20
    assert len(told) < 20
    assert not capacity.more_follow


def test_a_unix_socket_works_by_both_of_its_urls(
    valkey: ValkeyServer, redis_url: str, redis_client: redis.Redis
) -> None:
    for url in (valkey.socket_url, f"unix://{valkey.socket}?db=0"):
        received = Received()
        send(redis_url, url)
        with looped(url, received) as loop:
            loop.until(lambda received=received: received.bodies)
            loop.until(lambda: left(redis_client) == (0, 0, 0))
        assert received.bodies == [url]


def test_another_thread_wakes_the_loop_to_tell_of_an_ending(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, 1)
    received = Received(ack=False)
    with looped(redis_url, received) as loop:
        loop.until(lambda: received.messages)
        threading.Timer(0.1, received.messages[0].ack).start()
        loop.until(lambda: left(redis_client) == (0, 0, 0), timeout=3)


def test_a_renewed_lease_outlasts_its_timeout_and_its_acknowledgement_counts(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, 1)
    received, other = Received(ack=False), Received()
    lost = leases.stats()["lost"]
    with looped(redis_url, received) as loop:
        loop.until(lambda: received.messages)
        with looped(redis_url, other) as rival:
            end = time.monotonic() + 4.5
            while time.monotonic() < end:
                loop.hub.run_once()
                rival.hub.run_once()
        assert other.bodies == []
        received.messages[0].ack()
        loop.until(lambda: left(redis_client) == (0, 0, 0))
    assert leases.stats()["lost"] == lost


def test_a_lease_that_ran_out_runs_again_and_its_old_tag_cannot_end_it(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, 1)
    received = Received(ack=False)
    with looped(redis_url, received) as loop:
        loop.until(lambda: received.messages)
        tag = received.messages[0].delivery_tag
        lost = leases.stats()["lost"]

        def comes_again() -> bool:
            redis_client.zadd("unacked_index", {tag: 1}, xx=True)
            return len(received.messages) == 2

        loop.until(comes_again)
        assert lease_of(received.messages[1]).redelivered
        assert received.messages[1].headers["redelivered"] is True
        received.messages[0].ack()
        loop.until(lambda: leases.stats()["lost"] > lost or leases.stats()["live"] == 1)
        loop.turn_for(0.2)
        assert left(redis_client) == (0, 1, 1)
        received.messages[1].ack()
        loop.until(lambda: left(redis_client) == (0, 0, 0))


def test_a_deferred_message_comes_again_at_its_time_as_if_it_had_not_come(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, "later", "now")
    received = Received(ack=False)
    with looped(redis_url, received) as loop:
        loop.until(lambda: len(received.messages) == 2)
        deferred, live = leases.stats()["deferred"], leases.stats()["live"]
        threading.Thread(target=leases.defer, args=(received.messages[0].delivery_tag, 2.0)).start()
        told = time.monotonic()
        loop.until(lambda: leases.stats()["deferred"] == deferred + 1)
        assert leases.stats()["live"] == live - 1
        # Acknowledged late: the lease is no longer ours.
        received.messages[0].ack()
        loop.until(lambda: len(received.messages) == 3)
        assert 2.0 <= time.monotonic() - told < 10
        assert received.bodies[2] == "later"
        assert not lease_of(received.messages[2]).redelivered
        for message in received.messages[1:]:
            message.ack()
        loop.until(lambda: left(redis_client) == (0, 0, 0))


def test_a_deferred_message_outlives_the_process_that_deferred_it(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, "later")
    received, again = Received(ack=False), Received()
    with looped(redis_url, received) as loop:
        loop.until(lambda: received.messages)
        leases.defer(received.messages[0].delivery_tag, 1.0)
        loop.until(lambda: not leases.get(received.messages[0].delivery_tag))
        loop.turn_for(0.2)
    assert left(redis_client) == (0, 1, 1)
    with looped(redis_url, again) as loop:
        loop.until(lambda: again.bodies == ["later"])
        assert "redelivered" not in again.messages[0].headers
        loop.until(lambda: left(redis_client) == (0, 0, 0))


def test_a_rejected_message_is_dropped_or_comes_again(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, "drop", "again")
    received = Received(ack=False)
    with looped(redis_url, received) as loop:
        loop.until(lambda: len(received.messages) == 2)
        received.messages[0].reject()
        received.messages[1].requeue()
        loop.until(lambda: len(received.messages) == 3)
        assert received.bodies[2] == "again"
        assert lease_of(received.messages[2]).redelivered
        received.messages[2].ack()
        loop.until(lambda: left(redis_client) == (0, 0, 0))


def test_messages_nobody_can_read_are_buried_and_the_rest_goes_on(
    redis_url: str, redis_client: redis.Redis
) -> None:
    base64 = '{"body": "abc", "properties": {"body_encoding": "base64"}}'
    unreadable = ["not json", "[]", "{}", b"\xff\xfe", b"\x80{", base64, "[" * 100_000]
    redis_client.lpush("jobs", *unreadable)
    send(redis_url, "fine")
    received = Received()
    with looped(redis_url, received, dead_letter_key="graves") as loop:
        loop.until(lambda: received.bodies == ["fine"])
        loop.until(lambda: left(redis_client) == (0, 0, 0))
    graves = [
        entry.decode("utf-8", "surrogateescape") for entry in redis_client.lrange("graves", 0, -1)
    ]
    assert len(graves) >= len(unreadable)
    assert {json.loads(grave)["reason"] for grave in graves} == {"unreadable"}
    assert "not json" in {json.loads(grave)["message"] for grave in graves}


def test_a_closing_channel_gives_everything_back_in_order(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, *range(5))
    received = Received(ack=False)
    with looped(redis_url, received) as loop:
        loop.until(lambda: len(received.messages) == 5)
        received.messages[1].ack()
    again = Received()
    with looped(redis_url, again) as loop:
        loop.until(lambda: len(again.bodies) == 4)
    assert again.bodies == [0, 2, 3, 4]
    assert not any(message.headers.get("redelivered") for message in again.messages)


def test_a_kept_lease_outlives_its_connection(redis_url: str, redis_client: redis.Redis) -> None:
    send(redis_url, "kept", "not")
    received, again = Received(ack=False), Received()
    with looped(redis_url, received) as loop:
        loop.until(lambda: len(received.messages) == 2)
        leases.detach(received.messages[0].delivery_tag)
    assert left(redis_client) == (1, 1, 1)
    with looped(redis_url, again) as loop:
        loop.turn_for(4.0)
        assert again.bodies == ["not"]
        received.messages[0].ack()
        loop.until(lambda: left(redis_client) == (0, 0, 0))


def test_a_cancelled_consumer_fetches_no_more(redis_url: str, redis_client: redis.Redis) -> None:
    received = Received()
    with looped(redis_url, received) as loop:
        loop.turn_for(0.3)
        loop.consumer.cancel()
        send(redis_url, 1)
        loop.turn_for(0.3)
    assert received.bodies == []
    assert left(redis_client) == (1, 0, 0)


def test_reconnects_leave_nothing_on_the_loop(redis_url: str) -> None:
    hub = Hub()
    for _ in range(20):
        connection = Connection(redis_url, transport_options=FAST)
        connection.connect()
        connection.register_with_event_loop(hub)
        connection.Consumer([JOBS], callbacks=[Received()]).consume()
        hub.run_once()
        connection.release()
    assert not hub.on_tick
    assert all(scheduled.entry.canceled for scheduled in hub.timer.queue)
    assert len(hub.readers) == 0
    hub.close()
    hub.timer.clear()
