"""The jobs under way and what the threads hand to one another, behind one lock."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence

from worker.contract.lanes import Lane
from worker.engine import batch
from worker.engine.arrivals import Arrivals
from worker.engine.forward import Fault
from worker.engine.isolation import Isolation
from worker.engine.job import Job, Piece
from worker.engine.outbox import Outbox
from worker.engine.room import Room
from worker.engine.schedule import Schedules
from worker.engine.tokenising import Intake, Refusal, Slice


class Backlog:
    """What every thread of the engine shares.

    `lock` guards all of it and every job, but for a job's vectors; nothing slow runs under it. The
    caller of any method holds it, except for `submit` and `pause`, which take it.
    """

    def __init__(
        self,
        models: Iterable[str],
        producers: int,
        *,
        looked_up: bool = False,
        express: Collection[str] = (),
    ) -> None:
        """`producers`: how many threads put jobs into the outbox.

        `looked_up`: whether there is a cache, which jobs go through before they are tokenised.
        `express`: the models that small batches run through beside large ones.
        """
        self.lock = threading.Lock()
        #: Told when texts wait to be encoded, and when the engine closes; the device thread, and
        #: the express where somebody waits for them.
        self.to_encode = threading.Condition(self.lock)
        self.to_express = threading.Condition(self.lock)
        self.isolation = Isolation(self.to_encode)
        self.arrivals = Arrivals(self.lock, self.isolation)
        self.intake = Intake(self.lock, self.isolation)
        self.schedules = Schedules(models, express)
        self.outbox = Outbox(self.lock, producers)
        self.room = Room()
        self.closing = False
        self._closed = threading.Condition(self.lock)
        self._looked_up = looked_up
        #: Jobs whose end the sink has not heard of and will.
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
            (self.arrivals if self._looked_up else self.intake).put(*shared)

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
                    self.schedules.add(job)
        self.to_encode.notify()
        if any(piece.job.lane is Lane.INTERACTIVE for piece in pieces):
            self.to_express.notify()

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Texts that no batch will hold; tells the writer of the jobs that end with them."""
        ended = []
        for job, index, code, message in refusals:
            job.fail(index, code, message)
            if job.ended:
                ended.append(job)
        self.outbox.put(ended)

    def cut(self, budgets: Mapping[str, int]) -> list[Piece]:
        """The device thread's next batch, see `Schedules.cut`; none if a job is to be isolated."""
        if self.isolation.is_due(self._shared):
            return []
        pieces = self.take(self.schedules.cut(budgets))
        # What it left may be for the express.
        self.to_express.notify()
        return pieces

    def cut_express(self, budgets: Mapping[str, int]) -> list[Piece]:
        """The next batch of the express, whose last one is done; see `Schedules.cut_express`."""
        if self.schedules.express_runs:
            # For a job that is to be isolated the device thread waits for its end.
            self.to_encode.notify()
        return self.take(self.schedules.cut_express({} if self.isolation.begun else budgets))

    def take(self, pieces: list[Piece]) -> list[Piece]:
        """These pieces are in a batch now: they wait no more."""
        for piece in pieces:
            self.room.weigh(piece.job, -piece.tokens)
            if not piece.job.alone:
                self.isolation.note_others()
        return pieces

    def isolated(self) -> Job | None:
        """A job to run while all other threads rest, once they do; None if there is none."""
        if not self.isolation.is_due(self._shared):
            if self.isolation.begun:
                # It was cancelled meanwhile.
                self.end_isolation(None)
            return None
        self.isolation.begin()
        at_rest = self.isolation.quiet and self.outbox.told and not self.schedules.express_runs
        return self.isolation.take() if at_rest else None

    def end_isolation(self, job: Job | None) -> None:
        """All other threads go on; a job that has not ended runs again later."""
        self.isolation.end(job)
        self.to_express.notify()

    def arrive(self, pieces: Sequence[Piece], faults: Mapping[int, Fault]) -> None:
        """Count a batch in its jobs, whose vectors are there, and tell the writer."""
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
        job.chunks.clear()
        self.schedules.discard(job)
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
        self.to_encode.notify_all()
        self.to_express.notify_all()
        self.outbox.wake()

    def clear(self) -> list[Job]:
        """The jobs that the sink has not heard of and will not."""
        left, self._jobs, self._shared = list(self._jobs), {}, 0
        return left
