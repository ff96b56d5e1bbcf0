"""Messages that no worker could run: stored to be inspected, requeued or dropped.

A list (`keys.dead_letters`) of JSON entries `{"tag", "reason", "queue", "buried_at", "message"}`,
newest first, with `message` as it was in the queue.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import orjson
import redis

from worker.contract import keys
from worker.store import scripts
from worker.store.jobs import RECORD_TTL
from worker.store.submissions import new_call

#: Seconds that a call is remembered, so that a repeat of it changes nothing.
_REMEMBERED = 60
#: Entries read at a time.
_PAGE = 100


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. `raw` is its entry, which identifies it."""

    raw: bytes
    id: str
    task: str
    reason: str
    queue: str
    #: Seconds since the epoch.
    buried_at: float
    #: The message itself; holds the texts of its job.
    message: str


class DeadLetters:
    """The dead letters of one queue. Every method raises redis.RedisError."""

    def __init__(self, client: redis.Redis, queue: str) -> None:
        self._client = client
        self._key = keys.dead_letters(queue)
        self._queue = queue
        self._requeue = client.register_script(scripts.REQUEUE)

    def __iter__(self) -> Iterator[DeadLetter]:
        start = 0
        while page := cast("list[bytes]", self._client.lrange(self._key, start, start + _PAGE - 1)):
            yield from map(_parse, page)
            start += len(page)

    def add(self, tag: str, reason: str, message: str) -> None:
        """Store a message without a lease, unchanged."""
        entry = {
            "tag": tag,
            "reason": reason,
            "queue": self._queue,
            "buried_at": str(time.time()),
            "message": message,
        }
        self._client.lpush(self._key, orjson.dumps(entry))

    def find(self, job_id: str) -> DeadLetter | None:
        """The newest letter of a job."""
        return next((letter for letter in self if letter.id == job_id), None)

    def requeue(self, letter: DeadLetter) -> bool:
        """Requeue a message; clear its outcome and crash count. Returns False if it is gone."""
        answer = self._requeue(
            keys=[
                *(self._key, letter.queue or self._queue, keys.job(letter.id)),
                *(keys.result(letter.id), keys.attempts(letter.id), keys.crashes(letter.id)),
                *(keys.call(self._queue, new_call()), keys.open_jobs(self._queue)),
            ],
            args=[
                *(letter.raw, letter.message.encode("utf-8", "surrogateescape")),
                *(RECORD_TTL, _REMEMBERED, letter.id),
            ],
        )
        return bool(answer)

    def drop(self, letter: DeadLetter) -> bool:
        """Delete a letter. Returns False if it is gone."""
        return bool(self._client.lrem(self._key, 1, cast("str", letter.raw)))


def _parse(raw: bytes) -> DeadLetter:
    entry: dict[str, Any] = _loads(raw.decode("utf-8", "surrogateescape"))
    message = str(entry.get("message", ""))
    try:
        headers = _loads(message).get("headers") or {}
    except (ValueError, AttributeError):
        # The entry in the queue was not a message.
        headers = {}
    return DeadLetter(
        raw,
        id=str(headers.get("id") or entry.get("tag", "")),
        task=str(headers.get("task") or "?"),
        reason=str(entry.get("reason", "")),
        queue=str(entry.get("queue", "")),
        buried_at=float(entry.get("buried_at") or 0),
        message=message,
    )


def _loads(text: str) -> Any:
    return orjson.loads(text.encode("utf-8", "replace"))
