"""Complete many jobs at once by one atomic Lua script."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, cast

import orjson
import redis

from worker.contract import keys
from worker.contract.jobs import Status
from worker.contract.results import failure_of, summary_of
from worker.store.outbox import Addressed
from worker.store.scripts import COMPLETE

#: Bytes beyond `maxmemory` that outcomes may take on a full server (a twentieth of `maxmemory`, if
#: that is more), and jobs that one call then completes. Leases use some of these bytes, too: a
#: lease is larger than its message was.
RESERVE = 8 * 2**20
_ENDED_FROM_RESERVE = 16


class Completion(NamedTuple):
    """How a job ended.

    `meta` is the outcome to store, empty if the result is ignored. `tag` names the delivery or the
    call that ended the job, so that a repeat is recognized; '' if the call is never repeated.
    `started` is the time of its first batch by the host's clock, in seconds since the epoch, 0 if
    it never ran.
    """

    id: str
    status: Status
    tag: str = ""
    meta: bytes = b""
    prompt_tokens: int = 0
    texts: int = 0
    code: str = ""
    message: str = ""
    started: float = 0.0
    model: str = ""

    @classmethod
    def of_celery(cls, job_id: str, state: str, result: Any, meta: bytes = b"") -> Completion:
        """Convert an outcome of Celery: a result, or an exception as a mapping."""
        status = Status.of_celery(state)
        if status is Status.SUCCEEDED and (summary := summary_of(result)) is not None:
            return cls(
                job_id,
                status,
                meta=meta,
                prompt_tokens=summary.prompt_tokens or 0,
                texts=summary.texts,
                model=summary.model or "",
            )
        if status is Status.FAILED:
            failure = failure_of(result)
            return cls(job_id, status, meta=meta, code=failure.code, message=failure.message)
        return cls(job_id, status, meta=meta)


class LeaseKeys(NamedTuple):
    """Full names of the hash and the sorted set that hold leases on the same server."""

    messages: str
    deadlines: str


class Refused(redis.ResponseError):
    """Redis refuses to complete some jobs: their records or outcomes are keys of another type.

    The other jobs of the call are completed. `places` are the indexes of the refused jobs; `known`
    is the result of `Completions.complete`.
    """

    def __init__(self, message: str, places: set[int], known: set[int]) -> None:
        super().__init__(message)
        self.places = places
        self.known = known


#: Attributes that jobs of one batch mostly share.
_HOW = attrgetter("status", "started", "code", "message", "model")


class Completions:
    """Completes jobs of one queue on one Redis database. Safe to share between threads."""

    def __init__(self, client: redis.Redis, queue: str, result_ttl: int) -> None:
        self._queue = queue
        self._keys = [keys.ledger(queue), keys.open_jobs(queue), keys.cancelled(queue)]
        self._result_ttl = result_ttl
        self._complete = client.register_script(COMPLETE)

    def complete(
        self,
        completions: Sequence[Completion],
        lease_keys: LeaseKeys | None = None,
        *,
        waiting: bool = False,
        follow: Sequence[Addressed] = (),
        outbox: str = "",
    ) -> set[int]:
        """Complete jobs, each once: the first outcome stands, a later one only ends its lease.

        `lease_keys`: if given, the leases named by `tag` end, too. `waiting`: messages of these
        jobs may still be in the queue, and workers must drop them. `follow`: messages that the job
        sends on, each with the name of its list; only with a single job. If this call ends the job,
        they are sent, or put into `outbox`; they never use the reserve.

        Returns the places of jobs that had ended before. A full server takes a few jobs per call,
        within `RESERVE`: otherwise a server full of messages could never store the outcomes that
        free its memory. May be repeated after an error. Raises Refused for jobs that can never be
        completed, and redis.RedisError; OutOfMemoryError means that the reserve is used up, too.
        """
        given = [*self._keys, *(lease_keys or ("", "")), outbox]
        shared = {"queue": self._queue, "ttl": self._result_ttl, "waiting": waiting}
        shared["lists"] = [name for name, _ in follow]
        messages = [message for _, message in follow]
        try:
            return self._call(given, completions, messages, shared | {"reserve": 0})
        except redis.OutOfMemoryError:
            if follow:
                raise
            return self._from_reserve(given, completions, shared | {"reserve": RESERVE})

    def _from_reserve(
        self, given: Sequence[str], completions: Sequence[Completion], shared: dict[str, Any]
    ) -> set[int]:
        known, places, error = set[int](), set[int](), ""
        for at in range(0, len(completions), _ENDED_FROM_RESERVE):
            some = completions[at : at + _ENDED_FROM_RESERVE]
            try:
                found = self._call(given, some, (), shared)
            except Refused as refused:
                found, error = refused.known, str(refused)
                places |= {at + place for place in refused.places}
            known |= {at + place for place in found}
        if places:
            raise Refused(error, places, known)
        return known

    def _call(
        self,
        given: Sequence[str],
        completions: Sequence[Completion],
        messages: Sequence[bytes],
        shared: dict[str, Any],
    ) -> set[int]:
        packed = orjson.dumps(shared | {"groups": _groups(completions)})
        outcomes = [one.meta for one in completions]
        answer = self._complete(keys=list(given), args=[packed, *messages, *outcomes])
        known, refused = cast("tuple[list[int], list[tuple[int, bytes]]]", answer)
        if refused:
            error = refused[0][1].decode(errors="replace")
            raise Refused(error, {place for place, _ in refused}, set(known))
        return set(known)


def _groups(completions: Sequence[Completion]) -> list[dict[str, Any]]:
    """Group adjacent jobs that end alike, in the script's format."""
    now = time.time()
    return [
        {
            "status": status,
            "age": max(now - started, 0.0) if started else 0,
            "code": code,
            "message": message,
            "model": model,
            "jobs": [(one.id, one.tag, one.prompt_tokens, one.texts) for one in alike],
        }
        for (status, started, code, message, model), alike in groupby(completions, _HOW)
    ]
