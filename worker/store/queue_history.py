"""The last minutes of a queue as a stream: the work of each engine, interval by interval."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import redis

from worker.contract import keys

#: Seconds that are kept.
KEPT = 300
#: Seconds after which a stream without writers is removed.
_FORGOTTEN_AFTER = 2 * KEPT


class Counters(Protocol):
    """Totals of an engine since its start. Another thread reads them, so they may lag a batch."""

    @property
    def batches(self) -> int: ...

    @property
    def texts(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def capacity(self) -> int:
        """Token budgets of the batches."""

    @property
    def busy_seconds(self) -> float:
        """Time in forward passes."""


class Work(NamedTuple):
    """Work of one engine in `seconds`; the other fields as in `Counters`."""

    seconds: float
    batches: int
    texts: int
    tokens: int
    capacity: int
    busy_seconds: float
    #: Tokens in the queue at the end of the interval, see `JobStore.queued_tokens`.
    queued_tokens: int
    #: Jobs that ended, by the time since their submission: the counts of the metric `job_seconds`.
    job_counts: tuple[int, ...] = ()


class Sample(NamedTuple):
    """Written work, with its time in seconds since the epoch by Redis's clock and its worker."""

    at: float
    node: str
    work: Work


class HistoryWriter:
    """Writes the work of one engine. Belongs to one thread."""

    def __init__(self, client: redis.Redis, queue: str, node: str) -> None:
        self._client = client
        self._key = keys.pulse(queue)
        self._node = node
        self._told: Work | None = None
        #: Milliseconds since the epoch by Redis's clock, when the last entry was added.
        self._added_at = 0

    def write(
        self, engine: Counters, *, now: float, queued_tokens: int, job_counts: Sequence[int] = ()
    ) -> None:
        """Add the work since the last call; the first call adds no entry.

        `now` is monotonic, in seconds; `job_counts` are totals since the worker's start. Raises
        redis.RedisError; then the next call adds the work of both.
        """
        counts = Work(
            now,
            engine.batches,
            engine.texts,
            engine.tokens,
            engine.capacity,
            engine.busy_seconds,
            queued_tokens,
            tuple(job_counts),
        )
        if self._told is not None:
            self._add(_between(self._told, counts))
        self._told = counts

    def _add(self, work: Work) -> None:
        entry: dict[Any, Any] = {"node": self._node, **work._asdict()}
        entry["job_counts"] = " ".join(map(str, work.job_counts))
        oldest = max(self._added_at - KEPT * 1000, 0)
        with self._client.pipeline(transaction=False) as pipe:
            pipe.xadd(self._key, entry, minid=oldest)
            pipe.expire(self._key, _FORGOTTEN_AFTER)
            entry_id, _ = pipe.execute()
        self._added_at = _milliseconds(entry_id)


def read(client: redis.Redis, queue: str) -> tuple[float, list[Sample]]:
    """Redis's time in seconds since the epoch, and the last minutes. Raises redis.RedisError."""
    with client.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.xrange(keys.pulse(queue))
        (seconds, micros), entries = pipe.execute()
    now = seconds + micros / 1e6
    samples = [_sample(entry_id, entry) for entry_id, entry in entries]
    return now, [one for one in samples if one is not None and one.at > now - KEPT]


def _between(before: Work, after: Work) -> Work:
    return Work(
        round(after.seconds - before.seconds, 3),
        after.batches - before.batches,
        after.texts - before.texts,
        after.tokens - before.tokens,
        after.capacity - before.capacity,
        round(after.busy_seconds - before.busy_seconds, 4),
        after.queued_tokens,
        tuple(map(operator.sub, after.job_counts, before.job_counts)),
    )


def _sample(entry_id: bytes, entry: Mapping[bytes, bytes]) -> Sample | None:
    """Parse an entry; None if a worker of another version wrote it."""
    try:
        work = Work(
            float(entry[b"seconds"]),
            int(entry[b"batches"]),
            int(entry[b"texts"]),
            int(entry[b"tokens"]),
            int(entry[b"capacity"]),
            float(entry[b"busy_seconds"]),
            int(entry[b"queued_tokens"]),
            tuple(map(int, entry[b"job_counts"].split())),
        )
        return Sample(_milliseconds(entry_id) / 1000, entry[b"node"].decode(), work)
    except (KeyError, ValueError):
        return None


def _milliseconds(entry_id: bytes) -> int:
    """Time at which an entry was added: the first half of its id."""
    return int(entry_id.partition(b"-")[0])
