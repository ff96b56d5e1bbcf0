"""Jobs that have come in and whose texts are to be looked up in the cache."""

from __future__ import annotations

import threading
from collections import deque

from worker.engine.job import Job


class Arrivals:
    """In the order they came. Its lock is the engine's; the caller of any method holds it."""

    def __init__(self, lock: threading.Lock) -> None:
        self._filled = threading.Condition(lock)
        self._jobs: deque[Job] = deque()
        self._closed = False

    def put(self, job: Job) -> None:
        """A job has come in."""
        self._jobs.append(job)
        self._filled.notify()

    def close(self) -> None:
        """Let `take` come to an end, whatever is left."""
        self._closed = True
        self._filled.notify_all()

    def take(self, most: int) -> list[Job]:
        """Wait for jobs and take those of up to `most` texts, but one; empty once closed."""
        while not (self._jobs or self._closed):
            self._filled.wait()
        taken: list[Job] = []
        while self._jobs and not self._closed:
            most -= len(self._jobs[0].texts)
            if taken and most < 0:
                break
            taken.append(self._jobs.popleft())
        return taken
