"""Isolation of poison jobs: one at a time runs while every other thread rests.

From its first stage to its last, no other job is in any stage, so a crash is the job's own. A large
job runs in slices of a batch; other jobs have a turn between them.
"""

from __future__ import annotations

import threading
from collections import deque

from worker.engine.job import Job


class Isolation:
    """The jobs to isolate, and the one that runs. The engine's lock guards it."""

    def __init__(self, changed: threading.Condition) -> None:
        """`changed`: notified if the slot that runs these jobs may have to act."""
        self._changed = changed
        self._waiting: deque[Job] = deque()
        #: The job of the slice that runs or is being written.
        self.running: Job | None = None
        #: Jobs in the engine that share batches.
        self._others = 0
        #: Whether one of these had a turn since the last slice.
        self._others_ran = True

    @property
    def active(self) -> bool:
        """Whether all other threads rest: a slice runs, or is the next work."""
        if self.running is not None:
            return True
        return bool(self._waiting) and (self._others_ran or not self._others)

    def enter(self, job: Job) -> None:
        """A job enters the engine."""
        if job.isolated:
            self._waiting.append(job)
            self._changed.notify_all()
        else:
            self._others += 1

    def leave(self, job: Job) -> None:
        """A job has been completed or cancelled."""
        if not job.isolated:
            self._others -= 1
            self.note_turn()
        elif job in self._waiting:
            self._waiting.remove(job)

    def note_turn(self) -> None:
        """A job that shares batches had a turn."""
        self._others_ran = True
        self.rested()

    def rested(self) -> None:
        """A thread has come to rest, or a slice may be due."""
        if self._waiting or self.running is not None:
            self._changed.notify_all()

    def begin(self) -> Job:
        """Start the next slice and return its job."""
        self.running = self._waiting.popleft()
        return self.running

    def end(self) -> None:
        """The slice has ended; a job with more texts waits for its next one."""
        job, self.running = self.running, None
        self._others_ran = False
        if job is not None and not (job.ended or job.cancelled):
            self._waiting.append(job)
