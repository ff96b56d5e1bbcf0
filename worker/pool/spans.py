"""Spans of jobs, each in the trace in which its job was submitted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from worker.engine import Job
from worker.metrics.traces import traces_of
from worker.pool.in_flight import InFlightJob
from worker.pool.job_metrics import SUCCEEDED, Ended

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from worker.metrics.spans import Traces

Facts = Mapping[str, str | int]


class JobSpans:
    """Makes the spans `queued`, `tokenise`, `forward` and `write`; any thread may call.

    A step of one job is a span of that job's trace. A step of many jobs is a trace of its own,
    linked to all of them, and also a span in each of their traces, linked to it. An untraced job
    costs one check of its `trace`.
    """

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    @classmethod
    def of_environment(cls) -> JobSpans | None:
        """None without a collector."""
        traces = traces_of("worker")
        return None if traces is None else cls(traces)

    def open(self, in_flight: InFlightJob) -> None:
        """Store the span that submitted a job."""
        in_flight.trace = self._traces.sender(in_flight.request.request_dict)

    def started(self, in_flight_jobs: Sequence[InFlightJob]) -> None:
        """Their first batch runs now."""
        now = time.time()
        for in_flight in in_flight_jobs:
            if in_flight.trace is not None and in_flight.submitted_at is not None:
                seconds = max(now - in_flight.submitted_at, 0.0)
                facts = {"embedq.job_id": in_flight.id}
                self._traces.record("queued", in_flight.trace, seconds, facts)

    def tokenised(self, jobs: Iterable[Job], seconds: float, texts: int) -> None:
        """The engine: one call of the tokenizer."""
        self._share("tokenise", _in_flight(jobs), seconds, {"embedq.texts": texts})

    def encoded(self, jobs: Iterable[Job], seconds: float, texts: int, tokens: int) -> None:
        """The engine: one batch."""
        facts = {"embedq.texts": texts, "embedq.tokens": tokens}
        self._share("forward", _in_flight(jobs), seconds, facts)

    def written(
        self, in_flight_jobs: Iterable[InFlightJob], seconds: float, how: Ended = SUCCEEDED
    ) -> None:
        """Their outcomes are stored."""
        outcome, code = how
        facts: Facts = {"embedq.outcome": outcome} | ({"embedq.code": code} if code else {})
        self._share("write", in_flight_jobs, seconds, facts)

    def _share(
        self, name: str, in_flight_jobs: Iterable[InFlightJob], seconds: float, facts: Facts
    ) -> None:
        traced = [
            (in_flight.id, in_flight.trace)
            for in_flight in in_flight_jobs
            if in_flight.trace is not None
        ]
        shared: Sequence[SpanContext] = ()
        if len(traced) > 1:
            contexts = [span for _, span in traced]
            facts = {**facts, "embedq.jobs": len(traced)}
            shared = [self._traces.record(f"{name} batch", None, seconds, facts, contexts)]
        for job_id, span in traced:
            own: Facts = {"embedq.job_id": job_id, **facts}
            self._traces.record(name, span, seconds, own, shared)


def _in_flight(jobs: Iterable[Job]) -> list[InFlightJob]:
    # Others belong to calls inside the worker.
    owners = [job.owner for job in jobs]
    return [owner for owner in owners if isinstance(owner, InFlightJob)]
