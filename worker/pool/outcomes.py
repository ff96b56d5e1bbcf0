"""What becomes of jobs: plain ones in bulk, the others through Celery's own tracer."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from worker import tasks
from worker.contract import keys
from worker.contract.errors import JobFailed
from worker.contract.jobs import Status
from worker.contract.results import Outcome, payload, plain, success_meta
from worker.contract.store import Ending, JobStore
from worker.engine import Job
from worker.pool.loop import LoopCalls
from worker.pool.requests import Ticket
from worker.transport import leases

logger = logging.getLogger(__name__)

#: Jobs, and bytes of their results, that one script ends: Redis serves nobody else meanwhile.
_JOBS_A_SCRIPT = 512
_BYTES_A_SCRIPT = 8 * 2**20
#: Seconds between two tries while Redis is away.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
#: Seconds that the count of a job's crashes is kept.
_ATTEMPTS_TTL = 24 * 3600
#: Exit status of a worker that cannot go on; its supervisor starts another.
EX_SOFTWARE = 70


class Outcomes:
    """The engine's sink inside a worker. See `worker.engine.core.Sink` for which thread calls what.

    Writes are repeated while Redis is away; the jobs stay leased and the engine goes on until its
    own bound. Celery's tracer, which blocks, runs on a thread of its own.
    """

    def __init__(
        self, app: Celery, store: JobStore, loop: LoopCalls, *, atomic: bool, max_attempts: int
    ) -> None:
        self._app = app
        self._store = store
        self._loop = loop
        #: Whether leases and results are on one server, so that one script can end both.
        self._atomic = atomic
        self._max_attempts = max_attempts
        self._tracer = ThreadPoolExecutor(1, thread_name_prefix="embedq-trace")
        self._stopping = threading.Event()
        #: Requests handed over and not ended, by message; owned by the loop's thread.
        self.open: dict[Ticket, None] = {}

    # -- the engine's sink ------------------------------------------------------------------

    def admit(self, job: Job) -> bool:
        """Revoked and expired jobs end here; one that may kill the worker is counted first."""
        ticket: Ticket = job.owner
        if ticket.overdue():
            self._loop.call(self._revoke, ticket)
            return False
        return not job.alone or self._admit_suspect(ticket)

    def started(self, jobs: Sequence[Job]) -> None:
        """Celery shows them as active."""
        self._loop.call(_accept, [job.owner for job in jobs])

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
        endings: list[tuple[Ticket, Ending]] = []
        for job in jobs:
            ticket: Ticket = job.owner
            outcome = job.outcome()
            if isinstance(outcome, Outcome) and ticket.is_plain(self._app.conf):
                endings.append((ticket, self._ending(ticket, job, outcome)))
            else:
                self.trace(ticket, outcome, job)
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

    def fail(self, ticket: Ticket, error: JobFailed | SoftTimeLimitExceeded) -> None:
        """End a job that never reached the engine, or was taken out of it."""
        self.trace(ticket, error, None)

    def trace(
        self, ticket: Ticket, outcome: Outcome | JobFailed | SoftTimeLimitExceeded, job: Job | None
    ) -> None:
        """End a job the way Celery does: signals, links, chords and all."""
        self._tracer.submit(self._run_tracer, ticket, outcome, job)

    def close(self, seconds: float) -> None:
        """Stop trying to reach a Redis that is away; finish what the tracer runs."""
        timer = threading.Timer(seconds, self._stopping.set)
        timer.daemon = True
        timer.start()
        self._tracer.shutdown(wait=True, cancel_futures=False)
        timer.cancel()
        self._stopping.set()

    # -- bulk -------------------------------------------------------------------------------

    def _ending(self, ticket: Ticket, job: Job, outcome: Outcome) -> Ending:
        meta = b""
        if ticket.wants_result:
            result = payload(outcome, job.options.encoding_format)
            meta = success_meta(ticket.id, result, ticket.meta())
        return Ending(
            ticket.id,
            Status.SUCCEEDED,
            tag=ticket.tag if self._atomic else "",
            meta=meta,
            prompt_tokens=outcome.prompt_tokens,
            texts=len(job.texts),
            started=job.started_at or 0.0,
        )

    def _write(self, chunk: Sequence[tuple[Ticket, Ending]]) -> bool:
        """Store a chunk, however long Redis is away. False once the worker stops."""
        lease = next((t.lease for t, _ in chunk if t.lease is not None), None)
        lease_keys = (lease.unacked_key, lease.index_key) if lease is not None else ("", "")
        pause = _FIRST_PAUSE
        while True:
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
                return True

    def _end(self, tickets: Sequence[Ticket]) -> None:
        now = time.monotonic()
        for ticket in tickets:
            self.open.pop(ticket, None)
            job = ticket.job
            shown = f"<vectors of {len(job.texts)} texts>" if job is not None else ""
            ticket.end((0, shown, now - ticket.started))

    # -- general ----------------------------------------------------------------------------

    def _run_tracer(
        self, ticket: Ticket, outcome: Outcome | JobFailed | SoftTimeLimitExceeded, job: Job | None
    ) -> None:
        try:
            if ticket.redelivered and self._has_ended(ticket.id):
                # Its links were dispatched when it ended; only the message is left.
                self._loop.call(self._end_with, ticket, (0, "", 0.0))
                return
            tasks.ready[ticket.id] = (
                plain(payload(outcome, job.options.encoding_format))
                if isinstance(outcome, Outcome) and job is not None
                else outcome
            )
            answer = ticket.target(*ticket.args)
        except Exception:
            # Not the job's own failure, which the tracer answers: its outcome was not stored.
            logger.exception("Job %s could not be ended; it is put back", ticket.id)
            self._loop.call(self._requeue, ticket)
        else:
            self._loop.call(self._end_with, ticket, answer)
        finally:
            tasks.ready.pop(ticket.id, None)

    def _has_ended(self, job_id: str) -> bool:
        record = self._store.read(job_id)
        return record is not None and record.status.ended

    def _end_with(self, ticket: Ticket, answer: tuple[int, Any, float]) -> None:
        self.open.pop(ticket, None)
        ticket.end(answer)

    def _requeue(self, ticket: Ticket) -> None:
        self.open.pop(ticket, None)
        ticket.request.reject(requeue=True)

    def _revoke(self, ticket: Ticket) -> None:
        self.open.pop(ticket, None)
        # Celery's own check, which announces it, stores REVOKED and sends `task_revoked`.
        ticket.request.revoked()

    def close_revoked(self, job_id: str) -> None:
        """Close the record of a job that Celery has announced as revoked. Loop's thread."""
        self._tracer.submit(self._store_quietly, Ending(job_id, Status.CANCELLED))

    def close_failed(self, ticket: Ticket, code: str, message: str) -> None:
        """Close the record of a job that Celery has stored as failed. Loop's thread."""
        self.open.pop(ticket, None)
        ending = Ending(ticket.id, Status.FAILED, code=code, message=message)
        self._tracer.submit(self._store_quietly, ending)

    def _store_quietly(self, ending: Ending) -> None:
        try:
            self._store.finish([ending])
        except redis.RedisError as error:
            # The outcome is stored, and the record is read with it.
            logger.warning("A record was not closed: %s", type(error).__name__)

    # -- poison -----------------------------------------------------------------------------

    def _admit_suspect(self, ticket: Ticket) -> bool:
        """Count a job that came back from a dead worker, right before it runs alone."""
        try:
            with self._store.client.pipeline() as pipe:
                pipe.incr(keys.attempts(ticket.id))
                pipe.expire(keys.attempts(ticket.id), _ATTEMPTS_TTL)
                attempts = pipe.execute()[0]
        except redis.RedisError as error:
            logger.warning("An attempt was not counted: %s", type(error).__name__)
            return True
        if attempts <= self._max_attempts:
            return True
        message = f"the worker died {attempts - 1} times while it ran this job alone"
        logger.error("Job %s is poisoned: %s", ticket.id, message)
        self._loop.call(self._bury, ticket, JobFailed("poisoned", message))
        return False

    def _bury(self, ticket: Ticket, error: JobFailed) -> None:
        self.open.pop(ticket, None)
        if ticket.tag:
            leases.bury(
                ticket.tag, str(error), keys.dead_letters(self._app.conf.task_default_queue)
            )
        self.trace(ticket, error, None)


def _accept(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.accept()


def _chunks(
    endings: Sequence[tuple[Ticket, Ending]],
) -> list[list[tuple[Ticket, Ending]]]:
    """Endings in parts that one script may write."""
    chunks: list[list[tuple[Ticket, Ending]]] = []
    size = 0
    for ticket, ending in endings:
        size += len(ending.meta)
        if not chunks or len(chunks[-1]) == _JOBS_A_SCRIPT or size > _BYTES_A_SCRIPT:
            chunks.append([])
            size = len(ending.meta)
        chunks[-1].append((ticket, ending))
    return chunks
