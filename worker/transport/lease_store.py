"""The leased set of one broker database: its keys, and the calls of its server."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

import redis

from worker.contract.lanes import Lane
from worker.transport import scripts
from worker.transport.command import Command
from worker.transport.leases import Lease, LeaseUpdates

#: Tags in one call of a script: bounds how long the server is busy, and Lua's argument stack.
TAGS_A_CALL = 500
#: Limits of one sweep for expired leases: messages, their bytes, and index entries read.
RESTORE_LIMIT = 500
RESTORE_BYTES = 8 * 1024 * 1024
RESTORE_SCAN = 2000
#: Bytes of a message that are envelope, not text.
MESSAGE_OVERHEAD = 600
#: Least bytes that a message counts for.
MESSAGE_MINIMUM = 32


Item = TypeVar("Item")


class Cursor(NamedTuple):
    """The position of a sweep in the index of leases."""

    score: str
    #: Entries of that score to pass over.
    number: int


FIRST = Cursor("-inf", 0)


class Restored(NamedTuple):
    """The answer of RESTORE."""

    #: Messages of expired leases, and deferred messages that are due.
    leases: int
    deferred: int
    #: The start of the next step; None at the end of the sweep.
    cursor: Cursor | None
    #: Tags of messages of stock workers.
    foreign: Sequence[str]
    #: The error of a list that refused its message.
    refusal: str | None = None

    @classmethod
    def read(cls, answer: Sequence[Any]) -> Restored:
        leases, deferred, more, foreign, score, number, *refusal = answer
        cursor = Cursor(score.decode(), number) if more else None
        tags = [tag.decode() for tag in foreign]
        return cls(leases, deferred, cursor, tags, *(error.decode() for error in refusal))


class QueueList(NamedTuple):
    """A list that messages are taken from."""

    queue: str
    #: Full name of the list.
    key: str
    #: Sources of one level are served in turn, lower levels first.
    level: int
    #: kombu's priority step; 0 for the list that has just the queue's name.
    priority: int


class Demand(NamedTuple):
    """Bounds of one fetch: messages of some lists, and bytes of their texts."""

    #: The lane of all lists; None if they share the bounds of one.
    lane: Lane | None
    lists: Sequence[QueueList]
    messages: int
    tokens_bytes: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """One request for messages, and how to read its answer."""

    command: Command
    #: Whether the leases will be renewed.
    renewed: bool
    #: Unique, so that no tag is ever used twice.
    name: str
    lists: Sequence[QueueList]
    count: int

    def tag(self, source: QueueList, number: int) -> str:
        return f"{scripts.LEASE}:{source.priority}:{self.name}:{number:04d}"

    def possible_tags(self) -> list[str]:
        """Every tag that the server may have handed out for this request."""
        by_priority = {source.priority: source for source in self.lists}
        return [self.tag(one, n) for n in range(self.count) for one in by_priority.values()]


@dataclass(eq=False)
class LeaseStore:
    """Keys, timeouts and a client; one object for all channels to one database.

    The client is thread-safe, connects on first use and outlives every channel. All else is set
    once, except the server's run id, which the event loop's thread writes.
    """

    #: Seconds in which workers connect again to a server that restarted, and renew their leases.
    RECONNECTION: ClassVar[float] = 10.0

    unacked_key: str
    index_key: str
    dead_letter_key: str
    #: kombu's `global_keyprefix`, already part of the keys above.
    key_prefix: str
    separator: str
    #: Seconds from a renewal to the deadline.
    lease_timeout: float
    #: Seconds from the fetch to the deadline, for leases that are not renewed.
    visibility_timeout: float
    #: Set by each channel that begins to consume, so that it follows a change of servers.
    client: redis.Redis = field(repr=False)
    #: Names the server; compared, never used.
    broker: object = None
    _server: bytes = b""

    def fetch(
        self, lists: Sequence[QueueList], *, renewed: bool, count: int, tokens_bytes: int
    ) -> Fetch:
        """Up to `count` messages, or until their texts reach `tokens_bytes`."""
        name = uuid.uuid4().hex
        seconds = self.lease_timeout if renewed else self.visibility_timeout
        args: list[str | int | float] = [
            *(name, seconds, count, tokens_bytes, MESSAGE_OVERHEAD, MESSAGE_MINIMUM)
        ]
        for source in lists:
            args += source.level, source.priority, f',"",{json.dumps(source.queue)}]'
        memory = f"{self.unacked_key}:fetched:{name}"
        keys = (self.unacked_key, self.index_key, memory, *(source.key for source in lists))
        command = Command(scripts.FETCH, keys, tuple(args))
        return Fetch(command, renewed, name, lists, count)

    def read_fetch(
        self, fetch: Fetch, answer: Sequence[Any], owner: object
    ) -> tuple[bool, list[tuple[Lease, bytes]]]:
        """Whether every list was seen empty, and the messages with their leases."""
        drained, rows = answer
        leased = []
        for number, (at, message) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
            if message is None:  # Answered to a repeat, after the lease ended.
                continue
            source = fetch.lists[at - 1]
            # The only `true` that kombu and our scripts write; the message itself is read later.
            redelivered = b'"redelivered": true' in message
            tag = fetch.tag(source, number)
            queue, priority = source.queue, source.priority
            lease = Lease(tag, queue, redelivered, self, owner, priority, fetch.renewed)
            leased.append((lease, message))
        return bool(drained), leased

    def commands(self, updates: LeaseUpdates) -> Iterator[tuple[Command, LeaseUpdates]]:
        """Commands that send everything in `updates`, each with its part of it."""
        keys = (self.unacked_key, self.index_key)
        for dead_letter in updates.dead_letters:
            command = Command(
                scripts.DEAD_LETTER, (*keys, dead_letter.key), (dead_letter.tag, dead_letter.reason)
            )
            yield command, LeaseUpdates(dead_letters=[dead_letter])
        for some in _split(updates.deferrals):
            pairs = [arg for one in some for arg in (one.tag, max(one.until - time.monotonic(), 0))]
            yield Command(scripts.DEFER, keys, tuple(pairs)), LeaseUpdates(deferrals=some)
        for tags in _split(updates.acks):
            yield Command(scripts.ACK, keys, tuple(tags)), LeaseUpdates(acks=tags)
        # The last message put back is next in line, so the first tag comes last.
        for tags in _split(updates.requeues[::-1]):
            args = ("1", self.key_prefix, self.separator, *tags)
            yield Command(scripts.NACK, keys, args), LeaseUpdates(requeues=tags[::-1])
        for tags in _split(updates.releases[::-1]):
            args = ("0", self.key_prefix, self.separator, *tags)
            yield Command(scripts.NACK, keys, args), LeaseUpdates(releases=tags[::-1])

    def renewals(self, tags: Sequence[str]) -> Iterator[Command]:
        """Move the deadlines of leases to one timeout from now."""
        for some in _split(tags):
            yield Command(scripts.RENEW, (self.index_key,), (self.lease_timeout, *some))

    def restoration(self, cursor: Cursor = FIRST) -> Command:
        """One step of a sweep for messages past their deadline."""
        args = (
            *(self.key_prefix, self.separator, self.lease_timeout, self.visibility_timeout),
            *(*cursor, RESTORE_SCAN, RESTORE_LIMIT, RESTORE_BYTES),
        )
        return Command(scripts.RESTORE, (self.unacked_key, self.index_key), args)

    def grace(self, server: bytes, uptime: float) -> float:
        """Seconds before leases may be restored on this server, named by its run id.

        On a server that has just started, or that replaced another, they look expired because they
        could not be renewed.
        """
        known, self._server = self._server, server
        if known and known != server:
            return self.RECONNECTION
        return 0.0 if known else max(self.RECONNECTION - uptime, 0.0)

    def send(self, updates: LeaseUpdates) -> None:
        """Send everything in `updates` and wait until the server has it."""
        for command, _ in self.commands(updates):
            self.run(command)

    def run(self, command: Command) -> Any:
        """Call a script and wait for its answer."""
        script, arguments = command.script, (*command.keys, *command.args)
        try:
            return self.client.evalsha(script.sha, len(command.keys), *arguments)
        except redis.exceptions.NoScriptError:
            return self.client.eval(script.text, len(command.keys), *arguments)


_stores: dict[tuple[object, ...], LeaseStore] = {}
_stores_lock = threading.Lock()


def open_store(*, broker: object, client: redis.Redis, **fields: Any) -> LeaseStore:
    """The store of a broker, one for the life of the process, with the current client.

    `fields` are those of `LeaseStore`; a broker used in two ways has two stores.
    """
    key = (broker, *fields.values())
    with _stores_lock:
        store = _stores.get(key)
        if store is None:
            store = _stores[key] = LeaseStore(broker=broker, client=client, **fields)
        else:
            former, store.client = store.client, client
            former.connection_pool.disconnect(inuse_connections=False)
    return store


def _split(items: Sequence[Item]) -> Iterator[list[Item]]:
    for start in range(0, len(items), TAGS_A_CALL):
        yield list(items[start : start + TAGS_A_CALL])
