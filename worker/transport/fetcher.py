"""When a channel fetches, what it tells the server, and how it waits for more."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from redis.exceptions import ReadOnlyError, ResponseError

from worker.transport.leases import Lease, Leases, Outbox
from worker.transport.store import Fetch, LeaseStore, Source
from worker.transport.wire import Wire

logger = logging.getLogger(__name__)

#: Seconds after which a server that has not answered counts as gone. Well under a lease, so that
#: the next connection is in time to renew.
PATIENCE = 5.0
#: Seconds for which the server holds back the answer while a list is empty.
WATCH_SECONDS = 5
#: Messages of stock workers restored in one sweep, each with a round trip of its own.
FOREIGN_LIMIT = 20


class Consumer(Protocol):
    """The channel, as its fetcher sees it."""

    #: Compared, never used: the owner of what is fetched.
    owner: object
    leases: Leases
    restore_interval: float

    @property
    def store(self) -> LeaseStore: ...

    @property
    def looped(self) -> bool:
        """Whether an event loop turns, which renews leases and hands out many messages at once."""

    def sources(self) -> Sequence[Source]: ...

    def room(self) -> tuple[int, int]:
        """Messages and bytes of text that may be fetched now."""

    def connect(self, patience: float) -> Wire:
        """A new connection whose socket is polled."""

    def hand_over(self, lease: Lease, message: bytes) -> None: ...

    def restore_foreign(self, tags: Sequence[str]) -> None:
        """Put messages of stock workers back by kombu's routing."""


class Fetcher:
    """One channel's conversation with the server; owned by the thread that polls its sockets.

    That is the event loop's, or whoever calls `drain_events`. One connection carries commands that
    are answered at once: fetch, endings, renewal, restoration. While the queues are empty, one
    more connection a list waits in `BLMOVE list list RIGHT RIGHT`, which takes nothing, so that
    any of these connections may die at any moment. A lost one is made anew before the next poll;
    where that fails the error reaches kombu's user, who reconnects.
    """

    def __init__(self, consumer: Consumer) -> None:
        self.ready: deque[tuple[Lease, bytes]] = deque()
        #: Messages handed over so far.
        self.delivered = 0
        self._consumer = consumer
        self._leases = consumer.leases
        self._wire: Wire | None = None
        self._watches: dict[str, Wire] = {}
        self._fetching = False
        self._drained = False
        self._telling = False
        self._fetch_pause = _Pause()
        self._tell_pause = _Pause()
        self._upkeep = _Upkeep(consumer)

    def turn(self) -> None:
        """Send what there is to send; called before each poll.

        Raises:
            redis.ConnectionError: the server cannot be reached.
        """
        sources = self._consumer.sources()
        if self._wire is None and not sources:
            return
        wire = self._connected()
        self._tell(wire)
        self._upkeep.run(wire)
        if self.ready and self._consumer.looped:
            self.deliver()
        count, room = self._consumer.room()
        if not sources or count <= 0 or self._fetching or self.ready or self._fetch_pause.on:
            return
        if self._drained:
            self._watch(sources)
        else:
            self._fetch(wire, sources, count, room)

    def deliver(self) -> None:
        """Hand over what is ready: all of it on an event loop, else one message.

        Where the receiver raises, the rest stays ready.
        """
        while self.ready:
            self.delivered += 1
            self._consumer.hand_over(*self.ready.popleft())
            if not self._consumer.looped:
                return

    def check(self) -> None:
        """Drop connections that are half-open; `turn` makes new ones."""
        for wire in (self._wire, *self._watches.values()):
            if wire is not None and wire.overdue():
                logger.warning("Redis has not answered for %.0f s: connecting anew", wire.patience)
                wire.drop()

    def unwatch(self, keys: Sequence[str]) -> None:
        """These lists are not consumed any more."""
        for key in keys:
            wire = self._watches.pop(key, None)
            if wire is not None:
                wire.drop()

    def close(self) -> None:
        """Give back what was not handed over, and close every connection."""
        wire, self._wire = self._wire, None
        if wire is not None:
            # An answer on its way may hold messages.
            wire.wait(timeout=1.0)
            wire.drop()
        self.unwatch(list(self._watches))
        self._leases.release([lease.tag for lease, _ in self.ready])
        self.ready.clear()

    def _connected(self) -> Wire:
        if self._wire is None or not self._wire.alive:
            self._wire = self._consumer.connect(PATIENCE)
            self._upkeep.connected(self._wire)
        return self._wire

    def _tell(self, wire: Wire) -> None:
        store = self._consumer.store
        if self._telling or self._tell_pause.on or not self._leases.pending(store):
            return
        outbox = self._leases.take(store)
        telling = _Telling(outbox)

        def done() -> None:
            if telling.open:
                return
            self._telling = False
            if telling.failed:
                self._leases.put_back(store, outbox)
            else:
                self._tell_pause.reset()

        def replied(reply: Any) -> None:
            telling.open -= 1
            if isinstance(reply, ResponseError):
                telling.failed = True
                self._refused(wire, reply, self._tell_pause)
            done()

        def lost() -> None:
            telling.open -= 1
            telling.failed = True
            done()

        self._telling = True
        commands = list(store.commands(outbox))
        telling.open = len(commands)
        for command in commands:
            wire.call(command, replied, lost)

    def _fetch(self, wire: Wire, sources: Sequence[Source], count: int, room: int) -> None:
        consumer = self._consumer
        fetch = consumer.store.fetch(
            sources, renewed=consumer.looped, count=count, tokens_bytes=room
        )
        self._fetching = True
        wire.call(
            fetch.command,
            lambda reply: self._fetched(wire, fetch, reply),
            lambda: self._fetch_lost(fetch),
        )

    def _fetched(self, wire: Wire, fetch: Fetch, reply: Any) -> None:
        self._fetching = False
        if isinstance(reply, ResponseError):
            self._refused(wire, reply, self._fetch_pause)
            return
        self._fetch_pause.reset()
        consumer = self._consumer
        self._drained, leased = consumer.store.read_fetch(fetch, reply, consumer.owner)
        self._leases.grant([lease for lease, _ in leased])
        self.ready.extend(leased)

    def _fetch_lost(self, fetch: Fetch) -> None:
        # The server may have leased messages to tags that we never saw: give them back.
        self._fetching = False
        self._leases.put_back(self._consumer.store, Outbox(returns=fetch.possible_tags()))

    def _watch(self, sources: Sequence[Source]) -> None:
        for source in sources:
            wire = self._watches.get(source.key)
            if wire is None or not wire.alive:
                wire = self._watches[source.key] = self._consumer.connect(PATIENCE)
            if not wire.busy:
                wire.send(
                    ("BLMOVE", source.key, source.key, "RIGHT", "RIGHT", WATCH_SECONDS),
                    self._woken(wire),
                    lambda: None,
                    wait=WATCH_SECONDS,
                )

    def _woken(self, wire: Wire) -> Callable[[Any], None]:
        def woken(reply: Any) -> None:
            if isinstance(reply, ResponseError):
                # A full server refuses BLMOVE but lets us fetch, so that is tried after a pause.
                self._refused(wire, reply, self._fetch_pause)
                self._drained = False
            elif reply is not None:
                self._drained = False

        return woken

    def _refused(self, wire: Wire, error: ResponseError, pause: _Pause) -> None:
        logger.warning("Redis refuses (%s): trying again in %.1f s", error, pause.longer())
        if isinstance(error, ReadOnlyError):
            # A failover: the name may lead to the new primary.
            wire.drop()


class _Telling:
    """One outbox on its way: `open` answers are still to come."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.open = 0
        self.failed = False


class _Pause:
    """Time to leave a server alone that refuses, twice as long each time."""

    FIRST = 0.1
    LONGEST = 5.0

    def __init__(self) -> None:
        self._seconds = 0.0
        self._until = 0.0

    @property
    def on(self) -> bool:
        return time.monotonic() < self._until

    def longer(self) -> float:
        self._seconds = min(max(2 * self._seconds, self.FIRST), self.LONGEST)
        self._until = time.monotonic() + self._seconds
        return self._seconds

    def reset(self) -> None:
        self._seconds = 0.0


class _Upkeep:
    """Renews this process's leases and restores those of dead ones, when it is time."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._leases = consumer.leases
        self._renew_at = 0.0
        self._restore_at = 0.0
        self._renewing = 0
        self._restoring = False

    def connected(self, wire: Wire) -> None:
        """A new connection: renew at once, but restore nothing before we know the server.

        After its restart everybody's leases look old; their holders get one lease's time to come
        back and renew.
        """
        self._renew_at = 0.0
        self._renewing = 0
        self._restoring = False
        self._restore_at = time.monotonic() + self._consumer.store.lease_timeout
        wire.send(("INFO", "server"), self._known, lambda: None, wait=0)

    def run(self, wire: Wire) -> None:
        now = time.monotonic()
        if self._consumer.looped and not self._renewing and now >= self._renew_at:
            self._renew(wire)
        if not self._restoring and now >= self._restore_at:
            self._restore(wire, offset=0)

    def _known(self, reply: Any) -> None:
        if isinstance(reply, bytes):
            store = self._consumer.store
            fields = dict(line.split(b":", 1) for line in reply.split() if b":" in line)
            self._restore_at = time.monotonic() + store.grace(
                fields.get(b"run_id", b""), float(fields.get(b"uptime_in_seconds", 0))
            )

    def _renew(self, wire: Wire) -> None:
        store = self._consumer.store
        self._renew_at = time.monotonic() + store.lease_timeout / 3
        commands = list(store.renewals(self._leases.live_tags(store)))
        self._renewing = len(commands)
        for command in commands:
            wire.call(command, self._renewed, self._renewal_lost)

    def _renewed(self, reply: Any) -> None:
        self._renewing -= 1
        if isinstance(reply, ResponseError):
            logger.warning("Redis refuses to renew leases: %s", reply)
            self._renew_at = time.monotonic() + 1.0
        elif reply:
            self._leases.lost([tag.decode() for tag in reply])

    def _renewal_lost(self) -> None:
        self._renewing = 0

    def _restore(self, wire: Wire, offset: int) -> None:
        self._restoring = True
        self._restore_at = time.monotonic() + self._consumer.restore_interval
        wire.call(
            self._consumer.store.restoration(offset),
            lambda reply: self._restored(wire, offset, reply),
            self._restoration_lost,
        )

    def _restored(self, wire: Wire, offset: int, reply: Any) -> None:
        self._restoring = False
        if isinstance(reply, ResponseError):
            logger.warning("Redis refuses to restore leases that ran out: %s", reply)
            return
        count, passed, more, foreign = reply
        if count:
            logger.warning("%d messages of workers that are gone go back to their queues", count)
            self._leases.restored(count)
        if foreign:
            self._consumer.restore_foreign([tag.decode() for tag in foreign[:FOREIGN_LIMIT]])
        elif more:
            self._restore(wire, offset + passed)

    def _restoration_lost(self) -> None:
        self._restoring = False
