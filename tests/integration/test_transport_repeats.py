"""Repeated calls of the transport's scripts after a lost reply; and the scripts' cost."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest
import redis

from tests.integration.test_transport_scripts import envelope, make_store
from worker import transport
from worker.contract.lanes import list_of
from worker.transport import scripts
from worker.transport.command import Command, Script
from worker.transport.lease_store import FIRST, LeaseStore, QueueList, Restored
from worker.transport.leases import DeadLetterUpdate, Deferral, LeaseUpdates

SCRIPTS = [name for name, value in vars(scripts).items() if isinstance(value, Script)]
STEPS = (0, 3, 9)
LISTS = [
    QueueList(queue, list_of(queue, step), rank * 2 + place, step)
    for rank, step in enumerate(STEPS)
    for place, queue in enumerate(("jobs", "other"))
]
#: Seconds that a test's clock may advance; all times of its states are multiples of ten.
TICK = 10
ROUNDS = 100

Chance = random.Random
Make = Callable[[Chance, LeaseStore, Sequence[str]], Command]


def told(store: LeaseStore, **updates: Any) -> Command:
    [(command, _)] = store.commands(LeaseUpdates(**updates))
    return command


def some(chance: Chance, tags: Sequence[str]) -> list[str]:
    return chance.sample(list(tags), chance.randint(1, min(len(tags), 5)))


def fetch(chance: Chance, store: LeaseStore, tags: Sequence[str]) -> Command:
    lists = chance.sample(LISTS, chance.randint(1, len(LISTS)))
    lists.sort(key=lambda source: source.level // chance.choice([1, 2]))
    bounds = {"count": chance.randint(1, 12), "tokens_bytes": chance.choice([1, 40, 1 << 20])}
    return store.fetch(lists, renewed=chance.random() < 0.5, **bounds).command


def defer(chance: Chance, store: LeaseStore, tags: Sequence[str]) -> Command:
    until = time.monotonic() + TICK * chance.randint(1, 9)
    return told(store, deferrals=[Deferral(tag, until) for tag in some(chance, tags)])


def bind(script: Script, *args: str) -> Make:
    def make(chance: Chance, store: LeaseStore, tags: Sequence[str]) -> Command:
        return Command(script, ("bindings", "others"), (f"jobs{chance.randint(1, 3)}", *args))

    return make


#: A random call of each script.
CALLS: dict[str, Make] = {
    "FETCH": fetch,
    "ACK": lambda chance, store, tags: told(store, acks=some(chance, tags)),
    "NACK": lambda chance, store, tags: told(
        store, **{chance.choice(["releases", "requeues"]): some(chance, tags)}
    ),
    "DEFER": defer,
    "DEAD_LETTER": lambda chance, store, tags: told(
        store, dead_letters=[DeadLetterUpdate(chance.choice(tags), "unreadable", "dead")]
    ),
    "RENEW": lambda chance, store, tags: next(iter(store.renewals(some(chance, tags)))),
    "RESTORE": lambda _chance, store, _tags: store.restoration(),
    "RESTORE_STOCK": lambda chance, store, tags: Command(
        scripts.RESTORE_STOCK,
        (store.unacked_key, store.index_key, *chance.sample(["jobs", "other"], 2)),
        (chance.choice(tags), envelope("routed")),
    ),
    "BIND": bind(scripts.BIND),
    "REBIND": bind(scripts.REBIND, "exchange", str(TICK * 1000)),
}


@pytest.fixture
def stores(redis_url: str) -> Iterator[list[LeaseStore]]:
    """Three databases of one server."""
    clients = [redis.Redis.from_url(redis_url.replace("/0", f"/{number}")) for number in range(3)]
    yield [make_store(client, lease_timeout=10.0, dead_letter_key="dead") for client in clients]
    for client in clients:
        client.close()


def fill(chance: Chance, client: redis.Redis, begun: float) -> list[str]:
    """Make queues, leases of every kind, and some with a part missing; return tags of leases."""
    tags = ["timed:0:gone:0000"]
    with client.pipeline() as pipe:
        for source in LISTS:
            for number in range(chance.randint(0, 4)):
                pipe.lpush(source.key, envelope(f"queued {number}"))
        for number in range(chance.randint(1, 12)):
            kind = chance.choice(["timed", "parked", "lease", "hold", "stock"])
            tag = f"uuid-{number}" if kind == "stock" else f"{kind}:3:early:{number:04d}"
            if kind == "timed":
                tags.append(tag)
            if chance.random() < 0.9:
                pipe.hset("unacked", tag, f'[{envelope(f"leased {number}")},"","jobs"]')
            if chance.random() < 0.9:
                pipe.zadd("unacked_index", {tag: begun + TICK * chance.randint(-400, 400)})
        pipe.execute()
    return tags


def contents(client: redis.Redis, begun: float) -> dict[str, Any]:
    """Every key and value, times as ticks since the test began."""
    found: dict[str, Any] = {}
    for key in sorted(cast("list[bytes]", client.keys())):
        name, kind = key.decode(), client.type(key)
        if kind == b"list":
            found[name] = [
                re.sub(rb'"buried_at":"[^"]*"', b"", item) for item in client.lrange(name, 0, -1)
            ]
        elif kind == b"hash":
            found[name] = client.hgetall(name)
        elif kind == b"set":
            found[name] = client.smembers(name)
        elif kind == b"zset":
            unit = 1000 if name == "others" else 1
            found[name] = {
                member: round((score / unit - begun) / TICK)
                for member, score in client.zrange(name, 0, -1, withscores=True)
            }
        else:
            found[name] = client.get(name)
            assert 0 < client.ttl(name) <= 60
    return found


def test_every_script_is_called_again() -> None:
    assert set(SCRIPTS) == set(CALLS)


def test_the_docstring_names_every_command_that_a_user_must_be_allowed() -> None:
    used = {
        command
        for name in SCRIPTS
        for command in re.findall(r"(?:call|refused)\('([A-Z]+)'", getattr(scripts, name).text)
    }
    assert used <= set(re.findall(r"[A-Z]{3,}", str(transport.__doc__)))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_call_that_is_repeated_at_once_changes_nothing_more(
    stores: list[LeaseStore], name: str
) -> None:
    for seed in range(ROUNDS):
        once, twice, begun, tags = prepared(stores, seed)
        command = CALLS[name](random.Random(seed), once, tags)
        first, answers = once.run(command), [twice.run(command) for _ in range(2)]
        assert answers[0] == first, seed
        if name == "RESTORE":
            left = Restored.read(first)._replace(leases=0, deferred=0)
            assert Restored.read(answers[1]) == left, seed
        else:
            assert answers[1] == first, seed
        assert contents(once.client, begun) == contents(twice.client, begun), seed


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_call_that_is_repeated_after_others_changes_nothing_more(
    stores: list[LeaseStore], name: str
) -> None:
    for seed in range(ROUNDS):
        once, twice, begun, tags = prepared(stores, seed)
        chance = random.Random(seed)
        command = CALLS[name](chance, once, tags)
        if name == "FETCH":
            tags += [f"timed:{step}:{command.args[0]}:{n:04d}" for step in STEPS for n in range(4)]
        others = [
            CALLS[chance.choice([one for one in SCRIPTS if "BIND" not in one])](chance, once, tags)
            for _ in range(chance.randint(1, 8))
        ]
        for store in (once, twice):
            for one in (command, *others):
                store.run(one)
        again = twice.run(command)
        if name == "RENEW":
            # The deadline counts from the repeat, in both databases.
            once.run(command)
        if name == "FETCH":
            texts = [message for message in again[1][1::2] if message is not None]
            held = twice.client.hvals("unacked")
            assert all(any(text in value for value in held) for text in texts), seed
        assert contents(once.client, begun) == contents(twice.client, begun), seed


def prepared(
    stores: list[LeaseStore], seed: int
) -> tuple[LeaseStore, LeaseStore, float, list[str]]:
    """Two databases in the same random state, its time, and its tags."""
    stores[0].client.flushall()
    begun = float(cast("tuple[int, int]", stores[0].client.time())[0])
    for store in stores[:2]:
        tags = fill(random.Random(seed), store.client, begun)
    return stores[0], stores[1], begun, tags


def test_messages_taken_one_by_one_are_not_lost_with_a_reply(
    stores: list[LeaseStore],
) -> None:
    store = stores[0]
    for number in range(4):
        store.client.lpush("jobs", envelope(str(number)))
    request = store.fetch(LISTS, renewed=False, count=2, tokens_bytes=1 << 20)
    store.run(request.command)
    drained, rows = store.read_fetch(request, store.run(request.command), "owner")
    assert [json.loads(message)["body"] for _, message in rows] == ["0", "1"]
    assert not drained
    store.send(LeaseUpdates(acks=[rows[0][0].tag]))
    _, rest = store.read_fetch(request, store.run(request.command), "owner")
    assert [lease.tag for lease, _ in rest] == [rows[1][0].tag]
    assert (store.client.llen("jobs"), store.client.hlen("unacked")) == (2, 1)


# -- cost ---------------------------------------------------------------------------------------

#: Commands of one call with five tags, or of one that fetches or restores five messages.
MOST = {
    "FETCH": 7 + 5 + len(LISTS),
    "ACK": 2,
    "NACK": 5 * 5,
    "DEFER": 1 + 6 * 5,
    "DEAD_LETTER": 6,
    "RENEW": 4,
    "RESTORE": 2 + 6 * 5,
    "RESTORE_STOCK": 4 + 2,
    "BIND": 3,
    "REBIND": 4,
}


def crowd(client: redis.Redis, size: int) -> list[str]:
    """Five leases that are due, and so many queued and leased messages that are not."""
    client.flushall()
    now = cast("tuple[int, int]", client.time())[0]
    message = envelope("x")
    due = [f"timed:0:due:{number:04d}" for number in range(5)]
    tags = [f"timed:3:{number}:0000" for number in range(size)]
    with client.pipeline(transaction=False) as pipe:
        pipe.hset("unacked", mapping=dict.fromkeys([*due, *tags], f'[{message},"","jobs"]'))
        pipe.zadd("unacked_index", dict.fromkeys(tags, now + 1000) | dict.fromkeys(due, now - 10))
        pipe.zadd("unacked_index", {f"stock-{number}": now - 9 for number in range(size)})
        for source in LISTS:
            pipe.lpush(source.key, *[message] * size)
        for table in ("bindings", "others"):
            pipe.sadd(f"{table}-of-sets", *map(str, range(size)))
        pipe.execute()
    return due


def commands_of(store: LeaseStore, command: Command) -> Counter[str]:
    """The commands that the server runs inside of one call."""
    store.run(command)
    stats = cast("dict[str, Any]", store.client.info("commandstats"))
    ran = {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in stats.items()}
    outer = ("evalsha", "info", "config|resetstat")
    return Counter({name: calls for name, calls in ran.items() if name not in outer})


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_cost_of_a_call_does_not_grow_with_what_is_queued_or_leased(
    stores: list[LeaseStore], name: str
) -> None:
    store = stores[0]
    ran = []
    for size in (10, 10_000):
        due = crowd(store.client, size)
        command = {
            "FETCH": store.fetch(LISTS, renewed=True, count=5, tokens_bytes=1 << 20).command,
            "ACK": told(store, acks=due),
            "NACK": told(store, releases=due),
            "DEFER": told(store, deferrals=[Deferral(tag, time.monotonic() + 60) for tag in due]),
            "RENEW": next(iter(store.renewals(due))),
            "RESTORE": store.restoration(FIRST),
        }.get(name) or CALLS[name](random.Random(1), store, due)
        store.client.script_load(command.script.text)
        store.client.config_resetstat()
        ran.append(commands_of(store, command))
    assert ran[0] == ran[1]
    assert sum(ran[1].values()) <= MOST[name], ran[1]


def test_a_step_of_a_sweep_is_bounded_however_much_is_due(stores: list[LeaseStore]) -> None:
    store = stores[0]
    now = cast("tuple[int, int]", store.client.time())[0]
    tags = [f"timed:3:{number}:0000" for number in range(10_000)]
    store.client.hset("unacked", mapping=dict.fromkeys(tags, f'[{envelope("x")},"","jobs"]'))
    store.client.zadd("unacked_index", dict.fromkeys(tags, now - 1))
    store.client.script_load(scripts.RESTORE.text)
    store.client.config_resetstat()
    ran = commands_of(store, store.restoration())
    assert sum(ran.values()) == 2 + 6 * 500
