"""Celery's time limits for jobs of `embed`, counted from the moment that a job runs."""

from __future__ import annotations

from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from worker.engine import Engine
from worker.pool.counts import TIMED_OUT, JobCounts
from worker.pool.tickets import Limits, Ticket
from worker.pool.tracing import Tracer


class TimeLimits:
    """Ends jobs that run for too long; what of them is encoding is dropped.

    All on the loop's thread, by its timer.
    """

    def __init__(self, engine: Engine, tracer: Tracer, counts: JobCounts) -> None:
        self._engine = engine
        self._counts = counts
        self._tracer = tracer

    def watch(self, ticket: Ticket, limits: Limits, timer: Any) -> list[Any]:
        """The timers of a job that runs now."""
        entries = []
        if limits.hard:
            entries.append(timer.call_after(limits.hard, self._fail, (ticket, limits.hard)))
        if limits.soft:
            entries.append(timer.call_after(limits.soft, self._interrupt, (ticket, limits.soft)))
        return entries

    def _fail(self, ticket: Ticket, seconds: float) -> None:
        if ticket.job is not None and self._engine.cancel(ticket.job) and ticket.close():
            ticket.request.on_timeout(False, seconds)
            self._counts.ended(TIMED_OUT, [ticket])

    def _interrupt(self, ticket: Ticket, seconds: float) -> None:
        if ticket.job is not None and self._engine.cancel(ticket.job):
            ticket.request.on_timeout(True, seconds)
            self._tracer.end(ticket, SoftTimeLimitExceeded())
