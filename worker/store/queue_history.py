"""The last minutes of a queue as a stream: what each engine did between two looks at it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import redis

from worker.contract import keys

#: Seconds that are kept.
KEPT = 300
#: Seconds after which a stream that nobody writes is removed.
_FORGOTTEN_AFTER = 2 * KEPT


class Counters(Protocol):
    """What an engine has done since it started. Read by another thread, so a batch apart."""

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
        """In forward passes."""


class Work(NamedTuple):
    """What one engine did in `seconds`; the rest as in `Counters`."""

    seconds: float
    batches: int
    texts: int
    tokens: int
    capacity: int
    busy_seconds: float
    #: What waited in the queue at the end of it, see `JobStore.queued_tokens`.
    queued_tokens: int
    #: Jobs that ended, by the time since their submission: as of the figure `job_seconds`.
    job_counts: tuple[int, ...] = ()


class Sample(NamedTuple):
    """Work as it was written: when, in seconds since the epoch by Redis's clock, and by whom."""

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
        """Add what was done since the last call; the first has nothing to tell.

        `now` is monotonic, in seconds; `job_counts` are those since the worker's start. Raises
        redis.RedisError; then the next call tells of both.
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
    """None for an entry of another version's worker."""
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
    """When an entry was added: the first half of its id."""
    return int(entry_id.partition(b"-")[0])
