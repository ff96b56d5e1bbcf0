"""The functions that the engine calls at the stages of a job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.engine.job import Job


class JobCallbacks:
    """The completion of jobs and the notifications before it. Every job carries one object.

    These methods serve jobs with a `concurrent.futures.Future` as owner; a subclass may replace any
    of them. The engine passes many jobs to one call if they carry the same object. A cancelled
    job gets no further call, except one that has already begun. An exception stops the engine.
    """

    def admit(self, job: Job) -> bool:
        """Return whether a job may start; the engine drops it if not.

        Called once, before the first text is encoded, on a thread that encodes. If all vectors are
        in the cache, the cache reader calls it. The engine does not call it for isolated jobs.
        """
        return not job.owner.cancelled()

    def isolate(self, job: Job) -> bool:
        """Return whether an isolated job may continue; called before each of its slices.

        Runs on the first slot's thread while the others rest, and may block.
        """
        return self.admit(job)

    def released(self, job: Job) -> None:
        """A slice has been written, so other jobs run again. On the same thread; may block.

        Not called if the engine closes meanwhile.
        """

    def started(self, jobs: Sequence[Job]) -> None:
        """The first texts of these jobs are in a batch that runs now. On a thread that encodes."""

    def progressed(self, jobs: Sequence[Job]) -> None:
        """More texts of these jobs have vectors, but not all. Writer thread."""

    def completed(self, jobs: Sequence[Job]) -> None:
        """Every text of these jobs has ended. Writer thread; may block, the slots continue.

        A job was never started if all of its texts were rejected or came from the cache.
        """
        for job in jobs:
            if job.owner.set_running_or_notify_cancel():
                job.owner.set_result(job.outcome())


def grouped(jobs: Iterable[Job]) -> Iterator[tuple[JobCallbacks, list[Job]]]:
    """The jobs of each callback object."""
    groups: dict[JobCallbacks, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.callbacks, []).append(job)
    yield from groups.items()
