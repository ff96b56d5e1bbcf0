"""The running jobs and the queues between the threads, behind one lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from worker.engine import batch
from worker.engine.arrivals import Arrivals
from worker.engine.fair_queue import ModelQueues
from worker.engine.forward import Fault
from worker.engine.isolation import Isolation
from worker.engine.job import Job, Piece
from worker.engine.occupancy import Occupancy
from worker.engine.outbox import Outbox
from worker.engine.room import Room
from worker.engine.tokenising import Intake, Refusal, Slice

#: The reserved slot takes the texts of tenants that have at most this part of a batch waiting.
_SMALL = 1 / 3


class Taken(NamedTuple):
    """Pieces for a batch, and the jobs of which they are the first."""

    pieces: list[Piece]
    starting: list[Job]


class Backlog:
    """The state that all threads of the engine share.

    `lock` guards all of it and every job; nothing slow runs under it. The caller of any method
    holds it, except for `submit` and `pause`, which take it.
    """

    def __init__(
        self,
        models: Iterable[str],
        producers: int,
        *,
        slots: int = 1,
        looked_up: bool = False,
    ) -> None:
        """`producers`: how many threads put jobs into the outbox. `slots`: for every lane.

        `looked_up`: whether there is a cache, which jobs go through before they are tokenised.
        """
        self.lock = threading.Lock()
        #: Notified when a slot for every lane may have something to do: texts wait, the writer has
        #: room again, a job is to be isolated or was, the engine closes.
        self.to_encode = threading.Condition(self.lock)
        #: The same for the reserved slot.
        self.to_answer = threading.Condition(self.lock)
        self.isolation = Isolation(self.to_encode)
        self.arrivals = Arrivals(self.lock, self.isolation)
        self.intake = Intake(self.lock, self.isolation)
        self.queues = ModelQueues(models)
        self.outbox = Outbox(self.lock, producers, self._written)
        self.slots = Occupancy(slots)
        self.room = Room()
        self.closing = False
        self._closed = threading.Condition(self.lock)
        self._looked_up = looked_up
        #: Jobs whose completion the sink has not received yet.
        self._jobs: dict[Job, None] = {}
        #: How many of them share the engine with others.
        self._shared = 0

    def pause(self, seconds: float) -> bool:
        """Block for so long, or until the engine closes. Return whether it goes on."""
        with self.lock:
            return not self._closed.wait_for(lambda: self.closing, seconds)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs over. Raises RuntimeError once the engine is closed."""
        estimates = [Slice(job, 0, len(job.texts)).estimate for job in jobs]
        with self.lock:
            if self.closing:
                raise RuntimeError("the engine is closed")
            for job, estimate in zip(jobs, estimates, strict=True):
                self._jobs[job] = None
                self.room.weigh(job, estimate)
                self.room.enter(job)
                if job.alone:
                    self.isolation.add(job)
            shared = [job for job in jobs if not job.alone]
            self._shared += len(shared)
            if self._looked_up:
                self.arrivals.put(*shared)
            else:
                self.take_in(*shared)

    def take_in(self, *jobs: Job) -> None:
        """Jobs have texts to tokenize: on an idle slot, else on the tokenizer thread."""
        self.intake.put(*jobs)
        if self.slots.idle and not self.isolation.begun:
            self.to_encode.notify()
        else:
            self.intake.wake()

    def to_tokenise(self) -> list[Slice]:
        """Texts for an idle slot to tokenize; it calls `intake.give_back` then."""
        if self.isolation.begun or self.isolation.is_due(self._shared):
            return []
        return self.intake.borrow()

    def found(self) -> None:
        """A slot has work; wake other threads for the rest."""
        if self.queues.tokens:
            self._wake(1)
        if self.intake.waiting:
            self.intake.wake()

    def _wake(self, slots: int) -> None:
        """Texts wait for so many slots."""
        if self.slots.idle:
            self.to_encode.notify(slots)
        else:
            self.to_answer.notify()

    def _written(self) -> None:
        """The writer has taken or written its queue."""
        if self.queues.tokens or self.isolation.begun:
            self.wake_all()

    def wake_all(self) -> None:
        """Let every slot look for something to do."""
        self.to_encode.notify_all()
        self.to_answer.notify()

    def line_up(self, estimated: Iterable[tuple[Job, int]], pieces: Sequence[Piece]) -> None:
        """Texts of these jobs, of so many tokens as was estimated, have become `pieces`."""
        for job, estimate in estimated:
            if not job.cancelled:
                self.room.weigh(job, -estimate)
        for piece in pieces:
            job = piece.job
            if not job.cancelled:
                self.room.weigh(job, piece.tokens)
                job.chunks.append(piece)
                if not job.alone:
                    self.queues[job.info.name].add(job, piece.tokens)
        self._wake(sum(piece.texts for piece in pieces))

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Fail texts before any batch; pass the jobs that end with them to the writer."""
        ended = []
        for job, index, code, message in refusals:
            job.fail(index, code, message)
            if job.ended:
                ended.append(job)
        self.outbox.put(ended)

    def cut(self, budgets: Mapping[str, int], *, interactive: bool) -> Taken | None:
        """The next batch of a slot: of one model, at most its budget or one text.

        `interactive`: for the reserved slot. It takes such texts while all other slots are busy, of
        tenants that they do not serve: more callers of one tenant need full batches.
        None if there is none, if the writer has enough to do, or if a job is to be isolated.
        """
        if self.outbox.full or self.isolation.begun or self.isolation.is_due(self._shared):
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
                return self.take(pieces)
        return None

    def take(self, pieces: list[Piece]) -> Taken:
        """These pieces are in a batch now: they wait no more."""
        starting, now = [], time.time()
        for piece in pieces:
            job = piece.job
            self.room.weigh(job, -piece.tokens)
            if not job.alone:
                self.isolation.note_others()
            if job.started_at is None:
                job.started_at = now
                starting.append(job)
        return Taken(pieces, starting)

    def isolated(self) -> Job | None:
        """Return the job to isolate once all other threads rest, else None."""
        if not self.isolation.is_due(self._shared):
            if self.isolation.begun:
                # It was cancelled meanwhile.
                self.end_isolation(None)
            return None
        self.isolation.begin()
        at_rest = self.isolation.quiet and self.outbox.told
        return self.isolation.take() if at_rest else None

    def end_isolation(self, job: Job | None) -> None:
        """All other threads go on; a job that has not ended runs again later."""
        self.isolation.end(job)
        self.wake_all()

    def arrive(self, pieces: Sequence[Piece], faults: Mapping[int, Fault]) -> None:
        """Count a batch in its jobs, which have its vectors, and pass them to the writer."""
        for job, row, fault in batch.faults_of(pieces, faults):
            job.fault(row, fault.code, fault.message)
        for piece in pieces:
            piece.job.arrive(piece)
        jobs = dict.fromkeys(piece.job for piece in pieces)
        ended = [job for job in jobs if job.ended]
        self.outbox.put(ended, [job for job in jobs if not job.ended])

    def forget(self, job: Job) -> bool:
        """Drop a job from every queue. Whether the sink was still to hear of it."""
        if not self.leave(job):
            return False
        self.room.weigh(job, -job.waiting_tokens)
        job.cancelled = True
        if not job.alone:
            waiting = sum(piece.tokens for piece in job.chunks)
            self.queues[job.info.name].discard(job, waiting)
        job.chunks.clear()
        self.isolation.discard(job)
        return True

    def leave(self, job: Job) -> bool:
        """Whether the sink was still to hear of a job; it is not any more."""
        if job not in self._jobs:
            return False
        del self._jobs[job]
        self.room.leave(job)
        if not job.alone:
            self._shared -= 1
            self.isolation.note_others()
        return True

    def take_back(self, jobs: Iterable[Job]) -> None:
        """Jobs that have left, of which the sink may not have heard."""
        for job in jobs:
            self._jobs[job] = None
            self.room.enter(job)
            self._shared += not job.alone

    def shut(self) -> None:
        """Let every thread come to its end."""
        self.closing = True
        self._closed.notify_all()
        self.arrivals.close()
        self.intake.close()
        self.outbox.wake()
        self.wake_all()

    def clear(self) -> list[Job]:
        """The jobs that the sink has not heard of and will not."""
        left, self._jobs, self._shared = list(self._jobs), {}, 0
        return left
