"""Jobs as their tenants see them: records and outcomes, read and listed.

The record holds the state of a job. Workers of earlier versions and other result backends store
only the outcome: the record stays open or is missing. A read of such a job completes it by its
outcome first. Only there are the two compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
import redis

from worker.contract import keys
from worker.contract.jobs import Status
from worker.store import listing, scripts
from worker.store.completions import Completion, Completions
from worker.store.pipeline import Command, SharedPipeline
from worker.store.submissions import new_call

#: Seconds that a shared job stays after its last caller has left, for a repeat of the call.
_KEPT_FOR_REPEAT = 10


@dataclass(frozen=True, slots=True)
class JobRecord:
    """State of a job. Times in seconds since the epoch."""

    id: str
    status: Status
    owner: str = ""
    created_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    model: str | None = None
    done: int = 0
    total: int | None = None
    prompt_tokens: int | None = None
    code: str | None = None
    message: str | None = None


class JobRecords:
    """Reads the jobs of one queue. Safe to share between threads; raises redis.RedisError."""

    def __init__(
        self, client: redis.Redis, queue: str, trips: SharedPipeline, completions: Completions
    ) -> None:
        self._client = client
        self._queue = queue
        self._ledger = keys.ledger(queue)
        self._trips = trips
        self._completions = completions
        self._release = trips.script(scripts.RELEASE)
        self._leave = trips.script(scripts.LEAVE)

    def read(self, job_id: str) -> JobRecord | None:
        """Return the record of a job, or None if it was never submitted or has expired."""
        return self.read_many([job_id])[0]

    def read_many(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Return records in the order of `job_ids`, in one round trip."""
        with self._client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(keys.job(job_id))
                pipe.exists(keys.result(job_id))
            answers = pipe.execute()
        return [
            self.read_with_outcome(job_id)[0]
            if has_result and self._may_lack_end(fields)
            else self._parse(job_id, fields)
            for job_id, fields, has_result in zip(job_ids, answers[::2], answers[1::2], strict=True)
        ]

    def read_with_outcome(self, job_id: str) -> tuple[JobRecord | None, bytes | None]:
        """Return the record of a job and, if it has ended, its stored outcome as JSON text."""
        return self._read(job_id, lambda: self._trips.call(*_reading(job_id)))

    def read_and_release(self, job_id: str, seconds: int) -> tuple[JobRecord | None, bytes | None]:
        """Read as above; a success is then kept for `seconds` at most, as by `release`."""
        release = self._release_command(job_id, seconds, successes=True)
        return self._read(job_id, lambda: self._trips.call(*_reading(job_id), release)[:2])

    def read_and_leave(
        self, job_id: str, owner: str, caller: str
    ) -> tuple[JobRecord | None, bytes | None]:
        """Read a shared job in the same way; if it has ended, the caller leaves it."""
        command = self._leave_command(job_id, owner, caller, collect=True)

        def leave() -> Sequence[Any]:
            flat, raw = self._trips.call(command)[0]
            return dict(zip(flat[::2], flat[1::2], strict=True)), raw

        return self._read(job_id, leave)

    def raw_outcome(self, job_id: str) -> bytes | None:
        """Return the stored outcome as JSON text, or None if there is no outcome yet."""
        return cast("bytes | None", self._client.get(keys.result(job_id)))

    def page(
        self, owner: str, *, limit: int, after: str | None = None, status: Status | None = None
    ) -> tuple[list[JobRecord], str | None]:
        """Up to `limit` jobs of a tenant, newest first, and the `after` of the next page.

        `after` is None on the last page. A page of one status may hold fewer than `limit` jobs, or
        be empty, and still have a next one. Raises KeyError if `after` is not in the listing.
        """
        return listing.page_of_many(
            self._client,
            keys.with_shared(keys.jobs, self._queue, owner),
            self.read_many,
            limit=limit,
            after=after,
            wanted=lambda record: status in (None, record.status),
        )

    def release(self, job_id: str, seconds: int) -> None:
        """Keep an ended job for `seconds` at most: its caller has the result."""
        self._trips.call(self._release_command(job_id, seconds))

    def leave(self, job_id: str, owner: str, caller: str) -> bool:
        """Remove one caller of a shared job; with the last one, an ended job's result expires soon.

        Returns whether the job has not ended and no caller is left.
        """
        return bool(self._trips.call(self._leave_command(job_id, owner, caller))[0])

    def _read(
        self, job_id: str, call: Callable[[], Sequence[Any]]
    ) -> tuple[JobRecord | None, bytes | None]:
        """Return the record and outcome that `call` reads; read again if that completes the job."""
        fields, raw = call()
        if raw is not None and self._may_lack_end(fields):
            self._complete_by(job_id, fields, raw)
            fields, raw = call()
        record = self._parse(job_id, fields)
        return record, raw if record is not None and record.status.ended else None

    def _may_lack_end(self, fields: Mapping[bytes, bytes]) -> bool:
        """Whether a record is missing or open, so that a stored outcome completes the job."""
        record = self._parse("", fields)
        return not fields or (record is not None and not record.status.ended)

    def _complete_by(self, job_id: str, fields: Mapping[bytes, bytes], raw: bytes) -> None:
        """Complete a job by an outcome that was stored without closing its record.

        Ignores states that are no outcome. Without a record, the vectors in the outcome show that
        the task is a job.
        """
        stored = orjson.loads(raw)
        completion = Completion.of_celery(job_id, stored["status"], stored.get("result"), raw)
        if completion.status.ended and (fields or completion.texts):
            self._completions.complete([completion._replace(tag=new_call())])

    def _parse(self, job_id: str, fields: Mapping[bytes, bytes]) -> JobRecord | None:
        """Parse a record; None if it is missing or belongs to another deployment's queue."""
        ours = self._queue.encode()
        return parse(job_id, fields) if fields and fields.get(b"queue", ours) == ours else None

    def _release_command(self, job_id: str, seconds: int, *, successes: bool = False) -> Command:
        """The command that releases an ended job; with `successes`, only a success."""
        given = [keys.job(job_id), keys.result(job_id), self._ledger]
        return self._release(given, [seconds, int(successes)])

    def _leave_command(
        self, job_id: str, owner: str, caller: str, *, collect: bool = False
    ) -> Command:
        given = [keys.job(job_id), keys.result(job_id), self._ledger]
        listed = keys.jobs(self._queue, owner)
        return self._leave([*given, listed], [job_id, caller, _KEPT_FOR_REPEAT, int(collect)])


def parse(job_id: str, fields: Mapping[bytes, bytes]) -> JobRecord:
    """The record that a hash holds; of an empty hash, a queued job with only its id."""
    values = {name.decode(): value.decode() for name, value in fields.items()}

    def seconds(name: str) -> float | None:
        return float(values[name]) if values.get(name) else None

    total = int(values["total"]) if "total" in values else None
    return JobRecord(
        id=job_id,
        status=Status(values.get("status", Status.QUEUED)),
        owner=values.get("owner", ""),
        created_at=seconds("created"),
        started_at=seconds("started"),
        finished_at=seconds("finished"),
        model=values.get("model") or None,
        done=int(values.get("done", 0)),
        total=total,
        prompt_tokens=int(values["prompt_tokens"]) if "prompt_tokens" in values else None,
        code=values.get("code"),
        message=values.get("message"),
    )


def _reading(job_id: str) -> tuple[Command, Command]:
    return ("HGETALL", keys.job(job_id)), ("GET", keys.result(job_id))
