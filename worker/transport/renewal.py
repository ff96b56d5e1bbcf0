"""Renew the leases of this process and restore those of dead ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from redis.exceptions import ResponseError

from worker.transport.lease_store import FIRST, Cursor, Demand, LeaseStore, Restored
from worker.transport.leases import Lease, Leases
from worker.transport.scripts import REFUSED
from worker.transport.wire import Wire

logger = logging.getLogger(__name__)

#: Messages of stock workers restored in one sweep, each with a round trip of its own.
FOREIGN_LIMIT = 20


def log_refusal(error: str) -> None:
    """Log that a list refused a message; the script leaves it leased for a while."""
    logger.error("Redis refuses to take messages back (%s): trying again in %d s", error, REFUSED)


class FetchingChannel(Protocol):
    """The channel, as its fetcher sees it."""

    #: The owner of fetched leases; only compared.
    owner: object
    leases: Leases
    restore_interval: float

    @property
    def store(self) -> LeaseStore: ...

    @property
    def has_loop(self) -> bool:
        """Whether an event loop runs, which renews leases and delivers many messages at once."""

    def demands(self) -> Sequence[Demand]:
        """Bounds of the next fetches, the most urgent first; empty without a consumer."""

    def connect(self, patience: float) -> Wire:
        """Open a connection and poll its socket."""

    def deliver(self, lease: Lease, message: bytes) -> None: ...

    def restore_foreign(self, tags: Sequence[str]) -> None:
        """Put messages of stock workers back by kombu's routing."""


class LeaseRenewal:
    """Renews this process's leases and restores those of dead ones, when it is time."""

    def __init__(self, consumer: FetchingChannel) -> None:
        self._consumer = consumer
        self._leases = consumer.leases
        self._renew_at = 0.0
        self._restore_at = 0.0
        self._renewing = 0
        self._restoring = False

    def connected(self, wire: Wire) -> None:
        """Start on a new connection: renew at once, restore only after the server is known.

        After a restart of the server all leases look expired; their workers get time to reconnect
        and renew.
        """
        self._renew_at = 0.0
        self._renewing = 0
        self._restoring = False
        self._restore_at = time.monotonic() + self._consumer.store.RECONNECTION
        wire.send(("INFO", "server"), self._known, lambda: None, wait=0)

    def run(self, wire: Wire) -> None:
        now = time.monotonic()
        if self._consumer.has_loop and not self._renewing and now >= self._renew_at:
            self._renew(wire)
        if not self._restoring and now >= self._restore_at:
            self._restore(wire, FIRST)

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
        commands = list(store.renewals(self._leases.renewable(store)))
        self._renewing = len(commands)
        for command in commands:
            wire.call(command, self._renewed, self._renewal_lost)

    def _renewed(self, reply: Any) -> None:
        self._renewing -= 1
        if isinstance(reply, ResponseError):
            logger.warning("Redis refuses to renew leases: %s", reply)
            self._renew_at = time.monotonic() + 1.0
        elif reply:
            self._leases.remove_lost([tag.decode() for tag in reply])

    def _renewal_lost(self) -> None:
        self._renewing = 0

    def _restore(self, wire: Wire, cursor: Cursor) -> None:
        self._restoring = True
        self._restore_at = time.monotonic() + self._consumer.restore_interval
        wire.call(
            self._consumer.store.restoration(cursor),
            partial(self._restored, wire),
            self._restoration_lost,
        )

    def _restored(self, wire: Wire, reply: Any) -> None:
        self._restoring = False
        if isinstance(reply, ResponseError):
            logger.warning("Redis refuses to restore leases that ran out: %s", reply)
            return
        restored = Restored.read(reply)
        if restored.refusal is not None:
            log_refusal(restored.refusal)
        if restored.leases:
            logger.warning(
                "%d messages of workers that are gone go back to their queues", restored.leases
            )
            self._leases.count_restored(restored.leases)
        if restored.foreign:
            self._consumer.restore_foreign(restored.foreign[:FOREIGN_LIMIT])
        if restored.cursor is not None:
            self._restore(wire, restored.cursor)

    def _restoration_lost(self) -> None:
        self._restoring = False
