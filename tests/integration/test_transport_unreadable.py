"""Unreadable messages: stored for inspection, while the others are consumed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from tests.integration.test_transport_worker import StartWorker, app, call, held, start
from tests.integration.transport_loop import Received, left, looped, plain, send
from tests.processes import eventually
from worker.transport import leases
from worker.transport.message import parse

__all__ = ["app", "start"]

DEEP = 100_000
#: Deep enough for Python, too deep for a decoder.
NESTED = '{"a":' * 900 + "1" + "}" * 900


def envelope(**changes: Any) -> str:
    fields = {
        "body": "[[1, 2], {}, {}]",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"id": "an-id", "task": "a-task"},
        "properties": {
            "body_encoding": "utf-8",
            "delivery_info": {"exchange": "", "routing_key": "jobs"},
            "delivery_tag": "tag",
            "priority": 0,
        },
    }
    return json.dumps(fields | changes)


UNREADABLE = [
    *("", "not json", "[]", "{}", "null", "7", '"text"', "{", "NaN", "\\ud800"),
    *("[" * DEEP, '{"a":' * DEEP, "[" * DEEP + "]" * DEEP, envelope()[:-1] + ',"x":' + "[" * DEEP),
    *(envelope(properties=value) for value in (None, [], 7, "text", {"body_encoding": "rot13"})),
    *(envelope(headers=value) for value in ([1], 7, "text")),
    *(envelope(body=value, properties={"body_encoding": "base64"}) for value in (7, "abc", [1])),
    '{"__type__": "datetime", "__value__": "never"}',
    '{"__type__": "uuid", "__value__": {"hex": []}}',
    envelope(headers={"x": {"__type__": "decimal", "__value__": "NaN?"}}),
]
BYTES = [b"\xff\xfe", b"\x80{", b'{"body": "\xff"}']


@pytest.mark.parametrize("looping", [True, False])
def test_messages_that_cannot_be_read_are_dead_letters_and_the_rest_goes_on(
    redis_url: str, redis_client: redis.Redis, looping: bool
) -> None:
    redis_client.lpush("jobs", *UNREADABLE, *BYTES)
    send(redis_url, "fine")
    received = Received()
    if looping:
        with looped(redis_url, received, dead_letter_key="graves") as loop:
            loop.until(lambda: received.bodies == ["fine"])
            loop.until(lambda: left(redis_client) == (0, 0, 0))
    else:
        with plain(redis_url, received, dead_letter_key="graves") as connection:
            while not received.bodies:
                connection.drain_events(timeout=10)
    graves = [
        json.loads(grave.decode("utf-8", "surrogateescape")) for grave in graves_of(redis_client)
    ]
    assert {grave["reason"] for grave in graves} == {"unreadable"}
    kept = {grave["message"].encode("utf-8", "surrogateescape") for grave in graves}
    assert kept == {message.encode() for message in UNREADABLE} | set(BYTES)
    assert left(redis_client) == (0, 0, 0)


def graves_of(client: redis.Redis) -> list[bytes]:
    graves: list[bytes] = client.lrange("graves", 0, -1)
    return graves


@pytest.mark.parametrize("body", ["[" * DEEP, '{"a":' * DEEP, "[" * DEEP + "]" * DEEP])
def test_a_body_that_cannot_be_decoded_is_the_consumers_to_refuse(
    redis_url: str, redis_client: redis.Redis, body: str
) -> None:
    redis_client.lpush("jobs", envelope(body=body))
    refused = []
    with looped(redis_url, Received()) as loop:
        loop.consumer.on_decode_error = lambda message, error: refused.append((message, error))
        loop.consumer.accept = {"application/json"}
        loop.until(lambda: refused)
        [(message, error)] = refused
        assert type(error).__name__ == "DecodeError"
        leases.dead_letter(message.delivery_tag, "unreadable", "graves")
        loop.until(lambda: left(redis_client) == (0, 0, 0))
    [grave] = graves_of(redis_client)
    assert parse(json.loads(grave)["message"].encode())["body"] == body


@pytest.mark.parametrize(
    "entry",
    [
        "not json",
        "[]",
        "[" * DEEP,
        json.dumps(["text", "", "jobs"]),
        json.dumps([{"headers": [], "properties": {}}, "", "jobs"]),
        json.dumps([{"headers": {}, "properties": {"delivery_info": 7}}, "", "jobs"]),
        json.dumps([{"headers": {}, "properties": []}, "", "jobs"]),
    ],
)
def test_what_a_stock_worker_left_and_cannot_be_restored_is_a_dead_letter(
    redis_url: str, redis_client: redis.Redis, entry: str
) -> None:
    redis_client.hset("unacked", "a-stock-tag", entry)
    redis_client.zadd("unacked_index", {"a-stock-tag": 1})
    send(redis_url, "fine")
    received = Received()
    with looped(redis_url, received, dead_letter_key="graves") as loop:
        loop.until(lambda: received.bodies == ["fine"])
        loop.until(lambda: left(redis_client) == (0, 0, 0))
    assert [json.loads(grave)["message"] for grave in graves_of(redis_client)] == [entry]


def test_what_a_stock_worker_left_for_a_key_of_another_type_is_kept(
    redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.set("wrong", "not a list")
    for tag, queue in (("bad", "wrong"), ("good", "jobs")):
        redis_client.hset("unacked", tag, f'[{envelope(headers={})},"","{queue}"]')
        redis_client.zadd("unacked_index", {tag: 1})
    received = Received()
    with looped(redis_url, received) as loop:
        loop.until(lambda: received.bodies == [[[1, 2], {}, {}]])
        loop.until(lambda: left(redis_client) == (0, 1, 1))
    assert redis_client.zscore("unacked_index", "bad") > redis_client.time()[0] - 60


def test_no_message_stops_workers_or_costs_them_their_connection(
    start: StartWorker, app: Any, redis_client: redis.Redis
) -> None:
    workers = [start(name, PREFETCH="4") for name in ("one", "two")]
    headers = {"task": "tests.integration.transport_app.add"}
    nameless = [envelope(headers=headers | {"n": n}) for n in range(5)]
    bad = [message.encode() for message in UNREADABLE] + BYTES
    for number, message in enumerate([*bad, *map(str.encode, nameless)]):
        redis_client.lpush("celery", message)
        if number % 4 == 0:
            call(app, "add", 1, number)
        redis_client.publish("/0.celery.pidbox", message)
    results = [call(app, "add", n, n) for n in range(50)]
    assert [result.get(timeout=60) for result in results] == [2 * n for n in range(50)]
    eventually(lambda: held(redis_client) == (0, 0), 20)
    kept = [
        json.loads(grave.decode("utf-8", "surrogateescape"))["message"]
        for grave in redis_client.lrange("unacked_dead_letters", 0, -1)
    ]
    assert len(kept) == len(bad) + len(nameless)
    assert set(kept) >= {*UNREADABLE, *nameless}
    answers = app.control.ping(timeout=10, limit=2)
    assert sorted(name for answer in answers for name in answer) == [
        "one@localhost",
        "two@localhost",
    ]
    for worker in workers:
        assert "connection to broker lost" not in worker.log().lower()
        assert worker.running
