"""Return messages that must wait to Redis, so that this worker holds a bounded number."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Container
from datetime import UTC, datetime
from typing import Any, Protocol

from celery import Celery
from celery.utils.time import maybe_iso8601, maybe_make_aware

from worker.contract.jobs import TASK_NAME
from worker.pool.request import heard_by_signals
from worker.store.clock import Clock
from worker.transport import Lease, leases

#: Messages of one task that a worker holds at once, including running ones; of `embed`, only those
#: that Celery's tracer completes.
MOST_HELD = 256
#: Messages with an eta that a worker holds, and seconds before the eta from which on it may.
MOST_SOON, SOON = 256, 10.0
#: Seconds before its eta at which a parked message comes back.
_EARLY = 2.0
#: Parked messages of one task that return by themselves per second; the shortest and the longest
#: time that a message is away, in seconds.
_PACE = 100.0
_SHORTEST, _LONGEST = 5.0, 300.0
#: Parked messages of one task that a worker remembers, to return them once it has capacity.
_KNOWN = 10_000
#: Seconds between two checks of the capacity.
_LOOK = 0.1


class LeaseLimit:
    """A limit of this worker's leases of one kind. Loop's thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tags: set[str] = set()

    def take(self, tag: str) -> bool:
        """Add a lease; return whether the limit allows it."""
        if len(self._tags) >= self._most and self.room() <= 0:
            return False
        self._tags.add(tag)
        return True

    def room(self) -> int:
        """The number of further leases that the limit allows."""
        self._tags = {tag for tag in self._tags if leases.get(tag) is not None}
        return self._most - len(self._tags)


class ParkingLine:
    """The messages of one kind, held and parked, in order. Loop's thread."""

    def __init__(self) -> None:
        self._held = LeaseLimit(MOST_HELD)
        #: Each with the monotonic time at which it comes back by itself.
        self._parked: deque[tuple[float, Lease]] = deque(maxlen=_KNOWN)
        self._look_at = 0.0

    def parks(self, lease: Lease) -> bool:
        """Park a message behind the others if it must wait; return whether it is parked."""
        if self._held.take(lease.tag):
            return False
        seconds = min(max(len(self._parked) / _PACE, _SHORTEST), _LONGEST)
        self._parked.append((time.monotonic() + seconds, lease))
        leases.defer(lease.tag, seconds)
        return True

    def take_back(self, now: float) -> None:
        """Return parked messages to their queue once half of the limit is free."""
        if not self._parked or now < self._look_at:
            return
        self._look_at = now + _LOOK
        while self._parked and self._parked[0][0] <= now:
            self._parked.popleft()
        room = self._held.room()
        if room >= MOST_HELD // 2:
            count = min(room, len(self._parked))
            leases.release_deferred([self._parked.popleft()[1] for _ in range(count)])


class Parking:
    """Decides which messages wait in Redis, before Celery sees them. Loop's thread.

    Celery itself holds messages without a lease, of kombu's own transport.
    """

    def __init__(self, app: Celery, clock: Clock, known: Container[str], *, traced: bool) -> None:
        self._app = app
        self._clock = clock
        #: Names of tasks that this worker knows.
        self._known = known
        #: Whether every job of `embed` ends through Celery's tracer, by its settings.
        self._traced = traced
        self._soon = LeaseLimit(MOST_SOON)
        self._lines: dict[str, ParkingLine] = {}

    def parks(self, message: Any, lease: Lease) -> bool:
        """Park a message that must wait, which ends its lease; return whether it is parked."""
        headers = message.headers if isinstance(message.headers, dict) else {}
        if headers.get("eta") is not None and self._is_early(headers["eta"], lease):
            return True
        name = headers.get("task")
        if name == TASK_NAME and not self._needs_tracer(message.payload):
            return False
        # One line for all of protocol 1, and for unknown tasks.
        line = name if isinstance(name, str) and name in self._known else ""
        return self._lines.setdefault(line, ParkingLine()).parks(lease)

    def turn(self) -> None:
        """Return parked messages to their queues if there is capacity, at each turn of the loop."""
        now = time.monotonic()
        for line in self._lines.values():
            line.take_back(now)

    def _is_early(self, value: Any, lease: Lease) -> bool:
        """Park a message until its eta is near; return whether it is parked."""
        try:
            eta = maybe_make_aware(maybe_iso8601(value), self._app.conf.timezone)
            ahead = eta.timestamp() - self._clock.estimate()
        except (TypeError, ValueError, AttributeError, OverflowError):
            # Celery's own code refuses it.
            return False
        if ahead > SOON:
            leases.defer(lease.tag, ahead - _EARLY)
            return True
        if ahead > 0 and not self._soon.take(lease.tag):
            leases.defer(lease.tag, ahead)
            return True
        return False

    def _needs_tracer(self, payload: Any) -> bool:
        """Whether Celery's tracer completes a job, since it has links or a chord, for example."""
        if self._traced or heard_by_signals():
            return True
        embed = payload[2] if isinstance(payload, list) and len(payload) == 3 else None
        return isinstance(embed, dict) and any(embed.values())


class HasClock(Protocol):
    """A pool, which has its clock once it has started."""

    clock: Clock


class SharedClock:
    """Celery's timer, with times of day by Redis' clock: hosts' clocks differ."""

    def __init__(self, timer: Any, pool: HasClock) -> None:
        self._timer = timer
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._timer, name)

    def call_at(self, eta: float, *args: Any, **kwargs: Any) -> Any:
        """Celery: `eta` is a time of day, converted to monotonic time by this host's clock."""
        ahead = datetime.now(UTC).timestamp() - self._pool.clock.estimate()
        return self._timer.call_at(eta + ahead, *args, **kwargs)
