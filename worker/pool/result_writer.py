"""Complete jobs in bulk: one script for many, retried while Redis is away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import redis

from worker.contract import keys
from worker.contract.backoff import Backoff
from worker.contract.jobs import Status
from worker.pool.failures import is_connection_lost
from worker.pool.in_flight import InFlightJob
from worker.store.jobs import Completion, JobStore, LeaseKeys, Refused
from worker.transport import leases

logger = logging.getLogger(__name__)

#: Jobs, and bytes of their results, that one script completes: it blocks Redis meanwhile.
_JOBS_A_SCRIPT = 512
_BYTES_A_SCRIPT = 8 * 2**20
#: Seconds between two tries while Redis is away.
_BACKOFF = Backoff(0.05, 2.0)

#: Jobs of one script, each with how it ended.
Chunk = list[tuple[InFlightJob, Completion]]


class Written(NamedTuple):
    """The result of a chunk: jobs that it completed, and jobs that had ended before."""

    first: list[InFlightJob]
    known: list[InFlightJob]


class ResultWriter:
    """Completes jobs, however long Redis is away; they stay leased meanwhile.

    All methods belong to the engine's writer thread, except `stop`, and `refuse`, which the
    tracer's thread also calls. Any thread may read `blocked`.
    """

    def __init__(
        self,
        store: JobStore,
        queue: str,
        *,
        atomic: bool,
        observe: Callable[[Sequence[InFlightJob], float], None],
    ) -> None:
        """`atomic`: leases and results are on one server, so one script can end both.

        `observe` is called with the jobs of a script and the seconds that it took.
        """
        self._store = store
        self._dead_letters = keys.dead_letters(queue)
        self._atomic = atomic
        self._observe = observe
        self._stopping = threading.Event()
        #: Whether Redis refuses all outcomes, by its permissions or the type of a shared key.
        self.blocked = False

    def stop(self) -> None:
        """Stop retrying while Redis is away; the remaining jobs stay leased. Any thread."""
        self._stopping.set()

    def write(self, chunk: Chunk) -> Written | None:
        """Complete jobs. A job that Redis refuses to complete fails alone. None once stopped."""
        try:
            known, refused = self._complete(chunk), set[int]()
        except Refused as error:
            known, refused = error.known, error.places
            for place in refused:
                self.refuse(chunk[place][0], error)
        if known is None:
            return None
        written = Written([], [])
        for place, (in_flight, _) in enumerate(chunk):
            (written.known if place in known or place in refused else written.first).append(
                in_flight
            )
        return written

    def refuse(self, in_flight: InFlightJob, error: redis.ResponseError) -> None:
        """Fail a job after a final refusal by Redis; if that fails, dead-letter its message."""
        # The first word is Redis' code; the rest may hold keys.
        message = f"Redis refuses to store the result ({str(error).split(' ', 1)[0]})"
        logger.error("Job %s fails: %s", in_flight.id, message, extra={"job_id": in_flight.id})
        failed = Completion(
            in_flight.id, Status.FAILED, in_flight.tag, code="internal_error", message=message
        )
        try:
            self._store.complete([failed], self._lease_keys(in_flight))
        except redis.RedisError:
            logger.exception(
                "Job %s could not be failed; its message is a dead letter", in_flight.id
            )
            if in_flight.tag:
                leases.dead_letter(in_flight.tag, message, self._dead_letters)

    def _complete(self, part: Chunk) -> set[int] | None:
        """Places of jobs that had ended before; None once stopped. Raises Refused."""
        lease_keys = next((found for t, _ in part if (found := self._lease_keys(t))), None)
        pauses = iter(_BACKOFF)
        while True:
            began = time.perf_counter()
            try:
                known = self._store.complete([one for _, one in part], lease_keys)
            except Refused:
                raise
            except redis.RedisError as error:
                # No job is at fault: the call as such is refused, or Redis is away.
                self.blocked = not is_connection_lost(error)
                pause = next(pauses)
                logger.warning(
                    "%d results wait for Redis (%s); next try in %.2f s",
                    len(part),
                    type(error).__name__,
                    pause,
                )
                if self._stopping.wait(pause):
                    return None
            else:
                self.blocked = False
                self._observe([in_flight for in_flight, _ in part], time.perf_counter() - began)
                return known

    def _lease_keys(self, in_flight: InFlightJob) -> LeaseKeys | None:
        lease = in_flight.lease
        if lease is None or not self._atomic:
            return None
        return LeaseKeys(lease.unacked_key, lease.index_key)


def chunks_of(completions: Chunk) -> list[Chunk]:
    """Completions in parts that one script may write."""
    chunks: list[Chunk] = []
    size = 0
    for in_flight, completion in completions:
        size += len(completion.meta)
        if not chunks or len(chunks[-1]) == _JOBS_A_SCRIPT or size > _BYTES_A_SCRIPT:
            chunks.append([])
            size = len(completion.meta)
        chunks[-1].append((in_flight, completion))
    return chunks
