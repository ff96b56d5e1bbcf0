"""Celery's time limits for jobs of `embed`, counted from the moment that a job runs."""

from __future__ import annotations

from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from worker.engine import Engine
from worker.pool.celery_tracer import Tracer
from worker.pool.in_flight import InFlightJob, Limits
from worker.pool.job_metrics import TIMED_OUT, JobMetrics


class TimeLimits:
    """Ends jobs that exceed a time limit; their texts in a running batch are dropped.

    All on the loop's thread, by its timer.
    """

    def __init__(self, engine: Engine, tracer: Tracer, counts: JobMetrics) -> None:
        self._engine = engine
        self._counts = counts
        self._tracer = tracer

    def watch(self, in_flight: InFlightJob, limits: Limits, timer: Any) -> list[Any]:
        """The timers of a job that runs now."""
        entries = []
        if limits.hard:
            entries.append(timer.call_after(limits.hard, self._fail, (in_flight, limits.hard)))
        if limits.soft:
            entries.append(timer.call_after(limits.soft, self._interrupt, (in_flight, limits.soft)))
        return entries

    def _fail(self, in_flight: InFlightJob, seconds: float) -> None:
        if in_flight.job is not None and self._engine.cancel(in_flight.job) and in_flight.close():
            in_flight.request.on_timeout(False, seconds)
            self._counts.ended(TIMED_OUT, [in_flight])

    def _interrupt(self, in_flight: InFlightJob, seconds: float) -> None:
        if in_flight.job is not None and self._engine.cancel(in_flight.job):
            in_flight.request.on_timeout(True, seconds)
            self._tracer.end(in_flight, SoftTimeLimitExceeded())
