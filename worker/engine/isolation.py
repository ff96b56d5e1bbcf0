"""Jobs that workers may have died of: one at a time, while every other thread rests.

From its first stage to its last, no other job is in any stage, so a crash is the job's own. A large
one runs in slices, between which others have their turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from worker.engine.job import Job
from worker.watchdog import Busy

Found = TypeVar("Found")


class Isolation:
    """The jobs to be isolated, and whether one is. The engine's lock guards it.

    `changed` is notified when a thread comes to rest. The caller of any method holds the lock.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._stations: list[Station] = []
        #: Those of the threads that have no station.
        self._watched: list[Busy] = []
        self._waiting: deque[Job] = deque()
        #: Whether every thread but the device's is to rest.
        self.begun = False
        #: Whether other jobs had their turn since the last slice.
        self._others_ran = True

    def station(self, name: str, lock: threading.Lock, *, uses_redis: bool = False) -> Station:
        """Return the place where the thread of this name waits for work."""
        station = Station(self, Busy(f"embedq-{name}", uses_redis=uses_redis), lock)
        self._stations.append(station)
        return station

    def watch(self, thread: Busy) -> None:
        """A thread that rests while a job is isolated, but waits for work elsewhere."""
        self._watched.append(thread)

    @property
    def threads(self) -> list[Busy]:
        """The threads with a station."""
        return [station.busy for station in self._stations]

    @property
    def quiet(self) -> bool:
        """Whether all threads but the one that asks rest."""
        return all(busy.since is None for busy in (*self.threads, *self._watched))

    def add(self, job: Job) -> None:
        """A job is to run alone."""
        self._waiting.append(job)
        self._changed.notify_all()

    def discard(self, job: Job) -> None:
        """Forget a job, waiting or not."""
        if job in self._waiting:
            self._waiting.remove(job)
            self._changed.notify_all()

    def note_others(self) -> None:
        """Other jobs had a turn."""
        self._others_ran = True
        if self._waiting:
            self._changed.notify_all()

    def is_due(self, others: int) -> bool:
        """Whether a job is to be isolated next, while so many others are under way."""
        return bool(self._waiting) and (self._others_ran or not others)

    def begin(self) -> None:
        """Let the other threads come to rest."""
        self.begun = True

    def take(self) -> Job:
        """The job whose slice begins."""
        return self._waiting.popleft()

    def rested(self) -> None:
        """A thread has come to rest."""
        if self.begun:
            self._changed.notify_all()

    def end(self, job: Job | None) -> None:
        """Let the other threads go on; a job that has not ended waits for its next slice."""
        if job is not None and not (job.ended or job.cancelled):
            self._waiting.append(job)
        self.begun = self._others_ran = False
        for station in self._stations:
            station.filled.notify_all()


class Station:
    """The place where one thread waits for work, and rests while a job is isolated."""

    def __init__(self, isolation: Isolation, busy: Busy, lock: threading.Lock) -> None:
        self._isolation = isolation
        self.busy = busy
        #: Notified when there may be work.
        self.filled = threading.Condition(lock)
        self._closed = False

    def close(self) -> None:
        """Let `take` come to an end, whatever is left. The caller holds the lock."""
        self._closed = True
        self.filled.notify_all()

    def take(self, find: Callable[[], list[Found]]) -> list[Found]:
        """Wait until `find` finds work; return [] once closed. The caller holds the lock."""
        self.busy.leave()
        self._isolation.rested()
        while not self._closed:
            if not self._isolation.begun and (found := find()):
                self.busy.enter()
                return found
            self.filled.wait()
        return []
