"""Hang detection: end the worker if the current work of one of its threads takes too long."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable

logger = logging.getLogger(__name__)

#: Exit status of a worker with a thread that hangs; its supervisor starts another.
EX_HUNG = 75


class Busy:
    """The start of a thread's current work. Only the thread changes it; any thread may read."""

    __slots__ = ("last_beat", "name", "since", "uses_redis")

    def __init__(self, name: str, *, uses_redis: bool = False) -> None:
        """`uses_redis`: the thread may repeat its work until Redis is back."""
        self.name = name
        self.uses_redis = uses_redis
        #: Monotonic time, or None if the thread waits for work.
        self.since: float | None = None
        #: Monotonic time of the last call of `enter`, `leave` or `beat`.
        self.last_beat = time.monotonic()

    def enter(self) -> None:
        """Work begins now."""
        self.since = self.last_beat = time.monotonic()

    def leave(self) -> None:
        """The thread waits for work."""
        self.since = None
        self.beat()

    def beat(self) -> None:
        """The thread still waits for work."""
        self.last_beat = time.monotonic()

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *_: object) -> None:
        self.leave()


class Watchdog:
    """Finds threads that work for longer than `seconds`. One thread calls its methods."""

    def __init__(self, threads: Iterable[Busy], seconds: float) -> None:
        self._threads = list(threads)
        self._seconds = seconds
        #: Monotonic time at which Redis was last away.
        self._redis_away = 0.0

    def excuse(self) -> None:
        """Redis is away now: a thread that uses it does not hang."""
        self._redis_away = time.monotonic()

    def hanging(self) -> str | None:
        """The name of a thread that hangs, or None."""
        now = time.monotonic()
        for thread in self._threads:
            since = thread.since
            if since is not None and thread.uses_redis:
                since = max(since, self._redis_away)
            if since is not None and now - since > self._seconds:
                return thread.name
        return None

    def check(self) -> None:
        """End the process if a thread hangs; its leases expire and its jobs run again."""
        name = self.hanging()
        if name is None:
            return
        logger.critical(
            "The thread %s has been busy for more than %d s: it hangs, the worker stops",
            name,
            self._seconds,
        )
        logging.shutdown()
        os._exit(EX_HUNG)
