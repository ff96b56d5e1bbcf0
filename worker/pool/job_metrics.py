"""What the pool counts of jobs: how they end, and how long they take."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from celery.exceptions import SoftTimeLimitExceeded

from worker.contract.errors import JobFailed
from worker.contract.results import Outcome
from worker.metrics.histogram import Histogram, tallied
from worker.pool.in_flight import InFlightJob

#: How a job ended, and the code of its error or ''.
Ended = tuple[Literal["succeeded", "failed", "cancelled", "expired"], str]

SUCCEEDED: Ended = ("succeeded", "")
CANCELLED: Ended = ("cancelled", "")
EXPIRED: Ended = ("expired", "")
TIMED_OUT: Ended = ("failed", "time_limit")


def ended_by(outcome: Outcome | Exception) -> Ended:
    """How a job ended that has this outcome. An error that is not ours counts as `other`."""
    if isinstance(outcome, Outcome):
        return SUCCEEDED
    if isinstance(outcome, SoftTimeLimitExceeded):
        return TIMED_OUT
    return ("failed", outcome.code if isinstance(outcome, JobFailed) else "other")


class JobMetrics:
    """Each method belongs to the thread it names; any thread may read.

    Times reach from one machine's clock to another's; what seems to end before its beginning took
    no time. Jobs of producers that do not say when they submitted are not timed.
    """

    def __init__(self) -> None:
        self._ended: Counter[tuple[str, ...]] = Counter()
        self._job_seconds = Histogram("job_seconds")
        self._queue_seconds = Histogram("queue_seconds")
        self._starting = threading.Lock()
        self._write_seconds = Histogram("write_seconds")

    def started(self, in_flight_jobs: Sequence[InFlightJob]) -> None:
        """Their first batch runs now. Any thread that encodes."""
        now = time.time()
        with self._starting:
            for in_flight in in_flight_jobs:
                if in_flight.submitted_at is not None:
                    self._queue_seconds.observe(max(now - in_flight.submitted_at, 0.0))

    def written(self, seconds: float) -> None:
        """One script stored outcomes. Writer thread."""
        self._write_seconds.observe(seconds)

    def ended(self, how: Ended, in_flight_jobs: Sequence[InFlightJob]) -> None:
        """Their outcome is stored. Loop's thread."""
        self._ended[how] += len(in_flight_jobs)
        now = time.time()
        for in_flight in in_flight_jobs:
            if in_flight.submitted_at is not None:
                self._job_seconds.observe(max(now - in_flight.submitted_at, 0.0))

    def dropped(self, how: Ended) -> None:
        """A job ended that was not to run any more. Loop's thread."""
        self._ended[how] += 1

    def figures(self) -> dict[str, Any]:
        """All of it as it travels, see `metrics.registry`."""
        return {
            "jobs_ended": tallied(self._ended),
            "job_seconds": self._job_seconds.figure(),
            "queue_seconds": self._queue_seconds.figure(),
            "write_seconds": self._write_seconds.figure(),
        }
