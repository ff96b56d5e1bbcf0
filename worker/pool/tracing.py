"""Jobs that end the way Celery ends tasks: signals, links, chords, failures."""

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
from worker.contract.store import JobStore
from worker.pool.counts import Ended, JobCounts, ended_by
from worker.pool.failures import Failures, is_connection_lost, place_of
from worker.pool.loop import LoopCalls
from worker.pool.result_writer import ResultWriter
from worker.pool.spans import JobSpans
from worker.pool.suspects import Suspects
from worker.pool.threads import DaemonThreads
from worker.pool.tickets import Ticket
from worker.transport import EndedElsewhere, Following, following, leases, puts_back
from worker.watchdog import Busy

logger = logging.getLogger(__name__)

#: Seconds before another try where Redis takes no outcomes: the job is back at once.
_PAUSE = 0.5
#: Seconds that `wait` takes at most: a receiver of Celery's signals may itself call `embed`.
_LONGEST_WAIT = 10.0
#: Jobs of a lane that may wait for the tracer before no more of the lane is fetched. Those that are
#: known to need it are parked long before (see `parking`), so these are jobs that failed.
_BACKLOG = 4096


class Traced(NamedTuple):
    """A job on its way through the tracer."""

    ticket: Ticket
    #: Vectors, or the exception that it fails with.
    outcome: Outcome | Exception
    encoding_format: EncodingFormat


class Tracer:
    """Celery's tracer on a thread of its own, since it blocks: it stores results by itself.

    The task's body finds its outcome in `tasks.ready`. Where Redis is away the tracer repeats what
    it does until Redis is back; where what a job hands on cannot be sent, the job is put back.
    """

    def __init__(
        self,
        store: JobStore,
        loop: LoopCalls,
        counts: JobCounts,
        writer: ResultWriter,
        failures: Failures,
        suspects: Suspects,
        spans: JobSpans | None = None,
    ) -> None:
        #: Takes what cannot be ended.
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
        """Whether more jobs of a lane may come. Loop's thread."""
        return self._waiting[lane] < _BACKLOG

    def end(
        self,
        ticket: Ticket,
        outcome: Outcome | Exception,
        encoding_format: EncodingFormat = "float",
    ) -> None:
        """End a job soon; Celery is told on the loop's thread. Any thread."""
        with self._counting:
            self._waiting[ticket.lane] += 1
        self._threads.submit(Traced(ticket, outcome, encoding_format))

    def wait(self) -> None:
        """Wait until all that was to be ended before has ended, for some seconds at most."""
        reached = threading.Event()
        self._threads.submit(reached)
        reached.wait(_LONGEST_WAIT)

    def close(self, seconds: float) -> None:
        """Finish what waits, in so many seconds at most."""
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
            self._waiting[traced.ticket.lane] -= 1

    def _end_traced(self, traced: Traced) -> None:
        ticket = traced.ticket
        try:
            if not self._may_end(ticket):
                # Its links are dispatched elsewhere; only this delivery is left.
                self._loop.call(ticket.discard)
                return
            began = time.perf_counter()
            answer = self._trace(traced)
            seconds = time.perf_counter() - began
        except EndedElsewhere:
            self._loop.call(ticket.discard)
        except Exception as error:  # noqa: BLE001 - whatever it is; logged here
            # Not the job's own failure, which the tracer answers: its outcome was not stored.
            passes = is_connection_lost(error)
            logger.error(  # noqa: TRY400 - its text may quote the message
                "Job %s could not be ended; it is %s:\n%s",
                *(ticket.id, "put back" if passes else "refused", place_of(error)),
                extra={"job_id": ticket.id},
            )
            if isinstance(error, redis.ResponseError) and not passes:
                self._writer.refuse(ticket, error)
                self._loop.call(ticket.discard)
                return
            if not passes:
                self._loop.call(self._refuse, ticket, error)
                return
            if ticket.redelivered:
                # It did not die of this job.
                self._suspects.clear([(ticket.id, ticket.tag)])
            self._loop.call(ticket.put_back)
            self._closing.wait(_PAUSE)
        else:
            # An outcome that could not be handed on, to a link for example, is a failure.
            failed = answer[0] and isinstance(traced.outcome, Outcome)
            how: Ended = ("failed", "other") if failed else ended_by(traced.outcome)
            if self._spans is not None:
                self._spans.written([ticket], seconds, how)
            self._loop.call(self._end, ticket, answer, how)

    def _refuse(self, ticket: Ticket, error: Exception) -> None:
        """End a job that would fail the same way wherever it ran."""
        if ticket.close():
            state.task_ready(ticket.request)
            reason = f"what follows the job cannot be sent ({type(error).__name__})"
            failure = JobFailed("invalid_request", reason)
            self._failures.refuse(ticket.tag, ticket.id, failure, reason)
            self._counts.ended(ended_by(failure), [ticket])

    def _end(self, ticket: Ticket, answer: tuple[int, Any, float], how: Ended) -> None:
        if ticket.end(answer):
            self._counts.ended(how, [ticket])

    def _trace(self, traced: Traced) -> Any:
        ticket, outcome, encoding_format = traced
        tasks.ready[ticket.id] = (
            plain(payload(outcome, encoding_format)) if isinstance(outcome, Outcome) else outcome
        )
        token = puts_back.set(True)
        held = Following(ticket.id, ticket.lease) if ticket.lease is not None else None
        links = following.set(held)
        try:
            return ticket.target(*ticket.args)
        finally:
            following.reset(links)
            puts_back.reset(token)
            tasks.ready.pop(ticket.id, None)

    def _may_end(self, ticket: Ticket) -> bool:
        """Whether this delivery is to end its job: it is still leased, and the job has not ended.

        A worker that was stopped for longer than its lease finds that another one has the job; a
        job that was cancelled before it was fetched has ended.
        """
        lease = ticket.lease
        if lease is not None and not lease.store.client.hexists(lease.unacked_key, lease.tag):
            leases.lost([lease.tag])
            return False
        record = self._store.read(ticket.id)
        return record is None or not record.status.ended
