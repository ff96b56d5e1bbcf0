"""The leases of this process, independent of channels and connections."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from worker.transport.scripts import PARKED

if TYPE_CHECKING:
    from worker.transport.lease_store import LeaseStore


@dataclass(slots=True, eq=False)
class Lease:
    """The right to run one delivery of one message, until it ends or expires.

    Never changed; a frozen class would take twice as long to create.
    """

    #: Names this delivery, never another one of the same message.
    tag: str
    queue: str
    #: Whether the message was delivered before without an outcome: its worker died or lost its
    #: lease, or it was rejected. A message released by `release` is not marked.
    redelivered: bool
    store: LeaseStore
    #: Identifies the channel that fetched it; compared, never used.
    owner: object
    #: kombu's priority step of the list that it came from.
    priority: int = 0
    #: Whether an event loop renews it.
    renewed: bool = True

    @property
    def unacked_key(self) -> str:
        """Full name of the hash that holds the message under `tag`."""
        return self.store.unacked_key

    @property
    def index_key(self) -> str:
        """Full name of the sorted set that holds `tag` by its deadline, server clock in seconds."""
        return self.store.index_key


class Deferral(NamedTuple):
    """A leased message that returns to its queue later; no worker holds it meanwhile."""

    tag: str
    #: Monotonic time.
    until: float


class DeadLetterUpdate(NamedTuple):
    """A leased message that goes to a dead-letter list."""

    tag: str
    reason: str
    #: Full name of the list.
    key: str


@dataclass(slots=True)
class LeaseUpdates:
    """Ends of leases that the server has not received. Each part may be sent twice."""

    acks: list[str] = field(default_factory=list)
    #: To return to their queues as if never fetched.
    releases: list[str] = field(default_factory=list)
    #: To return to their queues marked as redelivered.
    requeues: list[str] = field(default_factory=list)
    deferrals: list[Deferral] = field(default_factory=list)
    dead_letters: list[DeadLetterUpdate] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(getattr(self, part.name) for part in fields(self))

    def extend(self, other: LeaseUpdates) -> None:
        for part in fields(self):
            getattr(self, part.name).extend(getattr(other, part.name))


#: Events in the life of leases; `restored` also counts those of other processes.
EVENTS = (
    *("fetched", "acked", "settled", "released", "requeued", "deferred", "buried", "lost"),
    "restored",
)


class Leases:
    """The leases of this process and the ends that the server has not received.

    Every method may be called from any thread: one lock guards all state and is never held across
    I/O. Ends are collected and sent together by the event loop, once a tick; a failed send is
    repeated, on the next connection if necessary. Without an event loop `flush` sends them. To end
    a tag that has ended or expired has no effect, so a late `message.ack()` cannot affect a newer
    delivery.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[str, Lease] = {}
        self._kept: set[str] = set()
        self._by_owner: Counter[object] = Counter()
        self._updates: dict[LeaseStore, LeaseUpdates] = {}
        self._counts: Counter[str] = Counter()
        #: Called, on any thread, when the first update of a server is noted; the
        #: transport sets it to wake its event loop.
        self.wake: Callable[[], None] | None = None
        #: Called, in the purging thread, with ids of tasks before a purge removes their messages;
        #: set by the application. If it raises, the messages return to their queue.
        self.before_purge: Callable[[Sequence[str]], None] | None = None

    # Used by the pool.

    def get(self, tag: str) -> Lease | None:
        """The live lease of this name."""
        return self._live.get(tag)

    def detach(self, tag: str) -> Lease | None:
        """Keep a lease when its channel closes: the caller ends it. None if it is not live.

        Other leases are released then, as with kombu's own transport.
        """
        with self._lock:
            lease = self._live.get(tag)
            if lease is not None and tag not in self._kept:
                self._kept.add(tag)
                self._disown(lease)
            return lease

    def ack(self, tag: str) -> None:
        """The message has its outcome: remove it."""
        self._end([tag], "acked", lambda updates, lease: updates.acks.append(lease.tag))

    def nack(self, tag: str, *, requeue: bool) -> None:
        """Remove the message, or requeue it, next in line and marked as redelivered."""
        if requeue:
            self._end([tag], "requeued", lambda updates, lease: updates.requeues.append(lease.tag))
        else:
            self.ack(tag)

    def release(self, tags: Sequence[str]) -> None:
        """Return messages to their queues: next in line, in this order, not marked."""
        self._end(tags, "released", lambda updates, lease: updates.releases.append(lease.tag))

    def defer(self, tag: str, seconds: float) -> None:
        """Return the message to its queue after `seconds`: next in line, not marked.

        Meanwhile it belongs to no worker and survives every process.
        """
        until = time.monotonic() + seconds
        self._end(
            [tag],
            "deferred",
            lambda updates, lease: updates.deferrals.append(Deferral(lease.tag, until)),
        )

    def release_deferred(self, deferred: Iterable[Lease]) -> None:
        """Return deferred messages to their queues now: next in line, in the order given.

        Messages that have returned by themselves do not move.
        """
        stores: dict[LeaseStore, list[str]] = {}
        for lease in deferred:
            _, _, rest = lease.tag.partition(":")
            stores.setdefault(lease.store, []).append(f"{PARKED}:{rest}")
        for store, tags in stores.items():
            self.add_updates(store, LeaseUpdates(releases=tags))
        if stores and self.wake is not None:
            self.wake()

    def dead_letter(self, tag: str, reason: str, key: str | None = None) -> None:
        """Move the raw message to a dead-letter list.

        `key` is the list's full name; None stands for the transport option `dead_letter_key`.
        The entry is JSON: `{"tag", "reason", "queue", "buried_at", "message"}`, the message as the
        text that lay in the queue, so that `RPUSH queue message` runs it again.
        """
        self._end(
            [tag],
            "buried",
            lambda updates, lease: updates.dead_letters.append(
                DeadLetterUpdate(lease.tag, reason, key or lease.store.dead_letter_key)
            ),
        )

    def remove_completed(self, tags: Iterable[str]) -> None:
        """Remove leases that a script of the caller has ended on the server."""
        with self._lock:
            for tag in tags:
                if self._drop(tag) is not None:
                    self._counts["settled"] += 1

    def flush(self) -> None:
        """Send the ends of leases now, in this thread, over connections of their own.

        For the end of a process and for programs without an event loop.

        Raises:
            redis.RedisError: they were not sent; they are kept for the next time.
        """
        with self._lock:
            stores = list(self._updates)
        for store in stores:
            updates = self.take_updates(store)
            try:
                store.send(updates)
            except BaseException:
                self.add_updates(store, updates)
                raise

    def renew(self) -> None:
        """Renew every lease now, in this thread; otherwise the event loop does it.

        For the end of a process, when no loop runs but work continues.

        Raises:
            redis.RedisError: the leases were not renewed.
        """
        with self._lock:
            stores = {lease.store for lease in self._live.values()}
        for store in stores:
            for command in store.renewals(self.renewable(store)):
                self.remove_lost(tag.decode() for tag in store.run(command))

    def stats(self) -> dict[str, int]:
        """Return the number of live leases, and of each event since the process began."""
        with self._lock:
            return {"live": len(self._live)} | {name: self._counts[name] for name in EVENTS}

    # Used by the transport.

    def add(self, granted: Sequence[Lease]) -> None:
        """Add leases that were fetched just now."""
        with self._lock:
            self._live.update((lease.tag, lease) for lease in granted)
            self._by_owner.update(lease.owner for lease in granted)
            self._counts["fetched"] += len(granted)

    def count_owned(self, owner: object) -> int:
        """Count the leases that a channel fetched and that are neither ended nor detached."""
        with self._lock:
            return self._by_owner[owner]

    def renewable(self, store: LeaseStore) -> list[str]:
        """Tags of the leases that the event loop renews."""
        with self._lock:
            return [
                tag for tag, lease in self._live.items() if lease.store is store and lease.renewed
            ]

    def release_owned(self, owner: object) -> None:
        """Release the leases of a channel that closes, without the detached ones."""
        with self._lock:
            tags = [
                tag
                for tag, lease in self._live.items()
                if lease.owner is owner and tag not in self._kept
            ]
        self.release(tags)

    def remove_lost(self, tags: Iterable[str]) -> None:
        """Remove leases that have expired or were purged."""
        with self._lock:
            for tag in tags:
                if self._drop(tag) is not None:
                    self._counts["lost"] += 1

    def count_restored(self, count: int) -> None:
        """Count leases of dead processes that returned to their queues."""
        with self._lock:
            self._counts["restored"] += count

    def has_updates(self, store: LeaseStore) -> bool:
        return store in self._updates

    def take_updates(self, store: LeaseStore) -> LeaseUpdates:
        """Take the updates that were not sent; `add_updates` returns those that fail."""
        with self._lock:
            return self._updates.pop(store, None) or LeaseUpdates()

    def add_updates(self, store: LeaseStore, updates: LeaseUpdates) -> None:
        if updates:
            with self._lock:
                self._updates.setdefault(store, LeaseUpdates()).extend(updates)

    def _end(
        self, tags: Sequence[str], outcome: str, note: Callable[[LeaseUpdates, Lease], None]
    ) -> None:
        was_empty = False
        with self._lock:
            for tag in tags:
                lease = self._drop(tag)
                if lease is None:
                    continue
                self._counts[outcome] += 1
                updates = self._updates.get(lease.store)
                if updates is None:
                    was_empty = True
                    updates = self._updates[lease.store] = LeaseUpdates()
                note(updates, lease)
        if was_empty and self.wake is not None:
            self.wake()

    def _drop(self, tag: str) -> Lease | None:
        lease = self._live.pop(tag, None)
        if lease is not None:
            if tag in self._kept:
                self._kept.discard(tag)
            else:
                self._disown(lease)
        return lease

    def _disown(self, lease: Lease) -> None:
        self._by_owner[lease.owner] -= 1
        if not self._by_owner[lease.owner]:
            del self._by_owner[lease.owner]


#: The leases of this process.
leases = Leases()


def lease_of(message: Any) -> Lease | None:
    """The live lease of a kombu message; None if it came by a transport of kombu's own."""
    return leases.get(message.delivery_tag)
