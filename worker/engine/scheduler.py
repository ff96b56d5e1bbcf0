"""Schedule: the running jobs, the queues between the stages, and the choice of each batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from worker.engine import batch
from worker.engine.encode import Fault
from worker.engine.fair_queue import ModelQueues
from worker.engine.isolation import Isolation
from worker.engine.job import Job, Piece
from worker.engine.occupancy import Occupancy
from worker.engine.queue import Capacity, Stage, StageQueue

#: Batches of tokens to hold: enough to keep the device busy, few enough to leave work to others.
_BATCHES_AHEAD = 8
_LEAST_AHEAD = 16_384
#: Bytes of text of one lane to hold, even if the model reads few tokens of them. Texts of a
#: million tokens, as many as wait for a large model, have about 4 MiB.
_MOST_BYTES = 64 * 2**20
#: Batches that may wait to be written before the slots pause.
BATCHES_TO_WRITE = 8
#: Bytes of vectors that may wait to be cached.
_BYTES_TO_CACHE = 32 * 2**20
#: The reserved slot takes the texts of tenants with at most this part of a batch waiting.
_SMALL = 1 / 3


class Selection(NamedTuple):
    """Pieces for a batch, and the jobs of which they are the first."""

    pieces: list[Piece]
    starting: list[Job]


class Scheduler:
    """The state that all threads of the engine share.

    `lock` guards all of it and every job; slow work runs without it. The caller of any method
    holds it, except for `submit` and `pause`.
    """

    def __init__(self, budgets: Mapping[str, int], *, slots: int = 1, cached: bool = False) -> None:
        """`budgets`: tokens of a full batch of each model. `slots`: the number for every lane.

        `cached`: whether jobs pass through the cache before they are tokenized.
        """
        self.lock = threading.Lock()
        #: Notified if a slot for every lane may have work: texts wait, the writer has capacity
        #: again, an isolated job is due or has ended.
        self.to_encode = threading.Condition(self.lock)
        #: The same for the reserved slot.
        self.to_answer = threading.Condition(self.lock)
        self.isolation = Isolation(self.to_encode)
        full = sum(budgets.values())
        self.read_cache = self._queue("read-cache", uses_redis=True)
        self.tokenize = self._queue("tokenize")
        to_write = Capacity(tokens=BATCHES_TO_WRITE * full)
        self.write = self._queue(
            "write", capacity=to_write, relieved=self.wake_all, rests=False, uses_redis=True
        )
        to_cache = Capacity(size=_BYTES_TO_CACHE)
        self.write_cache = self._queue("write-cache", capacity=to_cache, uses_redis=True)
        #: The place of every thread.
        self.stages: list[Stage] = [self.read_cache, self.tokenize, self.write, self.write_cache]
        self.queues = ModelQueues(budgets)
        self.slots = Occupancy(slots)
        #: Of texts in no batch yet (tokens, at most one batch's of each job) and of all texts
        #: (bytes).
        self.capacity = Capacity(tokens=max(_BATCHES_AHEAD * full, _LEAST_AHEAD), size=_MOST_BYTES)
        #: Tokens in no batch yet, including estimates.
        self.waiting_tokens = 0
        self._closed = threading.Event()
        #: The first stage.
        self._entry = self.read_cache if cached else self.tokenize
        #: Jobs that are neither completed nor cancelled.
        self._jobs: dict[Job, None] = {}

    def _queue(self, name: str, **how: Any) -> StageQueue[Job]:
        return StageQueue(name, self.lock, self.isolation, **how)

    # -- jobs -------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> None:
        """Add jobs. Raises RuntimeError once the engine is closed."""
        estimates = [job.estimate(0, len(job.texts)) for job in jobs]
        with self.lock:
            if self._closed.is_set():
                raise RuntimeError("the engine is closed")
            for job, estimate in zip(jobs, estimates, strict=True):
                self._jobs[job] = None
                self.weigh(job, estimate)
                self.capacity.size[job.lane] += job.size
                self.isolation.enter(job)
            self._enter(self._entry, [job for job in jobs if not job.isolated])

    def add_texts(self, jobs: Sequence[Job]) -> None:
        """Jobs have texts to tokenize."""
        self._enter(self.tokenize, jobs)

    def _enter(self, queue: StageQueue[Job], jobs: Sequence[Job]) -> None:
        for lane in {job.lane for job in jobs}:
            queue.put([job for job in jobs if job.lane is lane], lane, wake=False)
        if queue is self.tokenize and self.slots.idle and not self.isolation.active:
            # It may tokenize and encode them without another thread.
            self.to_encode.notify()
        else:
            queue.wake()

    def weigh(self, job: Job, tokens: int) -> None:
        """Change the waiting tokens of a job by `tokens`, which may be negative.

        Only one batch's worth of a job uses capacity, or a small job would stay in Redis until the
        large one before it is done.
        """
        if job.cancelled:
            return
        most, before = job.info.batch_tokens, job.waiting_tokens
        job.waiting_tokens = after = before + tokens
        self.waiting_tokens += tokens
        if before > most or after > most:
            tokens = min(after, most) - min(before, most)
        self.capacity.tokens[job.lane] += tokens

    def complete(self, jobs: Collection[Job], tokens: int = 0) -> None:
        """Pass jobs that have ended or progressed, by `tokens`, to the writer."""
        if jobs:
            self.write.put(jobs, tokens=tokens)

    def forget(self, job: Job) -> bool:
        """Drop a job from every queue. Return False if it was completed or dropped before."""
        if not self.leave(job):
            return False
        self.weigh(job, -job.waiting_tokens)
        job.cancelled = True
        if not job.isolated:
            waiting = sum(piece.tokens for piece in job.waiting)
            self.queues[job.info.name].discard(job, waiting)
        job.waiting.clear()
        if job.isolated:
            # Other threads may rest because of it.
            self.wake_all()
        return True

    def leave(self, job: Job) -> bool:
        """Remove a job that is being completed. Return False if it was removed before."""
        if job not in self._jobs:
            return False
        del self._jobs[job]
        self.capacity.size[job.lane] -= job.size
        self.isolation.leave(job)
        return True

    def restore(self, jobs: Iterable[Job]) -> None:
        """Keep jobs for `clear` after their completion failed, and with it the engine."""
        self._jobs |= dict.fromkeys(jobs)

    # -- tokenize ---------------------------------------------------------------------------

    def add(self, pieces: Sequence[Piece]) -> None:
        """Add tokenized texts."""
        for piece in pieces:
            job = piece.job
            if job.cancelled:
                continue
            self.weigh(job, piece.tokens)
            job.waiting.append(piece)
            if not job.isolated:
                self.queues[job.info.name].add(job, piece.tokens)
        self._wake(sum(piece.texts for piece in pieces))

    # -- encode -----------------------------------------------------------------------------

    def next_batch(self, budgets: Mapping[str, int], *, interactive: bool) -> Selection | None:
        """Select the next batch of a slot: of one model, at most its budget or one text.

        `interactive`: for the reserved slot. It takes such texts while all other slots are busy, of
        tenants that they do not serve: more callers of one tenant need full batches.
        Return None if no batch is possible, if the writer is behind, or if a job is to be isolated.
        """
        if not self.queues.tokens or self.write.full or self.isolation.active:
            return None
        if interactive and self.slots.idle:
            return None
        for name, queue in self.queues.in_turn():
            if interactive:
                pieces = queue.take_small(int(budgets[name] * _SMALL), self.slots.tenants)
            else:
                share = self.slots.share(queue.tokens)
                pieces = queue.take(budgets[name], room=min(budgets[name], share))
            if pieces:
                self.queues.served(name)
                return self.select(pieces)
        return None

    def select(self, pieces: list[Piece]) -> Selection:
        """Move waiting pieces into a batch."""
        starting, now = [], time.time()
        if pieces and not pieces[0].job.isolated:
            self.isolation.note_turn()
        for piece in pieces:
            job = piece.job
            self.weigh(job, -piece.tokens)
            if job.started_at is None:
                job.started_at = now
                starting.append(job)
        return Selection(pieces, starting)

    def arrive(self, pieces: Sequence[Piece], faults: Mapping[int, Fault]) -> None:
        """Count a batch in its jobs, which have its vectors, and pass them to the writer."""
        for job, row, fault in batch.faults_of(pieces, faults):
            job.fail_row(row, fault.code, fault.message)
        for piece in pieces:
            piece.job.count(piece)
        jobs = dict.fromkeys(piece.job for piece in pieces)
        self.complete(jobs, sum(piece.tokens for piece in pieces))

    def quiet(self) -> bool:
        """Whether all threads rest, and everything is written."""
        return not self.write.waiting and all(stage.busy.since is None for stage in self.stages)

    # -- wake -------------------------------------------------------------------------------

    def wake_others(self) -> None:
        """A slot has taken work; wake other threads for the rest."""
        if self.queues.tokens:
            self._wake(1)
        if self.tokenize.waiting:
            self.tokenize.wake()

    def wake_all(self) -> None:
        """Let every thread look for work."""
        for stage in self.stages:
            stage.changed.notify_all()

    def _wake(self, slots: int) -> None:
        """Wake at most `slots` idle slots for waiting texts; the reserved slot if all are busy."""
        if self.slots.idle:
            self.to_encode.notify(slots)
        else:
            self.to_answer.notify()

    # -- close ------------------------------------------------------------------------------

    def pause(self, seconds: float) -> bool:
        """Block for `seconds`, or until the engine closes. Return whether it still runs."""
        return not self._closed.wait(seconds)

    @property
    def closed(self) -> bool:
        """Whether the engine closes."""
        return self._closed.is_set()

    def shut(self) -> None:
        """Let every thread end, the writer when its queue is empty and closed."""
        self._closed.set()
        for stage in self.stages:
            if stage is not self.write:
                stage.close()

    def clear(self) -> list[Job]:
        """Return and forget the jobs that were not completed."""
        left, self._jobs = list(self._jobs), {}
        return left
