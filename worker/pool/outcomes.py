"""What becomes of jobs: plain ones end in bulk, the others through Celery's own tracer."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import redis
from celery import Celery

from worker.contract import keys
from worker.contract.errors import JobFailed
from worker.contract.jobs import Status
from worker.contract.results import Outcome, payload, success_meta
from worker.contract.store import Ending, JobStore
from worker.engine import Job
from worker.pool.counts import CANCELLED, EXPIRED, SUCCEEDED, JobCounts
from worker.pool.loop import LoopCalls
from worker.pool.requests import heard_by_signals, overdue
from worker.pool.spans import JobSpans
from worker.pool.suspects import Suspects
from worker.pool.threads import EX_SOFTWARE, DaemonThreads
from worker.pool.tickets import Burial, Ticket
from worker.pool.tracing import Tracer
from worker.transport import leases

logger = logging.getLogger(__name__)

#: Jobs, and bytes of their results, that one script ends: Redis serves nobody else meanwhile.
_JOBS_A_SCRIPT = 512
_BYTES_A_SCRIPT = 8 * 2**20
#: Seconds between two tries while Redis is away.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0

#: Jobs of one script, each with how it ended.
Chunk = list[tuple[Ticket, Ending]]


class Outcomes:
    """The engine's sink inside a worker. See `worker.engine.Sink` for which thread calls what.

    Writes are repeated while Redis is away; the jobs stay leased and the engine goes on until its
    own bound.
    """

    def __init__(
        self,
        app: Celery,
        store: JobStore,
        loop: LoopCalls,
        *,
        atomic: bool,
        max_attempts: int,
        spans: JobSpans | None = None,
    ) -> None:
        self._app = app
        self._store = store
        self._loop = loop
        #: Whether leases and results are on one server, so that one script can end both.
        self._atomic = atomic
        #: Whether Celery stores no more than the result. Its settings are slow to read.
        self._bulk = not (app.conf.result_extended or app.conf.task_track_started)
        self._suspects = Suspects(store, max_attempts)
        self._stopping = threading.Event()
        self.counts = JobCounts()
        self._spans = spans
        self._records = DaemonThreads(1, "embedq-records", self._close_record)
        self.tracer = Tracer(store, loop, self.counts, spans, self._suspects)

    # -- the engine's sink ------------------------------------------------------------------

    def admit(self, job: Job) -> bool:
        """Revoked and expired jobs end here, and those that workers die of."""
        ticket: Ticket = job.owner
        if overdue(ticket.request):
            self._loop.call(ticket.revoke)
            return False
        deaths = self._suspects.begin(job.id, ticket.tag) if job.alone else 0
        if deaths:
            self._fail_poisoned(ticket, deaths)
        return not deaths

    def started(self, jobs: Sequence[Job]) -> None:
        """Celery shows them as active."""
        tickets = [job.owner for job in jobs]
        self.counts.started(tickets)
        if self._spans is not None:
            self._spans.started(tickets)
        self._loop.call(_accept, tickets)

    def progressed(self, jobs: Sequence[Job]) -> None:
        """Tell who watches a large job. Not worth a retry: the next batch tells more."""
        try:
            self._store.progress(
                [(job.id, job.started_at or 0.0, job.done, len(job.texts)) for job in jobs]
            )
        except redis.RedisError as error:
            logger.warning("Progress was not written: %s", type(error).__name__)

    def finished(self, jobs: Sequence[Job]) -> None:
        """Store outcomes and end leases; what is not plain goes to the tracer."""
        endings: Chunk = []
        in_bulk = self._bulk and not heard_by_signals()
        done_at = datetime.now(UTC)
        for job in jobs:
            ticket: Ticket = job.owner
            outcome = job.outcome()
            if isinstance(outcome, Outcome) and in_bulk and ticket.is_plain:
                endings.append((ticket, self._ending(ticket, job, outcome, done_at)))
            else:
                self.tracer.end(ticket, outcome, job.options.encoding_format)
        for chunk in _chunks(endings):
            if not self._write(chunk):
                return
            tickets = [ticket for ticket, _ in chunk]
            if self._atomic:
                leases.forget([ticket.tag for ticket in tickets if ticket.tag])
            self._loop.call(self._end, tickets)

    def crashed(self, error: BaseException) -> None:
        """Nothing will be encoded any more: end the process, its jobs come back by lease."""
        logger.critical("The engine died, the worker stops: %r", error, exc_info=error)
        logging.shutdown()
        os._exit(EX_SOFTWARE)

    # -- for the pool -----------------------------------------------------------------------

    def close_revoked(self, job_id: str, *, expired: bool) -> None:
        """Close the record of a job that Celery has announced as revoked. Does not block."""
        self.counts.dropped(EXPIRED if expired else CANCELLED)
        self._records.submit(job_id)

    def give_up_writing(self) -> None:
        """Stop trying to reach a Redis that is away; what was not written stays leased."""
        self._stopping.set()

    def close(self, seconds: float) -> None:
        """Finish what the tracer runs, in so many seconds at most."""
        self.give_up_writing()
        deadline = time.monotonic() + seconds
        self.tracer.close(seconds)
        self._records.wait(max(deadline - time.monotonic(), 0.0))
        self._records.close()

    def give_back(self, tickets: Sequence[Ticket]) -> None:
        """Somebody else is to run these; not their fault, so it counts for nothing."""
        self._suspects.clear(
            (ticket.id, ticket.tag)
            for ticket in tickets
            if ticket.job is not None and ticket.job.alone
        )
        leases.release([ticket.tag for ticket in tickets if ticket.tag])
        for ticket in tickets:
            ticket.close()
            if not ticket.tag:
                ticket.request.reject(requeue=True)

    # -- bulk -------------------------------------------------------------------------------

    def _ending(self, ticket: Ticket, job: Job, outcome: Outcome, done_at: datetime) -> Ending:
        meta = b""
        if ticket.wants_result:
            result = payload(outcome, job.options.encoding_format)
            meta = success_meta(ticket.id, result, ticket.meta(), done_at)
        return Ending(
            ticket.id,
            Status.SUCCEEDED,
            tag=ticket.tag if self._atomic else "",
            meta=meta,
            prompt_tokens=outcome.prompt_tokens,
            texts=len(job.texts),
            started=job.started_at or 0.0,
        )

    def _write(self, chunk: Chunk) -> bool:
        """Store a chunk, however long Redis is away. False once the worker stops."""
        lease = next((t.lease for t, _ in chunk if t.lease is not None), None)
        lease_keys = (lease.unacked_key, lease.index_key) if lease is not None else ("", "")
        pause = _FIRST_PAUSE
        while True:
            began = time.perf_counter()
            try:
                self._store.finish([ending for _, ending in chunk], lease_keys)
            except redis.RedisError as error:
                logger.warning(
                    "%d results wait for Redis (%s); next try in %.2f s",
                    len(chunk),
                    type(error).__name__,
                    pause,
                )
                if self._stopping.wait(pause):
                    return False
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                seconds = time.perf_counter() - began
                self.counts.written(seconds)
                if self._spans is not None:
                    self._spans.written([ticket for ticket, _ in chunk], seconds)
                return True

    def _end(self, tickets: Sequence[Ticket]) -> None:
        self.counts.ended(SUCCEEDED, _told(tickets, settled=self._atomic))

    # -- one by one -------------------------------------------------------------------------

    def _fail_poisoned(self, ticket: Ticket, deaths: int) -> None:
        message = f"the worker died {deaths} times while it ran this job alone"
        logger.error("Job %s is poisoned: %s", ticket.id, message, extra={"job_id": ticket.id})
        ticket.burial = Burial(message, keys.dead_letters(self._app.conf.task_default_queue))
        self.tracer.end(ticket, JobFailed("poisoned", message))

    def _close_record(self, job_id: str) -> None:
        try:
            self._store.finish([Ending(job_id, Status.CANCELLED)])
        except redis.RedisError as error:
            # The outcome is stored, and the record is read with it.
            logger.warning("A record was not closed: %s", type(error).__name__)


def _accept(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.accept()


def _told(tickets: Sequence[Ticket], *, settled: bool) -> list[Ticket]:
    """Tell Celery that jobs have succeeded, each for itself; those that were open."""
    now = time.monotonic()
    told = []
    for ticket in tickets:
        try:
            if ticket.succeed(now, settled=settled):
                told.append(ticket)
        except Exception:
            # A listener's, for example; the outcome is stored.
            logger.exception("Celery could not be told that job %s succeeded", ticket.id)
    return told


def _chunks(endings: Chunk) -> list[Chunk]:
    """Endings in parts that one script may write."""
    chunks: list[Chunk] = []
    size = 0
    for ticket, ending in endings:
        size += len(ending.meta)
        if not chunks or len(chunks[-1]) == _JOBS_A_SCRIPT or size > _BYTES_A_SCRIPT:
            chunks.append([])
            size = len(ending.meta)
        chunks[-1].append((ticket, ending))
    return chunks
