"""Write: complete jobs, and report the progress of others."""

from __future__ import annotations

from collections.abc import Sequence

from worker.engine.cache import CacheWriter
from worker.engine.callbacks import grouped
from worker.engine.job import Job
from worker.engine.queue import everything
from worker.engine.scheduler import Scheduler


class Write:
    """The stage that calls the callbacks of jobs. Its thread executes `run`."""

    def __init__(self, scheduler: Scheduler, cache: CacheWriter | None) -> None:
        self._scheduler = scheduler
        self._cache = cache

    def run(self) -> None:
        """Write until the last of the other stages has ended."""
        scheduler = self._scheduler
        while True:
            with scheduler.lock:
                jobs = dict.fromkeys(scheduler.write.take(everything))
                # Some may have been cancelled, or completed before.
                ended = [job for job in jobs if job.ended and scheduler.leave(job)]
                going_on = [job for job in jobs if not (job.ended or job.cancelled)]
            if not jobs:
                return
            if ended:
                self._complete(ended)
            for callbacks, group in grouped(going_on):
                callbacks.progressed(group)

    def _complete(self, jobs: Sequence[Job]) -> None:
        try:
            for callbacks, group in grouped(jobs):
                callbacks.completed(group)
        except BaseException:
            # Some may not be completed; `close` returns all.
            with self._scheduler.lock:
                self._scheduler.restore(jobs)
            raise
        if self._cache is not None:
            self._cache.put(jobs)
