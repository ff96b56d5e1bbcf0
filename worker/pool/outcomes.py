"""Complete jobs: plain ones in bulk, the others through Celery's tracer."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import redis
from celery import Celery

from worker.contract import keys
from worker.contract.errors import JobFailed
from worker.contract.jobs import Status
from worker.contract.outcomes import Outcome
from worker.contract.results import payload, success_meta
from worker.engine import Job, JobCallbacks
from worker.pool.celery_tracer import Tracer
from worker.pool.failures import Failures
from worker.pool.in_flight import Burial, InFlightJob
from worker.pool.job_metrics import SUCCEEDED, JobMetrics
from worker.pool.loop import LoopCalls
from worker.pool.poison_jobs import PoisonJobs
from worker.pool.request import heard_by_signals, overdue
from worker.pool.result_writer import Chunk, ResultWriter, Written, chunks_of
from worker.pool.spans import JobSpans
from worker.pool.threads import EX_SOFTWARE
from worker.store.clock import Clock
from worker.store.jobs import Completion, JobStore
from worker.transport import leases

logger = logging.getLogger(__name__)


class Outcomes(JobCallbacks):
    """The callbacks of the queue's jobs. `JobCallbacks` names the thread of each method.

    Writes are retried while Redis is away. Meanwhile the jobs stay leased, and the engine continues
    until its own capacity is used up.
    """

    def __init__(
        self,
        app: Celery,
        store: JobStore,
        loop: LoopCalls,
        failures: Failures,
        *,
        atomic: bool,
        max_attempts: int,
        clock: Clock,
        spans: JobSpans | None = None,
    ) -> None:
        self._app = app
        self._store = store
        self._loop = loop
        #: Whether leases and results are on one server, so that one script can end both.
        self._atomic = atomic
        #: Whether Celery stores only the result. Its settings are slow to read.
        self._bulk = not (app.conf.result_extended or app.conf.task_track_started)
        self._suspects = PoisonJobs(store, max_attempts)
        self._clock = clock
        self.counts = JobMetrics()
        self._spans = spans
        queue = app.conf.task_default_queue
        self.writer = ResultWriter(store, queue, atomic=atomic, observe=self._observe)
        self.tracer = Tracer(store, loop, self.counts, self.writer, failures, self._suspects, spans)

    # -- callbacks --------------------------------------------------------------------------

    def admit(self, job: Job) -> bool:
        """Return whether a job may start. Revoked and expired jobs end here."""
        in_flight: InFlightJob = job.owner
        if in_flight.deadline is not None and self._clock.estimate() > in_flight.deadline:
            self._loop.call(in_flight.expire)
            return False
        if overdue(in_flight.request):
            self._loop.call(in_flight.revoke)
            return False
        return True

    def isolate(self, job: Job) -> bool:
        """Count the start of a slice. Poison jobs end here, as do those that `admit` refuses."""
        in_flight: InFlightJob = job.owner
        if job.started_at is None and not self.admit(job):
            return False
        self.tracer.wait()
        crashes = self._suspects.begin(job.id, in_flight.tag)
        if crashes:
            self._fail_poisoned(in_flight, crashes)
        return not crashes

    def released(self, job: Job) -> None:
        """The slice has ended without a crash."""
        in_flight: InFlightJob = job.owner
        self.tracer.wait()
        self._suspects.clear([(job.id, in_flight.tag)])

    def started(self, jobs: Sequence[Job]) -> None:
        """Celery shows them as active."""
        in_flight_jobs = [job.owner for job in jobs]
        self.counts.started(in_flight_jobs)
        if self._spans is not None:
            self._spans.started(in_flight_jobs)
        self._loop.call(_accept, in_flight_jobs)

    def progressed(self, jobs: Sequence[Job]) -> None:
        """Publish the progress of large jobs. Not retried: the next batch follows."""
        try:
            self._store.progress(
                [
                    (
                        *(job.id, job.started_at or 0.0, job.done, len(job.texts)),
                        job.prompt_tokens + job.waiting_tokens,
                    )
                    for job in jobs
                ]
            )
        except redis.RedisError as error:
            logger.warning("Progress was not written: %s", type(error).__name__)

    def completed(self, jobs: Sequence[Job]) -> None:
        """Store outcomes and end leases; jobs that are not plain go to the tracer."""
        completions: Chunk = []
        in_bulk = self._bulk and not heard_by_signals()
        done_at = datetime.now(UTC)
        for job in jobs:
            in_flight: InFlightJob = job.owner
            outcome = job.outcome()
            if isinstance(outcome, Outcome) and in_bulk and in_flight.is_plain:
                completions.append((in_flight, _completion(in_flight, job, outcome, done_at)))
            else:
                self.tracer.end(in_flight, outcome, job.options.encoding_format)
        for chunk in chunks_of(completions):
            written = self.writer.write(chunk)
            if written is None:
                return
            if self._atomic:
                leases.remove_completed([in_flight.tag for in_flight, _ in chunk if in_flight.tag])
            self._loop.call(self._end, chunk, written)

    def crashed(self, error: BaseException) -> None:
        """The engine has crashed: end the process. The jobs' leases expire."""
        logger.critical("The engine died, the worker stops: %r", error, exc_info=error)
        logging.shutdown()
        os._exit(EX_SOFTWARE)

    # -- for the pool -----------------------------------------------------------------------

    def close(self, seconds: float) -> None:
        """Complete the tracer's jobs, in at most `seconds`."""
        self.writer.stop()
        self.tracer.close(seconds)

    def give_back(self, in_flight_jobs: Sequence[InFlightJob]) -> None:
        """Release these jobs for other workers. Their runs do not count as crashes."""
        self._suspects.clear(
            (in_flight.id, in_flight.tag)
            for in_flight in in_flight_jobs
            if in_flight.job is not None and in_flight.job.isolated
        )
        leases.release([in_flight.tag for in_flight in in_flight_jobs if in_flight.tag])
        for in_flight in in_flight_jobs:
            in_flight.close()
            if not in_flight.tag:
                in_flight.request.reject(requeue=True)

    # -- bulk -------------------------------------------------------------------------------

    def _observe(self, in_flight_jobs: Sequence[InFlightJob], seconds: float) -> None:
        self.counts.written(seconds)
        if self._spans is not None:
            self._spans.written(in_flight_jobs, seconds)

    def _end(self, chunk: Chunk, written: Written) -> None:
        self.counts.ended(SUCCEEDED, _told(written.first, settled=self._atomic))
        first = set(written.first)
        for in_flight, _ in chunk:
            if in_flight not in first:
                in_flight.discard()

    # -- one by one -------------------------------------------------------------------------

    def _fail_poisoned(self, in_flight: InFlightJob, deaths: int) -> None:
        message = f"the worker died {deaths} times while it ran this job alone"
        logger.error(
            "Job %s is poisoned: %s", in_flight.id, message, extra={"job_id": in_flight.id}
        )
        in_flight.burial = Burial(message, keys.dead_letters(self._app.conf.task_default_queue))
        self.tracer.end(in_flight, JobFailed("poisoned", message))


def _completion(
    in_flight: InFlightJob, job: Job, outcome: Outcome, done_at: datetime
) -> Completion:
    meta = b""
    if in_flight.wants_result:
        result = payload(outcome, job.options.encoding_format)
        meta = success_meta(in_flight.id, result, in_flight.meta(), done_at)
    return Completion(
        in_flight.id,
        Status.SUCCEEDED,
        tag=in_flight.tag,
        meta=meta,
        prompt_tokens=outcome.prompt_tokens,
        texts=len(job.texts),
        started=job.started_at or 0.0,
        model=outcome.model,
    )


def _accept(in_flight_jobs: Sequence[InFlightJob]) -> None:
    for in_flight in in_flight_jobs:
        in_flight.accept()


def _told(in_flight_jobs: Sequence[InFlightJob], *, settled: bool) -> list[InFlightJob]:
    """Report the success of each job to Celery. Return the jobs that were open."""
    now = time.monotonic()
    told = []
    for in_flight in in_flight_jobs:
        try:
            if in_flight.succeed(now, settled=settled):
                told.append(in_flight)
        except Exception:
            # Of a signal's receiver, for example; the outcome is stored.
            logger.exception("Celery could not be told that job %s succeeded", in_flight.id)
    return told
