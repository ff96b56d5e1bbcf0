"""Jobs that have come in and whose texts are to be looked up in the cache."""

from __future__ import annotations

import threading
from collections import deque

from worker.contract.lanes import Lane
from worker.engine.isolation import Isolation
from worker.engine.job import Job


class Arrivals:
    """Lane by lane, those of a lane in the order they came; one that got nothing comes first next.

    Its lock is the engine's; the caller of any method holds it.
    """

    def __init__(self, lock: threading.Lock, isolation: Isolation) -> None:
        self._station = isolation.station("lookup", lock, uses_redis=True)
        self._lanes: dict[Lane, deque[Job]] = {lane: deque() for lane in Lane}
        #: A lane that got nothing in the last turn although jobs waited in it.
        self._passed_over: Lane | None = None

    def put(self, *jobs: Job) -> None:
        """Jobs have come in."""
        for job in jobs:
            self._lanes[job.lane].append(job)
        self._station.filled.notify()

    def close(self) -> None:
        """Let `take` come to an end, whatever is left."""
        self._station.close()

    def take(self, texts: int) -> list[Job]:
        """Wait for jobs and take those of so many texts, or one of more; empty once closed."""
        return self._station.take(lambda: self._next(texts))

    def _next(self, texts: int) -> list[Job]:
        jobs: list[Job] = []
        left = texts
        first, self._passed_over = self._passed_over, None
        for lane in sorted(self._lanes, key=lambda lane: lane is not first):
            waiting = self._lanes[lane]
            before = len(waiting)
            while waiting and (not jobs or len(waiting[0].texts) <= left):
                jobs.append(waiting.popleft())
                left -= len(jobs[-1].texts)
            if waiting and len(waiting) == before:
                self._passed_over = lane
        return jobs
