"""The kombu transports: Redis or Valkey at an address, or behind Sentinel."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as stock
from redis.exceptions import MasterDownError, OutOfMemoryError, ReadOnlyError

from worker.transport.channel import Channel, SentinelChannel
from worker.transport.leases import leases
from worker.transport.poller import Poller

#: Seconds between looks for connections that are half-open; also the least a loop turns.
CHECK_INTERVAL = 1.0


class Transport(stock.Transport):
    """kombu's Redis transport with our channels and poller."""

    Channel = Channel
    #: Besides kombu's: the errors of a server that is full or not the primary any more. For Celery
    #: they are a reason to connect anew; as channel errors they would end the worker.
    connection_errors = (
        *stock.Transport.connection_errors,
        *(MasterDownError, OutOfMemoryError, ReadOnlyError),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()
        #: The event loop that turns this transport, if one does.
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
            # kombu leaves callbacks and timers behind for each connection there ever was.
            loop.on_tick.difference_update(self._ticks)
            for timer in self._timers:
                timer.cancel()
            if leases.wake == self._wake:
                leases.wake = None

    def _wake(self) -> None:
        if self.loop is not None:
            self.loop.call_soon(_nothing)


class SentinelTransport(Transport):
    """The same behind Sentinel; takes the transport option `master_name`."""

    default_port = 26379
    Channel = SentinelChannel


def _nothing() -> None:
    """What a loop is woken for happens before its next poll."""


def _entries(loop: Any) -> set[Any]:
    return {scheduled.entry for scheduled in loop.timer.queue}
