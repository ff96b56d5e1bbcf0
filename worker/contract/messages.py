"""A job as a Celery message, built without a producer so that one script can accept and queue it.

Task protocol 2 (docs.celeryq.dev/en/stable/internals/protocol.html) inside the envelope of kombu's
virtual transport; a test compares it with a stock producer's message.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from worker.contract.jobs import DEFAULT_OPTIONS, TASK_NAME, JobOptions
from worker.contract.lanes import Lane
from worker.metrics import traces

#: Header of our own: when the job was submitted, in seconds since the epoch.
SUBMITTED_AT = "embedq_submitted_at"
#: Header of our own: the deadline, after which no worker should start the job, in seconds since the
#: epoch by Redis' clock. Celery's own `expires` uses the clocks of hosts.
DEADLINE = "embedq_deadline"
#: Header of our own: the job's owner, the id of an API key; missing without keys.
OWNER = "embedq_owner"

#: Bits of a random UUID (RFC 9562, 5.4): version and variant, and those that are random.
_VERSION_4 = 4 << 76 | 2 << 62
_RANDOM = (1 << 128) - 1 & ~(15 << 76 | 3 << 62)

_ORIGIN = f"gen{os.getpid()}@{socket.gethostname()}"


def new_id() -> str:
    """An id of 122 random bits from the system's generator, so that ids cannot be guessed.

    The same as `str(uuid.uuid4())`, in less than half its time.
    """
    digits = f"{secrets.randbits(128) & _RANDOM | _VERSION_4:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def shown_args(count: int) -> str:
    """The text that events, logs and `inspect` show in place of the texts of a job."""
    return f"(<{count} text{'s' if count != 1 else ''}>,)"


def new_headers() -> dict[str, Any]:
    """Headers of our own for a message that is sent now."""
    return {SUBMITTED_AT: time.time(), **traces.carried()}


def submission_time(headers: Mapping[str, Any]) -> float | None:
    """The time at which a message was submitted; None if its producer is not ours."""
    value = headers.get(SUBMITTED_AT)
    # A value that is not a time would distort the worker's sums permanently.
    return value if isinstance(value, float) and 0 < value < 1e11 else None


def deadline_of(headers: Mapping[str, Any]) -> float | None:
    """The deadline for starting a message, by Redis' clock, or None."""
    value = headers.get(DEADLINE)
    return value if isinstance(value, float) else None


def owner_of(headers: Mapping[str, Any]) -> str:
    """The owner of a message, or ""."""
    value = headers.get(OWNER)
    return value if isinstance(value, str) else ""


def envelope(
    job_id: str,
    texts: Sequence[str],
    options: JobOptions,
    queue: str,
    *,
    lane: Lane = Lane.NORMAL,
    owner: str = "",
    deadline: float | None = None,
) -> bytes:
    """The message that `embed.apply_async(…, task_id=job_id)` would put on `queue`.

    It belongs on the list of `lane`. `owner` is the id of an API key or "". No worker starts it
    after `deadline`, in seconds since the epoch by Redis' clock.
    """
    kwargs = options.model_dump(exclude_defaults=True) if options is not DEFAULT_OPTIONS else {}
    shown = shown_args(len(texts))
    call = [list(texts)], kwargs
    return _message(
        TASK_NAME, job_id, call, shown, queue, lane=lane, owner=owner, deadline=deadline
    )


def of_task(task: str, task_id: str, args: Sequence[Any], queue: str) -> bytes:
    """The message that `send_task(task, args, task_id=…, ignore_result=True)` would put there."""
    return _message(task, task_id, (list(args), {}), repr(tuple(args)), queue, ignore_result=True)


def _message(
    task: str,
    task_id: str,
    call: tuple[list[Any], dict[str, Any]],
    shown: str,
    queue: str,
    *,
    lane: Lane = Lane.NORMAL,
    owner: str = "",
    deadline: float | None = None,
    ignore_result: bool = False,
) -> bytes:
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": shown,
        "kwargsrepr": "{}",
        "origin": _ORIGIN,
        "ignore_result": ignore_result,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        **new_headers(),
    }
    if owner:
        headers[OWNER] = owner
    if deadline is not None:
        headers[DEADLINE] = deadline
    message = {
        "body": _dumps([*call, embed]).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "correlation_id": task_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            # A stock worker that requeues it knows no step below 0.
            "priority": max(lane.step, 0),
            "body_encoding": "utf-8",
            "delivery_tag": new_id(),
        },
    }
    return orjson.dumps(message)


def _dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        # A lone surrogate has no UTF-8 form. Escaped, it reaches the worker, and only that text
        # fails, with its index.
        return json.dumps(value).encode("ascii")
