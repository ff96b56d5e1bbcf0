"""How long a caller waits for a job (RFC 7240), and the wait itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import redis
from flask import Request, Response

from api import auth
from api.backend import Backend
from api.errors import Problem
from api.job_watcher import JobWatch
from api.operations import parameter
from worker.contract.jobs import Status
from worker.store.jobs import JobRecord

LONGEST_WAIT = 60
#: Seconds under a server that runs one request at a time: gunicorn kills its sync workers after 30.
LONGEST_BLOCKING_WAIT = 25
#: Seconds between two checks of a caller's connection.
_CHECK_CALLER = 0.5
#: Characters of a job id; Celery takes any string.
_LONGEST_ID = 255


#: Reads a job by its id: its record and its stored outcome.
Read = Callable[[str], tuple[JobRecord | None, bytes | None]]

#: Of operations that can wait, for the OpenAPI document.
PARAMETERS: Final = (
    parameter(
        "wait",
        "Seconds to wait for the job's end.",
        {"type": "integer", "minimum": 0, "maximum": LONGEST_WAIT},
    ),
    parameter("Prefer", "`wait=N` (RFC 7240), the same as a header.", {"type": "string"}, "header"),
)


class WaitOption:
    """The requested wait: `?wait=N`, else `Prefer: wait=N`, else no wait.

    Raises Problem naming the one that is not 0 to 60 whole seconds.
    """

    def __init__(self, request: Request) -> None:
        asked = request.args.get("wait") if request.query_string else None
        self._preferred = asked is None
        if asked is None:
            asked = _preference(request.headers.get("Prefer", ""))
        field = "Prefer" if self._preferred else "wait"
        self.asked = asked is not None
        longest = LONGEST_WAIT if request.environ.get("wsgi.multithread") else LONGEST_BLOCKING_WAIT
        self.seconds = min(_seconds(asked, field), longest) if asked is not None else 0

    def confirm(self, response: Response) -> None:
        """Add `Preference-Applied` with the time that was used."""
        if self.asked and self._preferred:
            response.headers["Preference-Applied"] = f"wait={self.seconds}"


class Timeout:
    """The end of a wait: `seconds` from now, or when `gone` returns True, if that is earlier.

    `gone` returns whether the caller has closed the connection. It must not block; it is called
    twice a second.
    """

    def __init__(self, seconds: float, gone: Callable[[], bool] | None = None) -> None:
        self.seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._gone = gone

    @property
    def left(self) -> float:
        """Seconds until the deadline, 0 once it has passed."""
        return max(self._deadline - time.monotonic(), 0.0)

    def wait(self, watch: JobWatch) -> bool:
        """Block until it is time to look at the job again; False if no caller waits."""
        if not self.left:
            return False
        while left := self.left:
            if self._gone is None:
                watch.wait(left)
                break
            if watch.wait(min(left, _CHECK_CALLER)):
                break
            if self._gone():
                return False
        return True


NO_WAIT: Final = Timeout(0)


def find(backend: Backend, job_id: str, owner: str | None = None) -> JobRecord:
    """Return a job of an owner, the caller by default: a stream outlives its request.

    Raises Problem with `not_found`.
    """
    owner = auth.owner() if owner is None else owner
    return _visible(backend.store.read(job_id) if len(job_id) <= _LONGEST_ID else None, owner)


def await_end(backend: Backend, job_id: str, timeout: Timeout) -> JobRecord:
    """Return a job when it has ended, or as it is at the end of the wait. Raises Problem."""
    if not timeout.seconds:
        return find(backend, job_id)
    with backend.waiting.watch(job_id) as watch:
        record = find(backend, job_id)
        while not (record.status.ended or backend.waiting.released) and timeout.wait(watch):
            record = find(backend, job_id)
    return record


def await_accepted(
    backend: Backend, record: JobRecord, watch: JobWatch, timeout: Timeout, read: Read
) -> tuple[JobRecord, bytes | None]:
    """Return an accepted job and its stored outcome when it has ended or the wait is over.

    `watch` is older than the job, so the job is not read before the watch wakes. If Redis fails
    meanwhile, the job is returned as it was last read: its caller must get the id.
    """
    meta = None
    while not (record.status.ended or backend.waiting.released) and timeout.wait(watch):
        with suppress(redis.RedisError):
            found, meta = read(record.id)
            record = _visible(found, record.owner)
    return record, meta


def _visible(record: JobRecord | None, owner: str) -> JobRecord:
    if record is None or record.owner != owner or _of_other_task(record):
        raise Problem("not_found", "there is no such job, or its time has passed")
    return record


def _of_other_task(record: JobRecord) -> bool:
    """Whether the record is only an outcome without vectors, as those of users' own tasks."""
    return record.status is Status.SUCCEEDED and record.total is None


def _preference(header: str) -> str | None:
    """The value of `wait` among the preferences of a header."""
    for preference in header.split(","):
        name, _, value = preference.split(";")[0].partition("=")
        if name.strip().lower() == "wait":
            return value.strip().strip('"')
    return None


def _seconds(value: str, field: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value[:9]) <= LONGEST_WAIT):
        raise Problem(
            "invalid_request",
            f"wait is {value!r}; 0 to {LONGEST_WAIT} whole seconds are allowed",
            field=field,
        )
    return int(value)
