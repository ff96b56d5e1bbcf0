"""Metrics of jobs: their outcomes and durations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from celery.exceptions import SoftTimeLimitExceeded

from worker.contract.errors import JobFailed
from worker.contract.outcomes import Outcome
from worker.metrics.recorder import Recorder
from worker.pool.in_flight import InFlightJob

#: How a job ended, and the code of its error or ''.
Ended = tuple[Literal["succeeded", "failed", "cancelled", "expired"], str]

SUCCEEDED: Ended = ("succeeded", "")
CANCELLED: Ended = ("cancelled", "")
EXPIRED: Ended = ("expired", "")
TIMED_OUT: Ended = ("failed", "time_limit")


def ended_by(outcome: Outcome | Exception) -> Ended:
    """How a job with this outcome ended. An error that is not ours counts as `other`."""
    if isinstance(outcome, Outcome):
        return SUCCEEDED
    if isinstance(outcome, SoftTimeLimitExceeded):
        return TIMED_OUT
    return ("failed", outcome.code if isinstance(outcome, JobFailed) else "other")


class JobMetrics(Recorder):
    """Counts jobs by how they end, and how long they take. Any thread.

    A duration begins by the clock of one machine and ends by another's; a negative one counts as 0.
    Jobs without a time of submission are not timed.
    """

    def started(self, in_flight_jobs: Sequence[InFlightJob]) -> None:
        """Their first batch runs now."""
        self.observe("queue_seconds", *_seconds_since_submission(in_flight_jobs))

    def written(self, seconds: float) -> None:
        """One script stored outcomes."""
        self.observe("write_seconds", seconds)

    def ended(self, how: Ended, in_flight_jobs: Sequence[InFlightJob]) -> None:
        """Their outcome is stored."""
        self.count("jobs_ended", len(in_flight_jobs), *how)
        self.observe("job_seconds", *_seconds_since_submission(in_flight_jobs))

    def dropped(self, how: Ended) -> None:
        """A job was cancelled or has expired."""
        self.count("jobs_ended", 1, *how)


def _seconds_since_submission(in_flight_jobs: Sequence[InFlightJob]) -> list[float]:
    now = time.time()
    submitted = (in_flight.submitted_at for in_flight in in_flight_jobs)
    return [max(now - at, 0.0) for at in submitted if at is not None]
