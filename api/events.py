"""A job's progress as server-sent events (html.spec.whatwg.org, 9.2)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import redis
from flask import Request, Response

from api import auth
from api.backend import Backend
from api.errors import Problem
from api.responses import json_body
from api.schemas import job_of
from api.wait_options import LONGEST_BLOCKING_WAIT, find
from worker.store.jobs import JobRecord

#: Seconds between two comments: proxies keep the connection, and a closed one is detected.
_HEARTBEAT = 15.0
#: Seconds after which the stream ends; the client's `EventSource` connects again by itself.
_LONGEST = 600.0
#: Milliseconds after which it does.
_RECONNECT = 1000


def response(backend: Backend, job_id: str, request: Request) -> Response:
    """`progress` at once and with every batch, `done` with the job, comments in between."""
    longest = _LONGEST if request.environ.get("wsgi.multithread") else LONGEST_BLOCKING_WAIT
    stream = _events(backend, job_id, backend.root(request), longest, auth.owner())
    answer = Response(stream, content_type="text/event-stream")
    # Prevents a proxy from buffering the events.
    answer.headers["X-Accel-Buffering"] = "no"
    return answer


def _events(
    backend: Backend, job_id: str, root: str, longest: float, owner: str
) -> Iterator[bytes]:
    deadline = time.monotonic() + longest
    yield b"retry: %d\n\n" % _RECONNECT
    shown = None
    try:
        with backend.waiting.watch(job_id, progress=True) as watch:
            record = find(backend, job_id, owner)
            while not (record.status.ended or backend.waiting.released):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                if (progress := _progress(record)) != shown:
                    shown = progress
                    yield _event("progress", progress)
                if not watch.wait(min(left, _HEARTBEAT)):
                    yield b": waiting\n\n"
                record = find(backend, job_id, owner)
    except (redis.RedisError, Problem):
        # The status line is sent; the client connects again and gets the error there.
        return
    if record.status.ended:
        yield _event("progress", _progress(record))
        yield _event("done", job_of(record, root))


def _progress(record: JobRecord) -> dict[str, object]:
    return {"status": record.status, "done": record.done, "total": record.total}


def _event(name: str, data: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode("ascii"), json_body(data))
