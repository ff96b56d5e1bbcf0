"""The calls of one channel to the server: fetch, send the ends of leases, wait for messages."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from redis.exceptions import ReadOnlyError, ResponseError

from worker.contract.lanes import Lane
from worker.transport.backpressure import capacity
from worker.transport.lease_store import Demand, Fetch
from worker.transport.leases import Lease, LeaseUpdates
from worker.transport.renewal import FetchingChannel, LeaseRenewal, log_refusal
from worker.transport.wire import ConnectionBackoff, Wire

logger = logging.getLogger(__name__)

#: Seconds after which a server that has not answered counts as gone. Well under a lease, so that
#: the next connection is in time to renew.
PATIENCE = 5.0
#: Seconds for which the server holds back the answer while a list is empty.
WATCH_SECONDS = 5
#: Seconds after which a slow receiver is interrupted for renewals, ends of leases, and interactive
#: jobs.
SLICE_SECONDS = 0.02


class Fetcher:
    """One channel's calls to the server; owned by the thread that polls its sockets.

    That is the event loop's thread, or the caller of `drain_events`. One connection carries
    commands that are answered at once: fetch, ends of leases, renewal, restoration. While the
    queues are empty, one more connection per list waits in `BLMOVE list list RIGHT RIGHT`. It
    removes no message, so any of these connections may die at any moment. A lost one is replaced
    before the next poll. If that fails, the error reaches the user of kombu, which reconnects.
    """

    def __init__(self, consumer: FetchingChannel) -> None:
        self.ready: deque[tuple[Lease, bytes]] = deque()
        #: Messages delivered so far.
        self.delivered = 0
        self._consumer = consumer
        self._leases = consumer.leases
        self._wire: Wire | None = None
        self._watches: dict[str, Wire] = {}
        #: Lanes with a running fetch, and lanes with lists that were all seen empty.
        self._fetching: set[Lane | None] = set()
        self._drained: set[Lane | None] = set()
        self._sending = 0
        self._connect_backoff = ConnectionBackoff()
        self._fetch_backoff = ConnectionBackoff()
        self._send_backoff = ConnectionBackoff()
        self._upkeep = LeaseRenewal(consumer)

    def turn(self) -> None:
        """Send the calls that are due; called before each poll.

        Raises:
            redis.ConnectionError: the server cannot be reached.
        """
        demands = self._consumer.demands()
        if self._wire is None and not demands:
            return
        wire = self._connected()
        if wire is None:
            return
        self._send(wire)
        if self.ready and self._consumer.has_loop:
            self.deliver()
        if not self.ready:
            self._fetch_or_watch(wire, demands)

    def deliver(self) -> None:
        """Deliver the ready messages: all of them on an event loop, else one.

        If the receiver raises, the rest stays ready. The solo pool runs a task for each message, so
        leases are renewed and their ends sent meanwhile. Interactive jobs are also fetched
        meanwhile, and come next.
        """
        if self.ready and not self._consumer.has_loop:
            self._deliver()
            return
        while self.ready:
            self._deliver_slice()
            if self.ready and self._wire is not None and self._wire.alive:
                self._catch_up(self._wire)

    def check(self) -> None:
        """Drop connections that are half-open; `turn` makes new ones."""
        for wire in (self._wire, *self._watches.values()):
            if wire is None or not wire.overdue():
                continue
            # After a pause of this process the answer may have arrived unread.
            wire.on_readable()
            if wire.overdue():
                logger.warning("Redis has not answered for %.0f s: connecting anew", wire.patience)
                wire.drop()

    def unwatch(self, keys: Sequence[str]) -> None:
        """Stop watching lists that are no longer consumed."""
        for key in keys:
            wire = self._watches.pop(key, None)
            if wire is not None:
                wire.drop()

    def close(self) -> None:
        """Release the messages that were not delivered, and close every connection."""
        wire, self._wire = self._wire, None
        if wire is not None:
            # An answer on its way may hold messages.
            wire.wait(timeout=1.0)
            wire.drop()
        self.unwatch(list(self._watches))
        self._leases.release([lease.tag for lease, _ in self.ready])
        self.ready.clear()

    def _deliver_slice(self) -> None:
        """Deliver for some milliseconds, then announce that."""
        slice_end = time.monotonic() + SLICE_SECONDS
        capacity.more_follow = True
        try:
            while self.ready:
                self._deliver()
                if time.monotonic() > slice_end:
                    return
        finally:
            capacity.more_follow = False
            if capacity.delivered is not None:
                capacity.delivered()

    def _deliver(self) -> None:
        self.delivered += 1
        self._consumer.deliver(*self.ready.popleft())

    def _catch_up(self, wire: Wire) -> None:
        """Make the calls that cannot wait until every ready message is delivered."""
        for one in (wire, *self._watches.values()):
            one.on_readable()
        self._send(wire)
        self._fetch_or_watch(
            wire, [one for one in self._consumer.demands() if one.lane is Lane.INTERACTIVE]
        )

    def _connected(self) -> Wire | None:
        """The connection for commands; None if one was lost too often to try again now."""
        if self._wire is not None and self._wire.alive:
            return self._wire
        if self._connect_backoff.on:
            return None
        # The first attempt is immediate. If the server accepts and drops connections, as while it
        # loads its data, the attempts become rarer.
        self._connect_backoff.longer()
        self._wire = self._consumer.connect(PATIENCE)
        self._upkeep.connected(self._wire)
        return self._wire

    def _send(self, wire: Wire) -> None:
        self._send_updates(wire)
        self._upkeep.run(wire)

    def _send_updates(self, wire: Wire) -> None:
        store = self._consumer.store
        if self._sending or self._send_backoff.on or not self._leases.has_updates(store):
            return
        sent = list(store.commands(self._leases.take_updates(store)))
        self._sending = len(sent)
        for command, part in sent:
            wire.call(
                command, partial(self._updates_sent, wire, part), partial(self._updates_lost, part)
            )

    def _updates_sent(self, wire: Wire, part: LeaseUpdates, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            self._refused(wire, reply, self._send_backoff)
            self._updates_lost(part)
            return
        self._sending -= 1
        if isinstance(reply, bytes):
            log_refusal(reply.decode())
        if not self._send_backoff.on:
            self._send_backoff.reset()

    def _updates_lost(self, part: LeaseUpdates) -> None:
        self._sending -= 1
        self._leases.add_updates(self._consumer.store, part)

    def _fetch_or_watch(self, wire: Wire, demands: Sequence[Demand]) -> None:
        """Fetch by the demand; watch the lists that are empty."""
        if self._fetch_backoff.on:
            return
        for demand in demands:
            if demand.messages <= 0 or demand.lane in self._fetching:
                continue
            if demand.lane in self._drained:
                self._watch(demand)
            else:
                self._fetch(wire, demand)

    def _fetch(self, wire: Wire, demand: Demand) -> None:
        consumer, lane = self._consumer, demand.lane
        fetch = consumer.store.fetch(
            demand.lists,
            renewed=consumer.has_loop,
            count=demand.messages,
            tokens_bytes=demand.tokens_bytes,
        )
        self._fetching.add(lane)
        wire.call(
            fetch.command,
            partial(self._fetched, wire, lane, fetch),
            partial(self._fetch_lost, lane, fetch),
        )

    def _fetched(self, wire: Wire, lane: Lane | None, fetch: Fetch, reply: Any) -> None:
        self._fetching.discard(lane)
        if isinstance(reply, ResponseError):
            self._refused(wire, reply, self._fetch_backoff)
            return
        self._connect_backoff.reset()
        self._fetch_backoff.reset()
        consumer = self._consumer
        drained, leased = consumer.store.read_fetch(fetch, reply, consumer.owner)
        if drained:
            self._drained.add(lane)
        self._leases.add([lease for lease, _ in leased])
        if lane is Lane.INTERACTIVE:
            self.ready.extendleft(reversed(leased))
        else:
            self.ready.extend(leased)

    def _fetch_lost(self, lane: Lane | None, fetch: Fetch) -> None:
        # The server may have leased messages to tags that we never saw: release them.
        self._fetching.discard(lane)
        self._leases.add_updates(self._consumer.store, LeaseUpdates(releases=fetch.possible_tags()))

    def _watch(self, demand: Demand) -> None:
        for source in demand.lists:
            wire = self._watches.get(source.key)
            if wire is None or not wire.alive:
                wire = self._watches[source.key] = self._consumer.connect(PATIENCE)
            if not wire.busy:
                wire.send(
                    ("BLMOVE", source.key, source.key, "RIGHT", "RIGHT", WATCH_SECONDS),
                    partial(self._woken, wire, demand.lane),
                    _nothing,
                    wait=WATCH_SECONDS,
                )

    def _woken(self, wire: Wire, lane: Lane | None, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            # A full server refuses BLMOVE but allows a fetch, which is tried after a pause.
            self._refused(wire, reply, self._fetch_backoff)
            self._drained.discard(lane)
        elif reply is not None:
            self._drained.discard(lane)

    def _refused(self, wire: Wire, error: ResponseError, backoff: ConnectionBackoff) -> None:
        if not backoff.on:
            # Once for all calls that were sent together.
            logger.warning("Redis refuses (%s): trying again in %.1f s", error, backoff.longer())
        if isinstance(error, ReadOnlyError):
            # A failover: the name may lead to the new primary.
            wire.drop()


def _nothing() -> None:
    """Ignore a lost watch: it removed no message."""
