"""Jobs in Redis: submitted and completed; `records` reads and lists them.

A record is a hash (`keys.job`). Its fields:

- `status`, `owner`, `queue`, `lane`, `model`, `total` and `done` texts
- `created`, `started`, `finished`: seconds since the epoch by Redis' clock
- `tokens`, `bytes`, `size`, `share`: its parts in the counters
- `stored`, `kept_until`: the parts of its result
- `prompt_tokens`, `code`, `message`
- `call`: the call that submitted it; `by`: the delivery or call that ended it
- `stands`: set if a success of an earlier run under the same id stands
- `callers`, `caller:…`: the callers of a shared job

The outcome itself is Celery's result key. `submit` and `complete` each change record and outcome
together, by one script.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple, cast

import orjson
import redis

from worker.contract import keys
from worker.contract.jobs import Status
from worker.contract.lanes import PRIORITY_STEPS, Lane, lane_of, list_of, lists_of
from worker.contract.results import revoked_meta
from worker.store import scripts
from worker.store.clock import Clock
from worker.store.completions import Completion, Completions, LeaseKeys, Refused
from worker.store.lost_jobs import SWEPT, LostJobs
from worker.store.outbox import Addressed, MessageOutbox
from worker.store.pipeline import Command, SharedPipeline
from worker.store.records import JobRecord, JobRecords
from worker.store.submissions import (
    EACH_ITS_OWN,
    UNLIMITED,
    Acceptance,
    Deduplication,
    JobRequest,
    QueueCapacity,
    new_call,
)

__all__ = [
    "Acceptance",
    "Completion",
    "Deduplication",
    "Depth",
    "JobRecord",
    "JobRequest",
    "JobStore",
    "LeaseKeys",
    "QueueCapacity",
    "Refused",
]

logger = logging.getLogger(__name__)

#: Seconds that a job may wait or run before its record expires.
RECORD_TTL = 7 * 24 * 3600
#: Newest jobs of an owner that a listing reaches.
LISTED_JOBS = 100_000
#: Seconds in which a caller must send the message of its job, if it sends it itself.
_SENT_LATER = 600


class Depth(NamedTuple):
    """Messages: in each lane of the queue, leased by workers (of any queue), dead letters."""

    lanes: Mapping[Lane, int]
    taken: int
    dead_letters: int

    @property
    def queued(self) -> int:
        """Messages of all lanes."""
        return sum(self.lanes.values())


class JobStore(JobRecords):
    """Jobs of one queue on one Redis database. Safe to share between threads.

    Every method raises redis.RedisError.
    """

    def __init__(
        self,
        client: redis.Redis,
        queue: str,
        *,
        result_ttl: int,
        broker: redis.Redis | None = None,
    ) -> None:
        """`broker`: the server of the messages, None if it is `client`."""
        trips, completions = SharedPipeline(client), Completions(client, queue, result_ttl)
        super().__init__(client, queue, trips, completions)
        self.client = client
        #: The server of the messages; by default `client`.
        self.broker = broker or client
        self.clock = Clock(client)
        self._open = keys.open_jobs(queue)
        self._outbox = MessageOutbox(client, self.broker, queue)
        self._lost = LostJobs(client, self.broker, queue)
        self._submit = trips.script(scripts.SUBMIT)
        self._result_ttl = result_ttl
        self._progress = client.register_script(scripts.PROGRESS)
        self._note = client.register_script(scripts.NOTE)
        self._withdraw = client.register_script(scripts.WITHDRAW)

    # -- submit -----------------------------------------------------------------------------

    def submit(
        self,
        job: JobRequest,
        capacity: QueueCapacity = UNLIMITED,
        *,
        deduplicate: Deduplication = EACH_ITS_OWN,
        later: float = _SENT_LATER,
    ) -> Acceptance:
        """Accept a job, or return the reason why not. Only this and `submit_many` accept jobs.

        Record and message are written in one step. If the broker is another server, the message
        stays in the outbox until the broker has it. If this process dies before, a worker or a
        repeated submission sends it. A job without a message is sent by the caller within `later`
        seconds, or withdrawn.
        """
        command = self._submission(job, capacity, deduplicate, later)
        answer = self._trips.call(command)[0]
        if answer[0] == b"lost":
            # The message of an earlier, equal job was purged.
            self.cancel(answer[1].decode())
            answer = self._trips.call(command)[0]
        acceptance, unsent = _parse_acceptance(answer)
        if unsent:
            self._outbox.send_entry(acceptance.job_id, unsent)
        else:
            self._send([job], [acceptance])
        return acceptance

    def submit_many(self, jobs: Sequence[JobRequest]) -> None:
        """Accept jobs of any number in one round trip, each as by `submit`.

        If that raises, some may have been accepted.
        """
        answers = self._trips.call(*(self._submission(job) for job in jobs))
        self._send(jobs, [_parse_acceptance(answer)[0] for answer in answers])

    def withdraw(self, job_id: str) -> None:
        """Remove a job after a failure to send its message."""
        owner = cast("bytes", self.client.hget(keys.job(job_id), "owner") or b"").decode()
        given = [keys.job(job_id), keys.jobs(self._queue, owner), self._ledger]
        self._withdraw(keys=[*given, self._open, self._outbox.key], args=[job_id])

    # -- complete ---------------------------------------------------------------------------

    def complete(
        self,
        completions: Sequence[Completion],
        lease_keys: LeaseKeys | None = None,
        *,
        waiting: bool = False,
        follow: Sequence[Addressed] = (),
    ) -> set[int]:
        """Complete jobs; see `Completions.complete`. No job ends in another way.

        The messages of `follow` go to the broker, through the outbox if that is another server.
        """
        known = self._completions.complete(
            completions, lease_keys, waiting=waiting, follow=follow, outbox=self._outbox.key
        )
        if follow and not known:
            names = (f"{completions[0].id}:{number}" for number in count(1))
            self._outbox.send(dict(zip(names, follow, strict=False)))
        return known

    def cancel(self, *job_ids: str) -> bool:
        """Complete jobs as cancelled, unless they have ended. Returns whether any was cancelled."""
        # An outcome that was stored apart stands.
        self.read_many(job_ids)
        call = new_call()
        ends = [
            Completion(job_id, Status.CANCELLED, tag=call, meta=revoked_meta(job_id))
            for job_id in job_ids
        ]
        try:
            known = self.complete(ends, waiting=True)
        except Refused as error:
            known = error.known | error.places
        return len(known) < len(ends)

    def cancelled_since(self, when: float) -> list[tuple[str, float]]:
        """Jobs that were cancelled after a time of Redis' clock; their messages may still wait."""
        key, after = keys.cancelled(self._queue), cast("Any", f"({when!r}")
        found = self.client.zrange(key, after, cast("Any", "+inf"), byscore=True, withscores=True)
        return [(raw.decode(), score) for raw, score in cast("list[tuple[bytes, float]]", found)]

    def progress(self, jobs: Sequence[tuple[str, float, int, int, int]]) -> None:
        """Write the progress of running jobs; ended jobs do not change.

        Each job: its id, the time of its first batch by the host's clock, texts done and total, and
        its tokens as far as they are known, else 0.
        """
        now = time.time()
        given = {
            "queue": self._queue,
            "record_ttl": RECORD_TTL,
            "jobs": [(job_id, max(now - began, 0.0), *rest) for job_id, began, *rest in jobs],
        }
        self._progress(keys=[self._ledger], args=[orjson.dumps(given)])

    def note(self, job_id: str, meta: bytes) -> None:
        """Store a state that is no outcome, in Celery's format, unless the job has ended."""
        given = [keys.job(job_id), keys.result(job_id)]
        self._note(keys=given, args=[meta, self._result_ttl])

    # -- the queue --------------------------------------------------------------------------

    def queued_tokens(self) -> int:
        """Tokens accepted and not ended, estimated at acceptance."""
        held = cast("bytes | None", self.client.hget(self._ledger, "tokens"))
        return max(int(held or 0), 0)

    def depth(self) -> Depth:
        """Return the numbers of queued messages, leased messages and dead letters."""
        with self.broker.pipeline(transaction=False) as pipe:
            for step in PRIORITY_STEPS:
                pipe.llen(list_of(self._queue, step))
            pipe.hlen(keys.LEASED)
            pipe.llen(keys.dead_letters(self._queue))
            *lengths, taken, dead_letters = pipe.execute()
        lanes = dict.fromkeys(Lane, 0)
        for step, length in zip(PRIORITY_STEPS, lengths, strict=True):
            lanes[lane_of(step)] += length
        return Depth(lanes, taken, dead_letters)

    def sweep(self) -> None:
        """Cancel jobs without a message, after a purge, and send overdue messages of the outbox.

        Each worker calls this every few seconds, on one thread.
        """
        self._outbox.send_overdue()
        while True:
            lost = self._outbox.without(self._lost.find())
            if lost:
                logger.warning("%d jobs are cancelled: their messages were purged", len(lost))
                self.cancel(*lost)
            if len(lost) < SWEPT:
                return

    # -- helpers ----------------------------------------------------------------------------

    def _submission(
        self,
        job: JobRequest,
        capacity: QueueCapacity = UNLIMITED,
        deduplicate: Deduplication = EACH_ITS_OWN,
        later: float = _SENT_LATER,
    ) -> Command:
        lists = [list_of(self._queue, lane.step) for lane in Lane]
        lists += [name for name in lists_of(self._queue) if name not in lists]
        given = {
            "id": job.id,
            "call": job.call,
            "owner": job.owner,
            "queue": self._queue,
            "model": job.model,
            "total": job.total,
            "tokens": job.tokens,
            "bytes": job.result_bytes,
            "lane": job.lane.value,
            "later": 0 if job.message else later,
            "capacity": capacity._asdict(),
            "listed": LISTED_JOBS,
            "record_ttl": RECORD_TTL,
            "shared": deduplicate.shared,
            "fingerprint": deduplicate.fingerprint,
            "remembered": deduplicate.seconds,
        }
        return self._submit(
            [
                *(keys.job(job.id), keys.jobs(self._queue, job.owner), self._ledger, self._open),
                *(self._outbox.key, deduplicate.key_of(self._queue, job.owner), keys.LEASED),
                *lists,
            ],
            [orjson.dumps(given), job.message or b""],
        )

    def _send(self, jobs: Sequence[JobRequest], acceptances: Sequence[Acceptance]) -> None:
        """Send the messages of accepted jobs to the broker; if that fails, withdraw these jobs."""
        entries = {
            found.job_id: (list_of(self._queue, found.lane.step), job.message)
            for job, found in zip(jobs, acceptances, strict=True)
            if found.verdict == "accepted" and job.message
        }
        try:
            self._outbox.send(entries)
        except redis.RedisError:
            for job_id in entries:
                self.withdraw(job_id)
            raise


def _parse_acceptance(answer: Sequence[Any]) -> tuple[Acceptance, bytes]:
    """Parse the script's answer: the acceptance, and an earlier job's unsent message or b""."""
    verdict, job_id, level, lane, created, unsent = answer
    created_at = float(created) if created else None
    found = Acceptance(verdict.decode(), job_id.decode(), int(level), Lane(lane), created_at)
    return found, unsent
