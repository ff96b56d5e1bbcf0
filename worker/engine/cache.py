"""The cache stages: read vectors of earlier texts before tokenizing, add new ones after completion.

Each has its own thread, so that no batch and no result waits for the cache.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from worker.cache.entries import Entry
from worker.engine.job import Job
from worker.engine.metrics import Counts
from worker.engine.queue import everything
from worker.engine.scheduler import Scheduler

if TYPE_CHECKING:
    from worker.cache.store import Cache

#: Texts that are looked up together, unless one job has more.
_TEXTS_PER_READ = 1024


class CacheReader:
    """Looks submitted texts up. Its thread executes `run`.

    A job with misses continues to the tokenizer. A job with hits only is completed without a batch.
    A job belongs to this thread until then.
    """

    def __init__(self, cache: Cache, scheduler: Scheduler, counts: Counts) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._counts = counts

    def run(self) -> None:
        """Read until the engine closes."""
        while True:
            with self._scheduler.lock:
                jobs = self._scheduler.read_cache.take(self._select)
            if not jobs:
                return
            self._look_up(jobs)
            self._pass_on(jobs)

    def _select(self, jobs: deque[Job]) -> list[Job]:
        """Select the first jobs of a lane, or no job while the writer is behind."""
        selected: list[Job] = []
        left = 0 if self._scheduler.write.full else _TEXTS_PER_READ
        while jobs and left and (not selected or len(jobs[0].texts) <= left):
            selected.append(jobs.popleft())
            left = max(left - len(selected[-1].texts), 0)
        return selected

    def _look_up(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.set_keys(self._cache.keys.of(job.info.name, job.prompt, job.options, job.texts))
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
        for job in jobs:
            if known and (entries := dict(_entries(job, known))):
                job.add_hits(entries)
        hits = sum(len(job.hits) for job in jobs)
        self._counts.looked_up(seconds, hits=hits, misses=texts - hits)

    def _pass_on(self, jobs: Sequence[Job]) -> None:
        refused = {job for job in jobs if job.ended and not job.callbacks.admit(job)}
        scheduler, now = self._scheduler, time.time()
        with scheduler.lock:
            for job in refused:
                scheduler.forget(job)
            ended = [job for job in jobs if job.ended and not job.cancelled]
            for job in ended:
                job.started_at = now
                scheduler.weigh(job, -job.waiting_tokens)
            scheduler.complete(ended, sum(job.prompt_tokens for job in ended))
            scheduler.add_texts([job for job in jobs if not (job.ended or job.cancelled)])


class CacheWriter:
    """Adds the vectors of completed jobs. Its thread executes `run`; `put` belongs to the writer.

    Vectors beyond the queue's capacity, and those that wait when the engine closes, are dropped.
    """

    def __init__(self, cache: Cache, scheduler: Scheduler, counts: Counts) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._counts = counts

    def put(self, jobs: Sequence[Job]) -> None:
        """Cache the vectors of these jobs soon, if there is capacity. Does not block."""
        queue = self._scheduler.write_cache
        with self._scheduler.lock:
            for job in jobs:
                if not job.keys or job.vectors is None:
                    continue
                if queue.full:
                    self._counts.kept(0, dropped=len(job.texts) - len(job.hits))
                else:
                    queue.put([job], size=job.vectors.nbytes)

    def run(self) -> None:
        """Write until the engine closes."""
        while True:
            with self._scheduler.lock:
                jobs = self._scheduler.write_cache.take(everything)
            if not jobs:
                return
            new = {key: value for job in jobs for key, value in _new_entries(job)}
            used = [key for job in jobs for key in map(job.keys.__getitem__, job.hits) if key]
            done = self._cache.keep(new, used)
            with self._scheduler.lock:
                self._counts.kept(len(new) * done, dropped=len(new) * (not done))


def _entries(job: Job, known: Mapping[bytes, bytes]) -> Iterator[tuple[int, Entry]]:
    """The entries of a job's texts, except those that its options reject."""
    for index, key in enumerate(job.keys):
        stored = known.get(key) if key is not None else None
        entry = Entry.read(stored, job.info.dimensions)
        # If the job rejects truncated texts, the tokenizer makes the error.
        if entry is not None and (job.options.truncate or not entry.truncated):
            yield index, entry


def _new_entries(job: Job) -> Iterator[tuple[bytes, bytes]]:
    """Keys and stored form of the vectors that the model computed."""
    left_out = {error.index for error in job.errors} | job.hits
    truncated = set(job.truncated)
    for index, key in enumerate(job.keys):
        if key is not None and index not in left_out and job.vectors is not None:
            entry = Entry(job.vectors[index], job.token_counts[index], index in truncated)
            yield key, entry.packed()
