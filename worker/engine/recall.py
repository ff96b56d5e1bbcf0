"""What is remembered of earlier texts: looked up before they are tokenised, kept once they ended.

Both on threads of their own, so that no batch and no result waits for the cache.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from worker.cache.entries import Entry
from worker.contract.outcomes import Matrix
from worker.engine.backlog import Backlog
from worker.engine.counts import Counts
from worker.engine.job import Job
from worker.engine.sink import Sink

if TYPE_CHECKING:
    from worker.cache.store import Cache

#: Texts that are looked up together, and kept together, if no job alone has more.
_TEXTS_A_LOOKUP, _TEXTS_A_WRITE = 1024, 4096
#: Texts that may wait to be kept; those of further jobs are dropped.
_MOST_WAITING = 16_384
#: Seconds to wait for the writer before looking around.
_PATIENCE = 5.0


class Lookup:
    """Looks up what comes in; `run` is the body of its thread.

    Jobs that lack a vector go on to the tokeniser. Those that lack none end like any other, but
    were in no batch. A job is this thread's until it goes on.
    """

    def __init__(self, cache: Cache, backlog: Backlog, sink: Sink, counts: Counts) -> None:
        self._cache = cache
        self._backlog = backlog
        self._sink = sink
        self._counts = counts

    def run(self) -> None:
        """Until the backlog is shut."""
        while True:
            with self._backlog.lock:
                jobs = self._backlog.arrivals.take(_TEXTS_A_LOOKUP)
            if not jobs:
                return
            self._look_up(jobs)
            self._hand_on(jobs)

    def _look_up(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            keys = self._cache.keys.of(job.info.name, job.prompt, job.options, job.texts)
            job.remember_by(keys)
        wanted = list(dict.fromkeys(key for job in jobs for key in job.keys if key is not None))
        if not wanted:
            return
        begun = time.monotonic()
        stored = self._cache.find(wanted)
        seconds = time.monotonic() - begun
        texts = sum(len(job.keys) for job in jobs)
        if stored is None:
            self._counts.unasked(texts)
            return
        known = {key: value for key, value in zip(wanted, stored, strict=True) if value is not None}
        hits = 0
        for job in jobs:
            if known and (entries := dict(_entries(job, known))):
                job.recall(entries)
                hits += len(entries)
        self._counts.looked_up(seconds, hits=hits, misses=texts - hits)

    def _hand_on(self, jobs: Sequence[Job]) -> None:
        refused = {job for job in jobs if job.ended and not self._sink.admit(job)}
        backlog, now, ended = self._backlog, time.time(), []
        with backlog.lock:
            for job in jobs:
                if job in refused:
                    backlog.forget(job)
                elif job.cancelled:
                    continue
                elif job.ended:
                    job.started_at = now
                    backlog.room.weigh(job, -job.waiting_tokens)
                    ended.append(job)
                else:
                    backlog.take_in(job)
            while ended and backlog.outbox.full and not backlog.closing:
                backlog.outbox.wait_until_emptied(_PATIENCE)
            backlog.outbox.put(ended)


class Ended(NamedTuple):
    """What may be kept of a job that has ended: its vectors before `dimensions` cut them."""

    job: Job
    vectors: Matrix


class Keeping:
    """Keeps what jobs ended with; `run` is the body of its thread, the rest is the writer's.

    The backlog's lock guards what waits, and the counts. What waits when it is shut is dropped.
    """

    def __init__(self, cache: Cache, backlog: Backlog, counts: Counts) -> None:
        self._cache = cache
        self._backlog = backlog
        self._counts = counts
        self._station = backlog.isolation.station("keep", backlog.lock, uses_redis=True)
        self._waiting: deque[Ended] = deque()
        self._texts = 0

    def of(self, jobs: Sequence[Job]) -> list[Ended]:
        """What there is to keep of jobs that have ended, before anything else is done to them."""
        return [Ended(job, job.vectors) for job in jobs if job.keys and job.vectors is not None]

    def put(self, ended: Sequence[Ended]) -> None:
        """Keep these soon, or never. Does not block."""
        with self._backlog.lock:
            for one in ended:
                texts = len(one.job.texts)
                if self._texts + texts > _MOST_WAITING:
                    self._counts.kept(0, dropped=texts - len(one.job.recalled))
                    continue
                self._texts += texts
                self._waiting.append(one)
            self._station.filled.notify()

    def wake(self) -> None:
        """Let `run` come to its end: the backlog is shut. The caller holds the lock."""
        self._station.close()

    def run(self) -> None:
        """Until the backlog is shut."""
        while several := self._take():
            fresh: dict[bytes, bytes] = {}
            used: dict[bytes, None] = {}
            for ended in several:
                fresh.update(_fresh(ended))
                used.update(_used(ended.job))
            done = self._cache.keep(fresh, used)
            with self._backlog.lock:
                self._counts.kept(len(fresh) * done, dropped=len(fresh) * (not done))

    def _take(self) -> list[Ended]:
        """Wait for what there is to keep; empty once the backlog is shut."""
        with self._backlog.lock:
            return self._station.take(self._next)

    def _next(self) -> list[Ended]:
        several: list[Ended] = []
        texts = 0
        while self._waiting and texts < _TEXTS_A_WRITE:
            several.append(self._waiting.popleft())
            texts += len(several[-1].job.texts)
        self._texts -= texts
        return several


def _entries(job: Job, known: Mapping[bytes, bytes]) -> Iterator[tuple[int, Entry]]:
    """What is known of the texts of a job, as far as it can be told from having encoded them."""
    for index, key in enumerate(job.keys):
        stored = known.get(key) if key is not None else None
        entry = Entry.read(stored, job.info.dimensions)
        # One that was cut is an error where the job does not want that, which the tokeniser tells.
        if entry is not None and (job.options.truncate or not entry.truncated):
            yield index, entry


def _fresh(ended: Ended) -> Iterator[tuple[bytes, bytes]]:
    """Texts that got their vectors from the model, as they are stored."""
    job = ended.job
    left_out = {error.index for error in job.errors} | job.recalled
    truncated = set(job.truncated)
    for index, key in enumerate(job.keys):
        if key is not None and index not in left_out:
            entry = Entry(ended.vectors[index], job.token_counts[index], index in truncated)
            yield key, entry.packed()


def _used(job: Job) -> Iterator[tuple[bytes, None]]:
    for index in job.recalled:
        key = job.keys[index]
        if key is not None:
            yield key, None
