"""Consumers with failing connections and servers: no message is lost, consuming continues."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.integration.transport_loop import FAST, Received, left, looped, send
from tests.integration.transport_proxy import proxy
from tests.processes import ValkeyServer
from worker.transport import Connection, capacity, fetcher, lease_of, leases, scripts


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    yield
    assert leases.stats()["live"] == 0
    assert capacity.tokens is None


def kill_connections(client: redis.Redis) -> None:
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def test_killed_connections_lose_nothing_and_consuming_goes_on(
    redis_url: str, redis_client: redis.Redis
) -> None:
    received = Received()
    sent = 0
    with looped(redis_url, received) as loop:
        for _ in range(10):
            kill_connections(redis_client)
            send(redis_url, *range(sent, sent + 20))
            sent += 20
            kill_connections(redis_client)
            loop.until(lambda sent=sent: len(set(received.bodies)) == sent)
        loop.until(lambda: left(redis_client) == (0, 0, 0))
    assert sorted(received.bodies) == list(range(sent))


def test_endings_survive_the_connection_they_could_not_be_told_on(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, *range(10))
    received = Received(ack=False)
    with looped(redis_url, received) as loop:
        loop.until(lambda: len(received.messages) == 10)
        kill_connections(redis_client)
        for message in received.messages:
            message.ack()
        loop.until(lambda: left(redis_client) == (0, 0, 0))
    assert len(received.bodies) == 10


def test_a_server_that_forgets_scripts_or_fills_up_is_waited_for(
    redis_url: str, redis_client: redis.Redis
) -> None:
    received = Received()
    with looped(redis_url, received) as loop:
        for n in range(5):
            redis_client.script_flush()
            send(redis_url, n)
            loop.until(lambda n=n: received.bodies == list(range(n + 1)))
        loop.turn_for(0.2)
        send(redis_url, "before")
        redis_client.config_set("maxmemory", 1)
        try:
            loop.until(lambda: received.bodies[-1] == "before")
            loop.turn_for(0.5)
        finally:
            redis_client.config_set("maxmemory", 0)
        send(redis_url, "after")
        loop.until(lambda: received.bodies[-1] == "after")
        loop.until(lambda: left(redis_client) == (0, 0, 0))


def test_a_replica_in_place_of_the_primary_is_waited_for(
    valkey_server: Callable[..., ValkeyServer],
) -> None:
    server = valkey_server()
    received = Received()
    with server.client() as client, looped(server.url, received) as loop:
        loop.turn_for(0.3)
        send(server.url, 1)
        client.replicaof("127.0.0.1", "1")
        loop.turn_for(1.0)
        client.replicaof("NO", "ONE")
        loop.until(lambda: received.bodies == [1], timeout=15)
        loop.until(lambda: left(client) == (0, 0, 0))


def test_a_server_killed_and_restarted_loses_nothing(
    valkey_server: Callable[..., ValkeyServer],
) -> None:
    server = valkey_server()
    send(server.url, *range(10))
    held, received = Received(ack=False), Received()
    with server.client() as client:
        with looped(server.url, held, prefetch=5) as loop:
            loop.until(lambda: len(held.messages) == 5)
            server.kill()
            with pytest.raises(loop.connection.connection_errors):
                loop.turn_for(2.0)
            for message in held.messages[:2]:
                message.ack()
            server.start()
        leases.flush()
        with looped(server.url, received) as loop:
            loop.until(lambda: len(received.bodies) == 8)
            loop.until(lambda: left(client) == (0, 0, 0))
    assert sorted(received.bodies) == list(range(2, 10))


def test_restoring_many_never_holds_the_loop_up(redis_url: str, redis_client: redis.Redis) -> None:
    send(redis_url, "x" * 2000)
    [message] = redis_client.lrange("jobs", 0, -1)
    redis_client.delete("jobs")
    with redis_client.pipeline() as pipe:
        for n in range(5000):
            tag = f"timed:0:dead:{n:04d}"
            pipe.hset("unacked", tag, b"[" + message + b',"","jobs"]')
            pipe.zadd("unacked_index", {tag: n})
        pipe.execute()
    received = Received()
    turns: list[float] = []
    with looped(redis_url, received) as loop:
        loop.hub.on_tick.add(lambda: turns.append(time.monotonic()))
        loop.until(lambda: len(received.bodies) == 5000, timeout=30)
        loop.until(lambda: left(redis_client) == (0, 0, 0))
    pauses = [after - before for before, after in pairwise(turns)]
    assert max(pauses) < 0.5, sorted(pauses)[-5:]
    assert all(message.headers["redelivered"] for message in received.messages)


def test_a_half_open_connection_is_replaced_before_its_leases_run_out(
    redis_url: str, redis_client: redis.Redis, valkey: ValkeyServer
) -> None:
    received = Received(ack=False)
    with proxy(valkey.port) as between:
        url = f"redis://127.0.0.1:{between.port}/0"
        with looped(url, received, lease_timeout=12.0, socket_timeout=2) as loop:
            send(redis_url, "first")
            loop.until(lambda: received.bodies == ["first"])
            between.go_deaf()
            received.messages[0].ack()
            send(redis_url, "second")
            loop.until(lambda: received.bodies == ["first", "second"], timeout=20)
            received.messages[1].ack()
            loop.until(lambda: left(redis_client) == (0, 0, 0))
            assert not lease_of(received.messages[1])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_answers_of_any_size_come_whole_through_tls(
    redis_url: str, redis_client: redis.Redis, valkey: ValkeyServer, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    received = Received()
    with proxy(valkey.port, tls=context) as between:
        url = f"rediss://localhost:{between.port}/0?ssl_ca_certs={certificate}"
        with looped(url, received) as loop:
            sizes = [10, 16_384, 16_385, 500_000, 3_000_000]
            for size in sizes:
                send(redis_url, "x" * size, "y" * size)
                loop.until(lambda size=size: received.bodies[-1:] == ["y" * size], timeout=20)
            loop.until(lambda: len(received.bodies) == 2 * len(sizes))
            assert [len(body) for body in received.bodies] == [n for n in sizes for _ in "xy"]
            loop.until(lambda: left(redis_client) == (0, 0, 0))


def test_a_dead_letter_list_that_cannot_be_written_holds_nothing_else_up(
    redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.set("graves", "not a list")
    send(redis_url, "bad", "good", "better")
    received = Received(ack=False)
    with looped(redis_url, received) as loop:
        loop.until(lambda: len(received.messages) == 3)
        bad, good, better = received.messages
        leases.dead_letter(bad.delivery_tag, "poisoned", "graves")
        good.ack()
        loop.until(lambda: left(redis_client) == (0, 2, 2))
        better.ack()
        loop.until(lambda: left(redis_client) == (0, 1, 1))
        redis_client.delete("graves")
        loop.until(lambda: left(redis_client) == (0, 0, 0))
    assert redis_client.llen("graves") == 1


def test_a_receiver_that_takes_its_time_keeps_the_leases_of_those_that_wait(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, *range(40))
    held: list[int] = []
    ages: list[float] = []

    class Slow(Received):
        def __call__(self, body: Any, message: Any) -> None:
            super().__call__(body, message)
            [(_, oldest)] = redis_client.zrange("unacked_index", 0, 0, withscores=True)
            held.append(redis_client.hlen("unacked"))
            ages.append(redis_client.time()[0] - oldest + 3.0)
            threading.Event().wait(0.1)

    slow = Slow()
    with looped(redis_url, slow) as loop:
        loop.until(lambda: len(slow.bodies) == 40, timeout=20)
        loop.until(lambda: left(redis_client) == (0, 0, 0))
    assert max(ages) < 2.5
    # Acks are sent meanwhile, so that a crash repeats few tasks.
    assert held[-1] < 5, held


def test_a_pause_of_the_loop_is_not_taken_for_a_dead_server(
    redis_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "PATIENCE", 0.5)
    monkeypatch.setattr(fetcher, "WATCH_SECONDS", 1)
    received = Received()
    with looped(redis_url, received) as loop:
        loop.turn_for(0.3)
        threading.Event().wait(2.5)
        loop.turn_for(1.5)
        send(redis_url, 1)
        loop.until(lambda: received.bodies)
    assert "connecting anew" not in caplog.text


def test_leases_can_be_renewed_where_no_loop_turns(
    redis_url: str, redis_client: redis.Redis
) -> None:
    send(redis_url, "kept", "gone")
    received = Received(ack=False)
    with looped(redis_url, received) as loop:
        loop.until(lambda: len(received.messages) == 2)
        kept, gone = (message.delivery_tag for message in received.messages)
        redis_client.zadd("unacked_index", {kept: 1})
        redis_client.zrem("unacked_index", gone)
        redis_client.hdel("unacked", gone)
        leases.renew()
        left_s = (redis_client.zscore("unacked_index", kept) or 0) - redis_client.time()[0]
        assert abs(left_s - float(str(FAST["lease_timeout"]))) < 1
        assert redis_client.zscore("unacked_index", gone) is None
        assert leases.get(gone) is None


@pytest.mark.parametrize("losses", [1, 100])
def test_a_message_whose_reply_is_lost_is_answered_again_or_goes_back(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, losses: int
) -> None:
    send(redis_url, "first", "second")
    lost: list[Any] = []
    read = redis.Redis.parse_response

    def parse_response(client: Any, connection: Any, command: Any, **options: Any) -> Any:
        answer = read(client, connection, command, **options)
        if command == "EVALSHA" and len(lost) < losses:
            lost.append(answer)
            raise redis.ConnectionError("the reply is lost")
        return answer

    with Connection(redis_url, transport_options=FAST) as connection:
        channel = connection.channel()
        redis_client.script_load(scripts.FETCH.text)
        channel.store.client.set_retry(Retry(NoBackoff(), 2))
        monkeypatch.setattr(redis.Redis, "parse_response", parse_response)
        if losses == 1:
            assert channel.basic_get("jobs").payload == "first"
            assert left(redis_client) == (1, 1, 1)
        else:
            with pytest.raises(redis.ConnectionError):
                channel.basic_get("jobs")
            assert len(lost) == 3
            assert left(redis_client) == (1, 1, 1)
        monkeypatch.undo()
    assert left(redis_client) == (2, 0, 0)
