"""Consumers for tests: with an event loop in the test's own thread, or without a loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import kombu
import redis
from kombu.asynchronous import Hub

from tests.processes import eventually
from worker.transport import Connection
from worker.transport.lease_store import LeaseStore

JOBS = kombu.Queue("jobs", routing_key="jobs")
#: Short, so that tests need not wait for leases; long enough for a busy machine.
FAST = {"priority_steps": [0], "lease_timeout": 3.0, "restore_interval": 0.2}
#: A server may have started just now, and no other client reconnects to it.
LeaseStore.RECONNECTION = 3.0


@dataclass
class Received:
    """Received bodies and messages; acknowledged on receipt if `ack`."""

    ack: bool = True
    bodies: list[Any] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)

    def __call__(self, body: Any, message: Any) -> None:
        self.bodies.append(body)
        self.messages.append(message)
        if self.ack:
            message.ack()


@dataclass
class Loop:
    """A consumer on an event loop that runs in the test's own thread."""

    connection: Any
    hub: Hub
    consumer: Any

    def until(self, predicate: Callable[[], Any], timeout: float = 10.0) -> None:
        eventually(lambda: self.hub.run_once() or predicate(), timeout, interval=0)

    def turn_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end, seconds + 5)


@contextmanager
def looped(
    url: str,
    received: Callable[[Any, Any], None],
    *queues: kombu.Queue,
    prefetch: int = 0,
    **options: Any,
) -> Iterator[Loop]:
    hub = Hub()
    connection = Connection(url, transport_options={**FAST, **options})
    connection.connect()
    connection.register_with_event_loop(hub)
    consumer = connection.Consumer(list(queues or [JOBS]), callbacks=[received])
    consumer.qos(prefetch_count=prefetch)
    consumer.consume()
    # A timer that keeps each turn short.
    hub.call_repeatedly(0.02, lambda: None)
    try:
        yield Loop(connection, hub, consumer)
    finally:
        connection.release()
        hub.close()
        hub.timer.clear()


@contextmanager
def plain(url: str, received: Received, *queues: kombu.Queue, **options: Any) -> Iterator[Any]:
    """A consumer without an event loop."""
    with (
        Connection(url, transport_options={**FAST, **options}) as connection,
        connection.Consumer(list(queues or [JOBS]), callbacks=[received]),
    ):
        yield connection


def send(url: str, *bodies: Any, queue: str = "jobs", ours: bool = False, **options: Any) -> None:
    make = Connection if ours else kombu.Connection
    with make(url, transport_options={"priority_steps": [0]}) as connection:
        producer = connection.Producer()
        for body in bodies:
            producer.publish(body, exchange="", routing_key=queue, **options)


def backlog(url: str, client: redis.Redis, count: int, *, first: int = 0) -> str:
    """Return the name of a list of messages without a consumer, to be renamed to a consumed list.

    So they appear at once, and on lists that no stock producer can name.
    """
    send(url, *range(first, first + count), queue=(name := f"backlog{client.dbsize()}"))
    return name


def left(client: redis.Redis) -> tuple[int, int, int]:
    """Messages in the queue, in the leased set and in its index."""
    return client.llen("jobs"), client.hlen("unacked"), client.zcard("unacked_index")
