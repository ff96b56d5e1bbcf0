"""How jobs end: many at once, by one Lua script, whole or not at all."""

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

#: Bytes beyond its `maxmemory` that outcomes may take on a full server, more where that is large,
#: and jobs that end so at a time. Leases take some of it, too: one is larger than its message was.
RESERVE = 8 * 2**20
_ENDED_FROM_RESERVE = 16


class Completion(NamedTuple):
    """How a job ended.

    `meta` is the outcome to store, empty if the result is ignored. `tag` names the delivery or the
    call that ended it, by which a repeat is known; '' if it is not repeated. `started` is the time
    of its first batch by the host's clock, in seconds since the epoch, 0 if it never ran.
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
        """From what Celery stores as `meta`: a result, or an exception as a mapping."""
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

    The other jobs of the call are completed. `places` are those of the refused ones, and `known` as
    `Completions.complete` returns it.
    """

    def __init__(self, message: str, places: set[int], known: set[int]) -> None:
        super().__init__(message)
        self.places = places
        self.known = known


#: What jobs of one batch mostly have in common.
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

        The leases named by `tag` end with them if `lease_keys` are given. `waiting`: messages of
        these jobs may still be in the queue, so workers are to drop them. `follow`: messages, by
        the names of their lists, that a job sends on; with one job only. They are sent, or kept in
        `outbox`, if it ends by this call, and have no part in the reserve below. Returns the places
        of jobs that had ended before. A server that is full takes a few at a time, as far as
        `RESERVE` goes: else one that is full of messages would never have room for the outcomes
        that make it. Raises Refused for jobs that can never be completed.
        May be repeated after an error. Raises redis.RedisError, of which OutOfMemoryError says that
        the reserve is used up, too.
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
    """Neighbours that end alike, as the script takes them."""
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
