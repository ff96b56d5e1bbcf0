"""The ledger of leases, without a server."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import redis

from worker.transport.lease_store import LeaseStore
from worker.transport.leases import DeadLetterUpdate, Lease, Leases, LeaseUpdates


class FakeStore(LeaseStore):
    """Records its calls, or refuses them."""

    def __init__(self) -> None:
        client: Any = None
        super().__init__("unacked", "unacked_index", "dead", "", "~", 12.0, 3600.0, client)
        self.told: list[LeaseUpdates] = []
        self.away = False

    def send(self, updates: LeaseUpdates) -> None:
        if self.away:
            raise redis.ConnectionError("away")
        self.told.append(updates)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def leases() -> Leases:
    return Leases()


def granted(leases: Leases, store: LeaseStore, *tags: str, owner: object = "channel") -> None:
    leases.add([Lease(tag, "jobs", False, store, owner) for tag in tags])


def test_an_ended_lease_is_told_once_however_often_it_is_ended(
    leases: Leases, store: FakeStore
) -> None:
    granted(leases, store, "a")
    leases.ack("a")
    leases.ack("a")
    leases.nack("a", requeue=True)
    leases.release(["a"])
    assert leases.take_updates(store) == LeaseUpdates(acks=["a"])
    assert leases.stats()["acked"] == 1


def test_a_tag_that_was_never_granted_is_nobodys_business(leases: Leases, store: FakeStore) -> None:
    leases.ack("unknown")
    assert not leases.has_updates(store)


def test_a_lease_settled_with_its_result_needs_no_acknowledgement(
    leases: Leases, store: FakeStore
) -> None:
    granted(leases, store, "a", "b")
    assert [leases.get(tag) is not None for tag in ("a", "gone", "b")] == [True, False, True]
    leases.remove_completed(["a", "gone", "b"])
    leases.ack("a")
    assert not leases.has_updates(store)
    assert leases.stats()["settled"] == 2


def test_each_way_to_end_a_lease_reaches_the_server(leases: Leases, store: FakeStore) -> None:
    granted(leases, store, *"abcdefg")
    leases.ack("a")
    leases.nack("b", requeue=False)
    leases.nack("c", requeue=True)
    leases.release(["d"])
    leases.dead_letter("e", "unreadable")
    leases.dead_letter("f", "poisoned", "my-dead")
    leases.defer("g", 60)
    told = leases.take_updates(store)
    [(tag, until)] = told.deferrals
    assert (tag, round(until - time.monotonic())) == ("g", 60)
    assert leases.stats()["deferred"] == 1
    assert told == LeaseUpdates(
        deferrals=told.deferrals,
        acks=["a", "b"],
        releases=["d"],
        requeues=["c"],
        dead_letters=[
            DeadLetterUpdate("e", "unreadable", "dead"),
            DeadLetterUpdate("f", "poisoned", "my-dead"),
        ],
    )


def test_a_closing_channel_gives_back_what_nobody_keeps(leases: Leases, store: FakeStore) -> None:
    granted(leases, store, "a", "b", "c", owner="closing")
    granted(leases, store, "d", owner="other")
    leases.detach("b")
    assert leases.count_owned("closing") == 2
    leases.release_owned("closing")
    assert leases.take_updates(store) == LeaseUpdates(releases=["a", "c"])
    assert leases.get("b") is not None
    assert leases.get("d") is not None
    assert leases.count_owned("closing") == 0


def test_a_lease_that_is_held_outlives_its_channel(leases: Leases, store: FakeStore) -> None:
    granted(leases, store, "held", "left")
    lease = leases.detach("held")
    assert lease is not None
    assert (lease.tag, leases.detach("held"), leases.detach("never granted")) == (
        "held",
        lease,
        None,
    )
    leases.release_owned("channel")
    leases.flush()
    assert [told.releases for told in store.told] == [["left"]]
    assert leases.get("held") is lease


def test_a_kept_lease_can_still_be_ended(leases: Leases, store: FakeStore) -> None:
    granted(leases, store, "a")
    leases.detach("a")
    leases.detach("a")
    leases.ack("a")
    assert leases.take_updates(store) == LeaseUpdates(acks=["a"])
    assert leases.stats()["live"] == 0


def test_what_the_server_did_not_hear_is_told_again(leases: Leases, store: FakeStore) -> None:
    granted(leases, store, "a", "b")
    leases.ack("a")
    store.away = True
    with pytest.raises(redis.ConnectionError):
        leases.flush()
    leases.ack("b")
    store.away = False
    leases.flush()
    leases.flush()
    assert store.told == [LeaseUpdates(acks=["b", "a"])] or store.told == [
        LeaseUpdates(acks=["a", "b"])
    ]


def test_the_loop_is_woken_once_for_many_endings(leases: Leases, store: FakeStore) -> None:
    woken: list[bool] = []
    leases.wake = lambda: woken.append(True)
    granted(leases, store, "a", "b", "c")
    leases.ack("a")
    leases.ack("b")
    assert len(woken) == 1
    leases.take_updates(store)
    leases.ack("c")
    assert len(woken) == 2


def test_a_lost_lease_cannot_be_acknowledged(leases: Leases, store: FakeStore) -> None:
    granted(leases, store, "a")
    leases.remove_lost(["a", "unknown"])
    leases.ack("a")
    assert not leases.has_updates(store)
    assert leases.stats()["lost"] == 1


def test_threads_end_leases_at_once_and_none_is_missed(leases: Leases, store: FakeStore) -> None:
    tags = [f"{thread}-{n}" for thread in range(8) for n in range(200)]
    granted(leases, store, *tags)
    told: list[str] = []
    start = threading.Barrier(9)

    def end(thread: int) -> None:
        start.wait()
        for n in range(200):
            leases.ack(f"{thread}-{n}")

    threads = [threading.Thread(target=end, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    while any(thread.is_alive() for thread in threads):
        told += leases.take_updates(store).acks
    told += leases.take_updates(store).acks
    assert sorted(told) == sorted(tags)
    assert leases.count_owned("channel") == 0
