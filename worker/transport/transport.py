"""The kombu transports: Redis or Valkey at an address, or behind Sentinel."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as stock
from redis.exceptions import MasterDownError, OutOfMemoryError, ReadOnlyError

from worker.transport.channel import Channel, SentinelChannel
from worker.transport.leases import leases
from worker.transport.poller import Poller

#: Seconds between checks for half-open connections; the loop turns at least this often.
CHECK_INTERVAL = 1.0


class Transport(stock.Transport):
    """kombu's Redis transport with our channels and poller."""

    Channel = Channel
    #: kombu's, and the errors of a server that is full or no longer the primary. Celery reconnects
    #: on these; as channel errors they would end the worker.
    connection_errors = (
        *stock.Transport.connection_errors,
        *(MasterDownError, OutOfMemoryError, ReadOnlyError),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()
        #: The event loop that runs this transport, if any.
        self.loop: Any = None
        self._ticks: set[Any] = set()
        self._timers: set[Any] = set()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        ticks, timers = set(loop.on_tick), _entries(loop)
        super().register_with_event_loop(connection, loop)
        loop.call_repeatedly(CHECK_INTERVAL, self.cycle.check)
        self._ticks, self._timers = loop.on_tick - ticks, _entries(loop) - timers
        self.loop = loop
        leases.wake = self._wake

    def close_connection(self, connection: Any) -> None:
        super().close_connection(connection)
        loop, self.loop = self.loop, None
        if loop is not None:
            # kombu leaves the callbacks and timers of every earlier connection behind.
            loop.on_tick.difference_update(self._ticks)
            for timer in self._timers:
                timer.cancel()
            if leases.wake == self._wake:
                leases.wake = None

    def _wake(self) -> None:
        if self.loop is not None:
            self.loop.call_soon(_nothing)


class SentinelTransport(Transport):
    """A transport behind Sentinel; takes the transport option `master_name`."""

    default_port = 26379
    Channel = SentinelChannel


def _nothing() -> None:
    """Only wake the loop: its work runs before the next poll."""


def _entries(loop: Any) -> set[Any]:
    return {scheduled.entry for scheduled in loop.timer.queue}
