"""Redis' clock: the one clock that all processes of a deployment share.

Hosts' clocks can differ by minutes, so deadlines and heartbeats must not depend on them.
"""

from __future__ import annotations

import time

import redis

#: Seconds that a measured offset is used; host and server drift apart by milliseconds meanwhile.
_FRESH = 30.0


class Clock:
    """Seconds since the epoch by Redis' clock. Safe to share between threads.

    The offset to the host's monotonic clock is measured at first use and again when it is older
    than half a minute. Threads that measure at the same time do so independently.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        #: Redis time minus monotonic time, and the monotonic time of the measurement.
        self._measured: tuple[float, float] | None = None

    def now(self) -> float:
        """The time, measured anew if the last measurement is old.

        Raises redis.RedisError if the first measurement fails.
        """
        measured = self._measured
        if measured is None or time.monotonic() - measured[1] > _FRESH:
            try:
                self.measure()
            except redis.RedisError:
                if measured is None:
                    raise
        return self.estimate()

    def measure(self) -> None:
        """Ask Redis for its time, in one round trip. Raises redis.RedisError."""
        sent = time.monotonic()
        seconds, micros = self._client.time()
        received = time.monotonic()
        self._measured = seconds + micros / 1e6 - (sent + received) / 2, received

    def estimate(self) -> float:
        """The time by the last measurement, without I/O; by the host's clock before the first."""
        measured = self._measured
        return time.time() if measured is None else time.monotonic() + measured[0]
