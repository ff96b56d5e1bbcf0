"""The effects of the transport's scripts on the keys of a real server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis

from tests.processes import ValkeyServer
from worker.contract.lanes import PRIORITY_STEPS, list_of
from worker.transport.lease_store import (
    FIRST,
    RESTORE_LIMIT,
    RESTORE_SCAN,
    Cursor,
    LeaseStore,
    QueueList,
    Restored,
)
from worker.transport.leases import DeadLetterUpdate, Deferral, Lease, LeaseUpdates

JOBS = [QueueList("jobs", "jobs", 0, 0)]


@pytest.fixture
def store(redis_client: redis.Redis) -> LeaseStore:
    return make_store(redis_client)


def make_store(client: redis.Redis, **changes: Any) -> LeaseStore:
    fields: dict[str, Any] = {
        "unacked_key": "unacked",
        "index_key": "unacked_index",
        "dead_letter_key": "dead",
        "key_prefix": "",
        "separator": "\x06\x16",
        "lease_timeout": 12.0,
        "visibility_timeout": 3600.0,
    }
    return LeaseStore(client=client, **(fields | changes))


def envelope(body: str = "{}", **fields: Any) -> str:
    """A message in the form that kombu puts into a queue."""
    properties = {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": "jobs"}}
    return json.dumps(
        {"body": body, "headers": {"id": "x"}, "properties": properties, "content-type": "j"}
        | fields
    )


def send(client: redis.Redis, *messages: str, queue: str = "jobs") -> None:
    client.lpush(queue, *messages)


def fetch(
    store: LeaseStore,
    lists: Sequence[QueueList] = JOBS,
    *,
    count: int = 100,
    room: int = 1 << 20,
    renewed: bool = True,
) -> list[tuple[Lease, bytes]]:
    request = store.fetch(lists, renewed=renewed, count=count, tokens_bytes=room)
    return store.read_fetch(request, store.run(request.command), "owner")[1]


def texts(client: redis.Redis, queue: str = "jobs") -> list[str]:
    """Bodies of a queue, the next one first."""
    return [json.loads(message)["body"] for message in client.lrange(queue, 0, -1)[::-1]]


def age(client: redis.Redis, seconds: float) -> None:
    """Make every lease look that much older."""
    for tag, score in client.zrange("unacked_index", 0, -1, withscores=True):
        client.zadd("unacked_index", {tag: score - seconds})


def restore(store: LeaseStore, cursor: Cursor = FIRST) -> Restored:
    return Restored.read(store.run(store.restoration(cursor)))


def sweep(store: LeaseStore) -> list[Restored]:
    """The steps of one sweep."""
    steps = [restore(store)]
    while (cursor := steps[-1].cursor) is not None:
        steps.append(restore(store, cursor))
    return steps


def test_a_fetch_leases_what_it_takes(store: LeaseStore, redis_client: redis.Redis) -> None:
    messages = [envelope(str(n)) for n in range(5)]
    for message in messages:
        send(redis_client, message)
    rows = fetch(store, count=3)
    assert [message.decode() for _, message in rows] == messages[:3]
    assert texts(redis_client) == ["3", "4"]
    tags = [lease.tag for lease, _ in rows]
    assert redis_client.zrange("unacked_index", 0, -1) == [tag.encode() for tag in tags]
    kept = json.loads(redis_client.hget("unacked", tags[0]) or b"")
    assert kept == [json.loads(messages[0]), "", "jobs"]


def test_no_two_fetches_share_a_tag(store: LeaseStore, redis_client: redis.Redis) -> None:
    send(redis_client, envelope(), envelope())
    assert fetch(store, count=1)[0][0].tag != fetch(store, count=1)[0][0].tag


def test_a_fetch_ends_where_the_room_ends(store: LeaseStore, redis_client: redis.Redis) -> None:
    send(redis_client, *[envelope("x" * 10_000) for _ in range(10)])
    assert len(fetch(store, room=25_000)) == 3
    assert redis_client.llen("jobs") == 7


def test_a_message_beyond_all_room_comes_alone(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    send(redis_client, envelope("x" * 1_000_000))
    send(redis_client, envelope())
    assert [len(message) > 1_000_000 for _, message in fetch(store, room=8)] == [True]


def test_queues_of_one_level_are_served_in_turn_and_priorities_in_order(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    for n in range(3):
        send(redis_client, envelope(f"a{n}"), queue="a")
        send(redis_client, envelope(f"b{n}"), queue="b")
    send(redis_client, envelope("late"), queue="a\x06\x163")
    lists = [
        QueueList("a", "a", 0, 0),
        QueueList("b", "b", 0, 0),
        QueueList("a", "a\x06\x163", 3, 3),
    ]
    bodies = [json.loads(message)["body"] for _, message in fetch(store, lists)]
    assert bodies == ["a0", "b0", "a1", "b1", "a2", "b2", "late"]


def test_a_fetch_says_whether_it_left_anything(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    send(redis_client, envelope(), envelope())
    for expected in (False, True):
        request = store.fetch(JOBS, renewed=True, count=2 - expected, tokens_bytes=1 << 20)
        redis_client.ltrim("jobs", 0, 1)
        drained, _ = store.read_fetch(request, store.run(request.command), "owner")
        assert drained is expected


def test_given_back_messages_are_next_in_line_unmarked(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    for n in range(6):
        send(redis_client, envelope(str(n)))
    before = redis_client.lrange("jobs", 0, -1)
    tags = [lease.tag for lease, _ in fetch(store, count=4)]
    store.send(LeaseUpdates(releases=[*tags, "timed:0:unknown:0000"]))
    store.send(LeaseUpdates(releases=tags))
    assert redis_client.lrange("jobs", 0, -1) == before
    assert not redis_client.exists("unacked", "unacked_index")


def test_a_requeued_message_is_marked_as_redelivered(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    send(redis_client, envelope("first"))
    send(redis_client, envelope("second"))
    [(lease, _)] = fetch(store, count=1)
    assert not lease.redelivered
    store.send(LeaseUpdates(requeues=[lease.tag]))
    assert texts(redis_client) == ["first", "second"]
    [(lease, message)] = fetch(store, count=1)
    assert lease.redelivered
    payload = json.loads(message)
    assert payload["headers"]["redelivered"] is True
    assert payload["properties"]["delivery_info"]["redelivered"] is True


@pytest.mark.parametrize(
    "body",
    [
        '{"headers": {"delivery_info": {"redelivered": true}}}',
        'end"],"","other"]',
        '\\" \x00 \n %d %s ü 漢字 🙂',
        "[[],{},1.0,12345678901234567890]",
        "x" * 300_000,
    ],
)
def test_no_text_is_changed_by_coming_back(
    store: LeaseStore, redis_client: redis.Redis, body: str
) -> None:
    headers = {"id": "x", "stamps": [], "nested": {"a": {}}, "big": 2**63, "none": None}
    send(redis_client, envelope(body, headers=headers))
    for _ in range(3):
        [(lease, _)] = fetch(store)
        store.send(LeaseUpdates(requeues=[lease.tag]))
    [raw] = redis_client.lrange("jobs", 0, -1)
    payload = json.loads(raw)
    assert payload["headers"].pop("redelivered") is True
    assert payload["properties"]["delivery_info"].pop("redelivered") is True
    assert payload == json.loads(envelope(body, headers=headers))
    assert len(raw) < len(envelope(body, headers=headers)) + 100


@pytest.mark.parametrize("queue", ['q"],"","x', "täsks", "with space", "a%sb"])
def test_any_queue_name_finds_its_way_back(
    store: LeaseStore, redis_client: redis.Redis, queue: str
) -> None:
    send(redis_client, envelope(), queue=queue)
    [(lease, _)] = fetch(store, [QueueList(queue, queue, 0, 0)])
    store.send(LeaseUpdates(releases=[lease.tag]))
    assert redis_client.llen(queue) == 1


@pytest.mark.parametrize("step", [-1, 0, 6])
def test_prefixed_keys_and_priorities_find_their_way_back(
    redis_client: redis.Redis, step: int
) -> None:
    store = make_store(redis_client, unacked_key="p:unacked", index_key="p:index", key_prefix="p:")
    key = list_of("p:jobs", step)
    send(redis_client, envelope(), queue=key)
    [(lease, _)] = fetch(store, [QueueList("jobs", key, 0, step)])
    store.send(LeaseUpdates(releases=[lease.tag]))
    assert redis_client.llen(key) == 1


def test_only_leases_that_ran_out_are_restored_the_oldest_first(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    for n in range(4):
        send(redis_client, envelope(str(n)))
    fetch(store, count=3)
    age(redis_client, 13)
    fetch(store, count=1)
    send(redis_client, envelope("new"))
    assert restore(store) == Restored(3, 0, None, [])
    assert texts(redis_client) == ["0", "1", "2", "new"]
    assert redis_client.zcard("unacked_index") == redis_client.hlen("unacked") == 1
    assert all(lease.redelivered for lease, _ in fetch(store, count=3))


def test_leases_of_every_lane_are_restored_to_it(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    lists = [
        QueueList("jobs", list_of("jobs", step), rank, step)
        for rank, step in enumerate(PRIORITY_STEPS)
    ]
    for source in lists:
        send(redis_client, envelope(), queue=source.key)
    found = fetch(store, lists)
    assert [lease.priority for lease, _ in found] == list(PRIORITY_STEPS)
    age(redis_client, 13)
    assert restore(store) == Restored(len(lists), 0, None, [])
    assert [redis_client.llen(source.key) for source in lists] == [1] * len(lists)


def test_a_renewed_lease_is_not_restored(store: LeaseStore, redis_client: redis.Redis) -> None:
    send(redis_client, envelope())
    [(lease, _)] = fetch(store)
    age(redis_client, 13)
    [renewal] = store.renewals([lease.tag, "timed:0:gone:0000"])
    assert store.run(renewal) == [b"timed:0:gone:0000"]
    assert restore(store) == Restored(0, 0, None, [])
    assert redis_client.zcard("unacked_index") == 1


def test_a_lease_lasts_for_its_holders_timeout_whoever_asks(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    hasty = make_store(redis_client, lease_timeout=3.0, visibility_timeout=5.0)
    for body in ("renewed", "not"):
        send(redis_client, envelope(body))
    [(renewed, _)] = fetch(store, count=1)
    fetch(store, count=1, renewed=False)
    age(redis_client, 11)
    assert sweep(hasty) == [Restored(0, 0, None, [])]
    [renewal] = store.renewals([renewed.tag])
    store.run(renewal)
    age(redis_client, 11)
    assert sweep(hasty) == [Restored(0, 0, None, [])]
    age(redis_client, 2)
    assert sweep(hasty) == [Restored(1, 0, None, [])]
    assert texts(redis_client) == ["renewed"]
    age(redis_client, 3600)
    assert sweep(store) == [Restored(1, 0, None, [])]


@pytest.mark.parametrize(("kind", "seconds"), [("lease", 12), ("hold", 3600)])
def test_a_lease_of_an_earlier_version_lasts_from_its_last_renewal(
    store: LeaseStore, redis_client: redis.Redis, kind: str, seconds: int
) -> None:
    tag = f"{kind}:3:0b0e:0000"
    redis_client.hset("unacked", tag, f'[{envelope("old")},"","jobs"]')
    now, _ = redis_client.time()
    redis_client.zadd("unacked_index", {tag: now - seconds + 2})
    assert restore(store).leases == 0
    redis_client.zadd("unacked_index", {tag: now - seconds - 1})
    assert restore(store).leases == 1
    assert texts(redis_client, list_of("jobs", 3)) == ["old"]


def test_a_deferred_message_returns_at_its_time_next_in_line_and_unmarked(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    messages = [envelope(str(n)) for n in range(4)]
    key = list_of("jobs", 6)
    for message in messages:
        send(redis_client, message, queue=key)
    leased = fetch(store, [QueueList("jobs", key, 0, 6)], count=3)
    later = [Deferral(lease.tag, time.monotonic() + 60 + n) for n, (lease, _) in enumerate(leased)]
    store.send(LeaseUpdates(deferrals=later[::-1]))
    assert redis_client.hlen("unacked") == redis_client.zcard("unacked_index") == 3
    store.send(LeaseUpdates(acks=[one.tag for one in later], releases=[one.tag for one in later]))
    age(redis_client, 59)
    assert sweep(store) == [Restored(0, 0, None, [])]
    age(redis_client, 10)
    assert sweep(store) == [Restored(0, 3, None, [])]
    assert not redis_client.exists("unacked", "unacked_index")
    assert [message.decode() for message in redis_client.lrange(key, 0, -1)[::-1]] == messages


def test_a_time_that_passed_before_the_server_heard_of_it_counts(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    send(redis_client, envelope())
    [(lease, _)] = fetch(store)
    store.send(LeaseUpdates(deferrals=[Deferral(lease.tag, time.monotonic() - 5)]))
    assert restore(store) == Restored(0, 1, None, [])


def test_a_sweep_passes_over_any_number_of_entries_that_are_not_due(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    now, _ = redis_client.time()
    stock = {f"uuid-{n}": now - 30 - n // 3000 for n in range(2 * RESTORE_SCAN)}
    redis_client.zadd("unacked_index", stock)
    send(redis_client, envelope("due"))
    fetch(store)
    age(redis_client, 13)
    assert [step.leases for step in sweep(store)] == [0, 0, 1]


def test_what_nobody_renews_lasts_for_the_visibility_timeout(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    send(redis_client, envelope())
    [(lease, _)] = fetch(store, renewed=False)
    assert not lease.renewed
    age(redis_client, 3000)
    assert restore(store).leases == 0
    age(redis_client, 700)
    assert restore(store).leases == 1


def test_a_stock_workers_messages_are_named_when_their_own_time_is_over(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    redis_client.hset("unacked", "0b0e-uuid", json.dumps([json.loads(envelope()), "ex", "rk"]))
    seconds, _ = redis_client.time()
    redis_client.zadd("unacked_index", {"0b0e-uuid": seconds - 600})
    assert restore(store) == Restored(0, 0, None, [])
    redis_client.zadd("unacked_index", {"0b0e-uuid": seconds - 3700})
    assert restore(store) == Restored(0, 0, None, ["0b0e-uuid"])
    assert redis_client.hlen("unacked") == 1


def test_one_sweep_is_bounded_and_the_next_goes_on(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    send(redis_client, *[envelope(str(n)) for n in range(RESTORE_LIMIT + 20)])
    while fetch(store, count=100):
        pass
    age(redis_client, 13)
    assert [step.leases for step in sweep(store)] == [RESTORE_LIMIT, 20]
    assert redis_client.llen("jobs") == RESTORE_LIMIT + 20


def test_a_buried_message_can_be_read_and_run_again(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    message = envelope('say "hi"\n')
    send(redis_client, message)
    [(lease, _)] = fetch(store)
    store.send(LeaseUpdates(dead_letters=[DeadLetterUpdate(lease.tag, "poisoned", "dead")]))
    assert not redis_client.exists("unacked", "unacked_index", "jobs")
    entry = json.loads(redis_client.rpop("dead") or b"")
    assert {name: entry[name] for name in ("tag", "reason", "queue", "message")} == {
        "tag": lease.tag,
        "reason": "poisoned",
        "queue": "jobs",
        "message": message,
    }
    assert abs(float(entry["buried_at"]) - redis_client.time()[0]) < 5


def test_a_late_acknowledgement_does_not_touch_the_next_delivery(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    send(redis_client, envelope())
    [(old, _)] = fetch(store)
    age(redis_client, 13)
    restore(store)
    [(new, _)] = fetch(store)
    store.send(LeaseUpdates(acks=[old.tag], releases=[old.tag]))
    assert redis_client.hkeys("unacked") == [new.tag.encode()]
    assert redis_client.llen("jobs") == 0


def test_a_server_that_forgot_the_scripts_learns_them_again(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    send(redis_client, envelope())
    redis_client.script_flush()
    [(lease, _)] = fetch(store)
    redis_client.script_flush()
    store.send(LeaseUpdates(acks=[lease.tag]))
    assert not redis_client.exists("unacked", "jobs")


def test_a_key_of_another_type_loses_nothing(store: LeaseStore, redis_client: redis.Redis) -> None:
    send(redis_client, envelope())
    redis_client.set("unacked_index", "not ours")
    with pytest.raises(redis.ResponseError):
        fetch(store)
    assert redis_client.llen("jobs") == 1


def test_a_list_of_another_type_holds_nothing_else_up(
    store: LeaseStore, redis_client: redis.Redis
) -> None:
    for name in "abcdef":
        send(redis_client, envelope(name))
    done, back, dead, *_ = fetch(store, count=5)
    redis_client.rename("jobs", "kept")
    redis_client.set("jobs", "not a list")
    redis_client.set("dead", "not a list")
    [(given_back, _)] = store.commands(LeaseUpdates(releases=[back[0].tag]))
    assert store.run(given_back)[:9] == b"WRONGTYPE"
    store.send(LeaseUpdates(acks=[done[0].tag]))
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        store.send(LeaseUpdates(dead_letters=[DeadLetterUpdate(dead[0].tag, "poisoned", "dead")]))
    age(redis_client, 13)
    refused = restore(store)
    assert refused.leases == 0
    assert "WRONGTYPE" in str(refused.refusal)
    [(elsewhere, _)] = fetch(store, [*JOBS, QueueList("kept", "kept", 1, 0)])
    assert elsewhere.queue == "kept"
    age(redis_client, 55)
    redis_client.delete("jobs", "dead")
    # A refused message stays leased for a minute; `back` was the first of these.
    assert restore(store).leases == 2
    assert texts(redis_client) == ["b"]
    assert texts(redis_client, "kept") == ["f"]
    age(redis_client, 55)
    assert restore(store).leases == 3
    assert sorted(texts(redis_client)) == [*"bcde"]


@pytest.mark.parametrize("command", ["hset", "zadd", "set"])
def test_a_user_who_may_not_lease_takes_nothing(
    store: LeaseStore, redis_client: redis.Redis, redis_url: str, command: str
) -> None:
    for name in "abc":
        send(redis_client, envelope(name))
    before = redis_client.lrange("jobs", 0, -1)
    redis_client.acl_setuser(
        "limited", enabled=True, nopass=True, keys=["*"], commands=["+@all", f"-{command}"]
    )
    with (
        redis.Redis.from_url(redis_url, username="limited", password="any") as client,
        pytest.raises(redis.ResponseError, match="permission"),
    ):
        fetch(make_store(client), count=2)
    redis_client.acl_deluser("limited")
    assert redis_client.lrange("jobs", 0, -1) == before
    assert not redis_client.exists("unacked", "unacked_index")


@pytest.fixture
def full(valkey_server: Callable[..., ValkeyServer]) -> Iterator[redis.Redis]:
    """A client of a server that holds some messages and refuses to grow."""
    with valkey_server().client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        send(client, *[envelope(str(n)) for n in range(10)])
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("more", "bytes")
        yield client


def test_a_full_server_still_fetches_renews_defers_restores_buries_and_acknowledges(
    full: redis.Redis,
) -> None:
    store = make_store(full)
    tags = [lease.tag for lease, _ in fetch(store, count=4)]
    assert len(tags) == 4
    for renewal in store.renewals(tags):
        assert store.run(renewal) == []
    dead_letter = DeadLetterUpdate(tags[1], "poisoned", "dead")
    store.send(
        LeaseUpdates(
            acks=tags[:1], dead_letters=[dead_letter], requeues=[tags[2]], releases=[tags[3]]
        )
    )
    assert (full.hlen("unacked"), full.llen("jobs"), full.llen("dead")) == (0, 8, 1)
    [(later, _)] = fetch(store, count=1)
    store.send(LeaseUpdates(deferrals=[Deferral(later.tag, time.monotonic() + 60)]))
    assert full.hlen("unacked") == 1
    store.lease_timeout = -1.0
    assert len(fetch(store, count=2)) == 2
    assert restore(store).leases == 2
