"""Complete jobs through Celery's tracer: signals, links, chords, failures."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from typing import Any, NamedTuple

import redis
from celery.worker import state

from worker import tasks
from worker.contract.errors import JobFailed
from worker.contract.jobs import EncodingFormat
from worker.contract.lanes import Lane
from worker.contract.outcomes import Outcome
from worker.contract.results import payload, plain
from worker.pool.failures import Failures, is_connection_lost, place_of
from worker.pool.in_flight import InFlightJob
from worker.pool.job_metrics import Ended, JobMetrics, ended_by
from worker.pool.loop import LoopCalls
from worker.pool.poison_jobs import PoisonJobs
from worker.pool.result_writer import ResultWriter
from worker.pool.spans import JobSpans
from worker.pool.threads import DaemonThreads
from worker.store.jobs import JobStore
from worker.transport import EndedElsewhere, Following, following, leases, puts_back
from worker.watchdog import Busy

logger = logging.getLogger(__name__)

#: Seconds of pause after Redis did not take an outcome: the requeued job returns at once.
_PAUSE = 0.5
#: Seconds that `wait` takes at most: a receiver of Celery's signals may itself call `embed`.
_LONGEST_WAIT = 10.0
#: Jobs of a lane that may wait for the tracer before fetching of the lane pauses. Jobs that are
#: known to need it are parked long before (see `parking`), so these are jobs that failed.
_BACKLOG = 4096


class Traced(NamedTuple):
    """A job for the tracer."""

    in_flight: InFlightJob
    #: Vectors, or the exception that it fails with.
    outcome: Outcome | Exception
    encoding_format: EncodingFormat


class Tracer:
    """Runs Celery's tracer on its own thread, since it blocks: it stores results by itself.

    The task's body reads its outcome from `tasks.ready`. While Redis is away the tracer retries
    until Redis is back. If a follow-up message of a job cannot be sent, the job is requeued.
    """

    def __init__(
        self,
        store: JobStore,
        loop: LoopCalls,
        counts: JobMetrics,
        writer: ResultWriter,
        failures: Failures,
        suspects: PoisonJobs,
        spans: JobSpans | None = None,
    ) -> None:
        #: Refuses jobs that cannot be completed.
        self._failures = failures
        self._store = store
        self._writer = writer
        self._suspects = suspects
        self._closing = threading.Event()
        self._counts = counts
        self._spans = spans
        self._loop = loop
        self.busy = Busy("embedq-trace", uses_redis=True)
        #: Jobs of each lane that wait or run; its lock guards changes.
        self._waiting: Counter[Lane] = Counter()
        self._counting = threading.Lock()
        self._threads = DaemonThreads(1, "embedq-trace", self._run)

    def has_room(self, lane: Lane) -> bool:
        """Whether the tracer can take more jobs of a lane. Loop's thread."""
        return self._waiting[lane] < _BACKLOG

    def end(
        self,
        in_flight: InFlightJob,
        outcome: Outcome | Exception,
        encoding_format: EncodingFormat = "float",
    ) -> None:
        """Complete a job soon; Celery's callbacks run on the loop's thread. Any thread."""
        with self._counting:
            self._waiting[in_flight.lane] += 1
        self._threads.submit(Traced(in_flight, outcome, encoding_format))

    def wait(self) -> None:
        """Wait until earlier jobs are completed, at most `_LONGEST_WAIT` seconds."""
        reached = threading.Event()
        self._threads.submit(reached)
        reached.wait(_LONGEST_WAIT)

    def close(self, seconds: float) -> None:
        """Complete the waiting jobs, in at most `seconds`."""
        self._closing.set()
        if not self._threads.wait(seconds):
            logger.warning("%d jobs were not ended in time", self._threads.backlog)
        self._threads.close()

    def _run(self, traced: Traced | threading.Event) -> None:
        if isinstance(traced, threading.Event):
            traced.set()
            return
        with self.busy:
            self._end_traced(traced)
        with self._counting:
            self._waiting[traced.in_flight.lane] -= 1

    def _end_traced(self, traced: Traced) -> None:
        in_flight = traced.in_flight
        try:
            if not self._may_end(in_flight):
                # Its links are sent elsewhere; only this delivery is left.
                self._loop.call(in_flight.discard)
                return
            began = time.perf_counter()
            answer = self._trace(traced)
            seconds = time.perf_counter() - began
        except EndedElsewhere:
            self._loop.call(in_flight.discard)
        except Exception as error:  # noqa: BLE001 - whatever it is; logged here
            # The tracer handles a failure of the job itself; here the outcome was not stored.
            passes = is_connection_lost(error)
            logger.error(  # noqa: TRY400 - its text may quote the message
                "Job %s could not be ended; it is %s:\n%s",
                *(in_flight.id, "put back" if passes else "refused", place_of(error)),
                extra={"job_id": in_flight.id},
            )
            if isinstance(error, redis.ResponseError) and not passes:
                self._writer.refuse(in_flight, error)
                self._loop.call(in_flight.discard)
                return
            if not passes:
                self._loop.call(self._refuse, in_flight, error)
                return
            if in_flight.redelivered:
                # The worker did not crash on this job.
                self._suspects.clear([(in_flight.id, in_flight.tag)])
            self._loop.call(in_flight.put_back)
            self._closing.wait(_PAUSE)
        else:
            # If the outcome could not be passed on, to a link for example, the job has failed.
            failed = answer[0] and isinstance(traced.outcome, Outcome)
            how: Ended = ("failed", "other") if failed else ended_by(traced.outcome)
            if self._spans is not None:
                self._spans.written([in_flight], seconds, how)
            self._loop.call(self._end, in_flight, answer, how)

    def _refuse(self, in_flight: InFlightJob, error: Exception) -> None:
        """Fail a job that would fail the same way in every worker."""
        if in_flight.close():
            state.task_ready(in_flight.request)
            reason = f"what follows the job cannot be sent ({type(error).__name__})"
            failure = JobFailed("invalid_request", reason)
            self._failures.refuse(in_flight.tag, in_flight.id, failure, reason)
            self._counts.ended(ended_by(failure), [in_flight])

    def _end(self, in_flight: InFlightJob, answer: tuple[int, Any, float], how: Ended) -> None:
        if in_flight.end(answer):
            self._counts.ended(how, [in_flight])

    def _trace(self, traced: Traced) -> Any:
        in_flight, outcome, encoding_format = traced
        tasks.ready[in_flight.id] = (
            plain(payload(outcome, encoding_format)) if isinstance(outcome, Outcome) else outcome
        )
        token = puts_back.set(True)
        held = Following(in_flight.id, in_flight.lease) if in_flight.lease is not None else None
        links = following.set(held)
        try:
            return in_flight.target(*in_flight.args)
        finally:
            following.reset(links)
            puts_back.reset(token)
            tasks.ready.pop(in_flight.id, None)

    def _may_end(self, in_flight: InFlightJob) -> bool:
        """Whether this delivery may complete its job: it is leased, and the job has not ended.

        If a worker was suspended for longer than its lease, another one has the job. A job that was
        cancelled before it was fetched has ended.
        """
        lease = in_flight.lease
        if lease is not None and not lease.store.client.hexists(lease.unacked_key, lease.tag):
            leases.remove_lost([lease.tag])
            return False
        record = self._store.read(in_flight.id)
        return record is None or not record.status.ended
