"""The record of a job in Redis: accepted, read, cancelled, listed.

A record is a hash (`keys.job`) with `status`, `created`, `started`, `finished` (seconds since the
epoch), `owner`, `model`, `total` and `done` texts, `tokens` and `bytes` (estimates that the ledger
holds for it), `stored` (bytes of its result in the ledger), `prompt_tokens`, `code` and `message`.
The outcome itself is Celery's result key; where the two differ, the outcome is right.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import orjson
import redis

from worker.contract import keys, listing, scripts
from worker.contract.endings import Ending, Endings
from worker.contract.jobs import Status
from worker.contract.lanes import PRIORITY_STEPS, Lane, lane_of, list_of, lists_of
from worker.contract.record import JobRecord, parse, with_outcome
from worker.contract.results import revoked_meta
from worker.contract.round_trips import Command, RoundTrips
from worker.contract.submissions import EACH_ITS_OWN, Acceptance, NewJob, Once

__all__ = ["Acceptance", "Depth", "Ending", "JobRecord", "JobStore", "NewJob", "Once"]

#: Seconds that a job may wait or run before its record is given up.
RECORD_TTL = 7 * 24 * 3600
#: Newest jobs of an owner that a listing reaches.
LISTED_JOBS = 100_000


class Depth(NamedTuple):
    """Messages: in each lane of the queue, in the hands of workers (of any queue), buried."""

    lanes: Mapping[Lane, int]
    taken: int
    dead_letters: int

    @property
    def queued(self) -> int:
        """Those of all lanes."""
        return sum(self.lanes.values())


class JobStore:
    """Records of jobs on one Redis database. Safe to share between threads."""

    def __init__(self, client: redis.Redis, queue: str, *, result_ttl: int) -> None:
        self.client = client
        self._queue = queue
        self._result_ttl = result_ttl
        self._ledger = keys.ledger(queue)
        #: For what many callers ask for at once.
        self._trips = RoundTrips(client)
        self._accept = self._trips.script(scripts.ACCEPT)
        self._endings = Endings(client, self._ledger, result_ttl)
        self._reconcile = client.register_script(scripts.RECONCILE)
        self._progress = client.register_script(scripts.PROGRESS)
        self._cancel = client.register_script(scripts.CANCEL)
        self._withdraw = client.register_script(scripts.WITHDRAW)
        self._release = self._trips.script(scripts.RELEASE)
        self._leave = self._trips.script(scripts.LEAVE)
        self._collect = self._trips.script(scripts.COLLECT)

    def accept(
        self,
        job: NewJob,
        message: bytes | None,
        *,
        max_tokens: int = 0,
        max_result_bytes: int = 0,
        max_owner_tokens: int = 0,
        lane_share: int = 0,
        once: Once = EACH_ITS_OWN,
    ) -> Acceptance:
        """Write the record and queue the message in one step, or say why not.

        With `message` None only the record is written, for a caller who sends the message next.
        `lane_share` are the tokens that one owner may have waiting in a lane; what is beyond goes
        to the next one. A bound of 0 is no bound. Raises redis.RedisError.
        """
        command = self._accept(
            [
                keys.job(job.id),
                keys.jobs(job.owner),
                self._ledger,
                once.key_of(job.owner),
                *(list_of(self._queue, lane.step) for lane in Lane),
            ],
            [
                job.id,
                job.created,
                job.owner,
                job.model,
                job.total,
                job.tokens,
                job.result_bytes,
                max_tokens,
                max_result_bytes,
                RECORD_TTL,
                LISTED_JOBS,
                once.fingerprint,
                once.seconds,
                self._result_ttl,
                message or b"",
                int(once.shared),
                job.lane.value,
                lane_share,
                max_owner_tokens,
            ],
        )
        verdict, job_id, level, *lane = self._trips.call(command)[0]
        return Acceptance(verdict.decode(), job_id.decode(), int(level), *map(Lane, lane))

    def withdraw(self, job_id: str) -> None:
        """Forget a job whose message could not be sent."""
        owner = cast("bytes", self.client.hget(keys.job(job_id), "owner") or b"").decode()
        self._withdraw(keys=[keys.job(job_id), keys.jobs(owner), self._ledger], args=[job_id])

    def release(self, job_id: str, seconds: int) -> None:
        """Keep an ended job for `seconds` at most: its caller has the result."""
        self._trips.call(self._release_command(job_id, seconds))

    def leave(self, job_id: str, owner: str) -> bool:
        """One of those who share a job goes. The last one takes its result along, if it has ended.

        Returns whether it has not ended and nobody shares it any more.
        """
        command = self._leave(self._keys_to_leave(job_id, owner), [job_id])
        return bool(self._trips.call(command)[0])

    def read_and_leave(self, job_id: str, owner: str) -> tuple[JobRecord | None, bytes | None]:
        """The record of a shared job and its stored outcome; `leave` is done where it has ended."""
        command = self._collect(self._keys_to_leave(job_id, owner), [job_id])
        flat, raw = self._trips.call(command)[0]
        return _with_outcome(job_id, dict(zip(flat[::2], flat[1::2], strict=True)), raw)

    def queued_tokens(self) -> int:
        """Tokens accepted and not ended, estimated at acceptance."""
        held = cast("bytes | None", self.client.hget(self._ledger, "tokens"))
        # Below zero once jobs end that `reconcile` had forgotten.
        return max(int(held or 0), 0)

    def depth(self, broker: redis.Redis | None = None) -> Depth:
        """What lies in the queue; `broker` where that is on another server. Raises RedisError."""
        with (broker or self.client).pipeline(transaction=False) as pipe:
            for step in PRIORITY_STEPS:
                pipe.llen(list_of(self._queue, step))
            pipe.hlen(keys.LEASED)
            pipe.llen(keys.dead_letters(self._queue))
            *lengths, taken, dead_letters = pipe.execute()
        lanes = dict.fromkeys(Lane, 0)
        for step, length in zip(PRIORITY_STEPS, lengths, strict=True):
            lanes[lane_of(step)] += length
        return Depth(lanes, taken, dead_letters)

    def read(self, job_id: str) -> JobRecord | None:
        """The record of a job, or None where nobody submitted it or its time has passed."""
        return self.read_many([job_id])[0]

    def read_with_outcome(self, job_id: str) -> tuple[JobRecord | None, bytes | None]:
        """The record of a job and its stored outcome as JSON text, in one round trip."""
        fields, raw = self._trips.call(*_reading(job_id))
        return _with_outcome(job_id, fields, raw)

    def read_and_release(self, job_id: str, seconds: int) -> tuple[JobRecord | None, bytes | None]:
        """The same; a success is kept for `seconds` at most then, as by `release`."""
        release = self._release_command(job_id, seconds, successes=True)
        fields, raw, _ = self._trips.call(*_reading(job_id), release)
        return _with_outcome(job_id, fields, raw)

    def read_many(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Records in the order of `job_ids`, in one round trip where none has to be repaired."""
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(keys.job(job_id))
                pipe.exists(keys.result(job_id))
            answers = pipe.execute()
        return [
            self._record(job_id, fields, bool(has_result))
            for job_id, fields, has_result in zip(job_ids, answers[::2], answers[1::2], strict=True)
        ]

    def finish(self, endings: Sequence[Ending], lease_keys: Sequence[str] = ("", "")) -> None:
        """End jobs, each once, and the leases they had; see `Endings.end`."""
        self._endings.end(endings, lease_keys)

    def reconcile(self) -> None:
        """Put the ledger right where nothing waits and nothing runs. Raises redis.RedisError.

        A job between its record and its message may be missing from the ledger afterwards, which
        ends with the next time.
        """
        self._reconcile(keys=[self._ledger, keys.LEASED, *lists_of(self._queue)])

    def progress(self, jobs: Sequence[tuple[str, float, int, int]]) -> None:
        """Tell of running jobs: id, time started, texts done and total; ended ones stay so.

        Raises redis.RedisError.
        """
        arguments: list[Any] = [RECORD_TTL, keys.EVENTS, keys.RESULT_PREFIX]
        for job in jobs:
            arguments += job
        self._progress(args=arguments)

    def outcome(self, job_id: str) -> dict[str, Any] | None:
        """The stored outcome in Celery's format, or None while there is none."""
        raw = self.raw_outcome(job_id)
        return None if raw is None else cast("dict[str, Any]", orjson.loads(raw))

    def raw_outcome(self, job_id: str) -> bytes | None:
        """The stored outcome as JSON text, or None while there is none."""
        return cast("bytes | None", self.client.get(keys.result(job_id)))

    def cancel(self, job_id: str) -> bool:
        """End a job as cancelled unless it has ended. Returns whether it was this call."""
        answer = self._cancel(
            keys=[keys.job(job_id), keys.result(job_id), self._ledger],
            args=[job_id, time.time(), revoked_meta(job_id), self._result_ttl, keys.EVENTS],
        )
        return bool(answer)

    def page(
        self, owner: str, *, limit: int, after: str | None = None, status: Status | None = None
    ) -> tuple[list[JobRecord], str | None]:
        """Up to `limit` jobs of an owner, newest first, and the `after` of the next page.

        None where there are no more. A page of one status may hold fewer than `limit`, even none,
        and still have a next one. Raises KeyError where `after` is not in the owner's listing.
        """
        return listing.page_of_many(
            self.client,
            keys.jobs(owner),
            self.read_many,
            limit=limit,
            after=after,
            wanted=lambda record: status in (None, record.status),
        )

    def _release_command(self, job_id: str, seconds: int, *, successes: bool = False) -> Command:
        """Of an ended job, or of a success only."""
        given = [keys.job(job_id), keys.result(job_id), self._ledger]
        return self._release(given, [seconds, int(successes)])

    def _keys_to_leave(self, job_id: str, owner: str) -> list[str]:
        return [keys.job(job_id), keys.result(job_id), self._ledger, keys.jobs(owner)]

    def _record(
        self, job_id: str, fields: dict[bytes, bytes], has_result: bool
    ) -> JobRecord | None:
        if not fields and not has_result:
            return None
        record = parse(job_id, fields)
        if record.status.ended or not has_result:
            return record
        # Ended by Celery itself: revoked, another pool, or a job with links.
        outcome = self.outcome(job_id)
        return record if outcome is None else with_outcome(record, outcome)


def _reading(job_id: str) -> tuple[Command, Command]:
    return ("HGETALL", keys.job(job_id)), ("GET", keys.result(job_id))


def _with_outcome(
    job_id: str, fields: dict[bytes, bytes], raw: bytes | None
) -> tuple[JobRecord | None, bytes | None]:
    """A record put right by its outcome, and the outcome; None where there is nothing."""
    if not fields and raw is None:
        return None, None
    record = parse(job_id, fields)
    if raw is not None and not record.status.ended:
        record = with_outcome(record, orjson.loads(raw))
    return record, raw
