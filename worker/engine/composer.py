"""What the device runs next: cut from what waits, admitted by the sink, each text once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from worker.engine import batch
from worker.engine.backlog import Backlog
from worker.engine.forward import Forward
from worker.engine.job import Job, Piece
from worker.engine.repeats import Distinct, distinct
from worker.engine.sink import Sink

#: Seconds between two signs of life of an idle device thread.
_IDLE_BEAT = 5.0
#: Token budgets' worth of texts that may share a batch where most of them repeat.
_MOST_BUDGETS = 8


class Batch(NamedTuple):
    """Texts of one model for one forward pass."""

    pieces: list[Piece]
    texts: Distinct
    #: Whether it leaves the cores to others.
    patient: bool = False


class Composer:
    """Composes one thread's batches, as late as it can: when the one before is done."""

    def __init__(
        self,
        backlog: Backlog,
        sink: Sink,
        forwards: Mapping[str, Forward],
        *,
        idle: Callable[[], None],
        tokenise_isolated: Callable[[Job], None] | None = None,
    ) -> None:
        """`idle` is called every few seconds while there is nothing to run.

        `tokenise_isolated`: how the device thread tokenises the next texts of a job that it runs
        alone. None for the express, which runs small batches beside those of the device thread.
        """
        express = tokenise_isolated is None
        self._backlog = backlog
        self._sink = sink
        self._forwards = forwards
        self._idle = idle
        self._express = express
        self._next = backlog.cut_express if express else backlog.cut
        self._filled = backlog.to_express if express else backlog.to_encode
        self._tokenise_isolated = tokenise_isolated
        #: The job whose slice runs, see `isolation`.
        self._isolated: Job | None = None

    def next(self) -> Batch | None:
        """Wait for texts and make a batch of them; None once the engine closes."""
        self._end_slice()
        while (found := self._cut()) is not None:
            if isinstance(found, Job):
                if pieces := self._slice(found):
                    return Batch(pieces, distinct(batch.joined(pieces)))
                self._end_slice()
            elif pieces := self._admitted(found):
                return self._without_repeats(pieces)
        return None

    def next_beside(self) -> Batch | None:
        """A batch to run beside the end of the last one, which was not of an isolated job.

        None where less waits than fills one: whoever comes until that end may then be in it. None
        as well if a job is to be isolated.
        """
        backlog = self._backlog
        with backlog.lock:
            budgets = self._budgets()
            if backlog.closing or backlog.outbox.full:
                return None
            if backlog.room.waiting < max(budgets.values()):
                return None
            pieces = backlog.cut(budgets)
        pieces = self._admitted(pieces)
        return self._without_repeats(pieces) if pieces else None

    def _cut(self) -> list[Piece] | Job | None:
        """Wait for texts and cut a batch of one model, or find a job to be isolated.

        None once the engine closes.
        """
        backlog = self._backlog
        with backlog.lock:
            while not backlog.closing:
                if not self._express and (job := backlog.isolated()) is not None:
                    return job
                # A job is isolated only once the writer has told all there is.
                if backlog.outbox.full or (backlog.isolation.begun and not backlog.outbox.told):
                    self._idle()
                    backlog.outbox.wait_until_emptied(_IDLE_BEAT)
                    continue
                if pieces := self._next(self._budgets()):
                    return pieces
                self._idle()
                self._filled.wait(_IDLE_BEAT)
            return None

    def _slice(self, job: Job) -> list[Piece]:
        """The next batch of a job that runs while all other threads rest; empty if it has none."""
        if not self._sink.isolate(job):
            with self._backlog.lock:
                self._backlog.forget(job)
                self._backlog.end_isolation(job)
            return []
        self._isolated = job
        if not job.chunks and self._tokenise_isolated is not None:
            self._tokenise_isolated(job)
        with self._backlog.lock:
            budget = self._forwards[job.info.name].budget
            pieces = self._backlog.take(job.take_batch(budget))
        return self._started(pieces)

    def _end_slice(self) -> None:
        """Wait until the slice that ran is told, and let others run."""
        job, self._isolated = self._isolated, None
        if job is None:
            return
        backlog = self._backlog
        with backlog.lock:
            while not (backlog.outbox.told or backlog.closing):
                self._idle()
                backlog.outbox.wait_until_emptied(_IDLE_BEAT)
            told = backlog.outbox.told
        if told:
            self._sink.released(job)
        with backlog.lock:
            backlog.end_isolation(job)

    def _budgets(self) -> dict[str, int]:
        return {name: forward.budget for name, forward in self._forwards.items()}

    def _without_repeats(self, pieces: list[Piece]) -> Batch:
        """What differs among a batch's texts; the room of what repeats goes to others that wait."""
        texts = distinct(batch.joined(pieces))
        if self._express:
            return Batch(pieces, texts)
        name, most = pieces[0].job.info.name, self._forwards[pieces[0].job.info.name].budget
        tokens = sum(piece.tokens for piece in pieces)
        while texts.repeats and texts.block.tokens <= most // 2 and tokens < _MOST_BUDGETS * most:
            with self._backlog.lock:
                room = most - texts.block.tokens
                more = self._backlog.take(self._backlog.schedules.more(name, room))
            more = self._admitted(more)
            if not more:
                break
            pieces = [*pieces, *more]
            tokens += sum(piece.tokens for piece in more)
            texts = distinct(batch.joined(pieces))
        return Batch(pieces, texts, self._backlog.schedules.patient)

    def _admitted(self, pieces: list[Piece]) -> list[Piece]:
        """Ask for the jobs that start with this batch; drop those that may not, or are gone."""
        starting = dict.fromkeys(piece.job for piece in pieces if piece.job.started_at is None)
        refused = [job for job in starting if not self._sink.admit(job)]
        with self._backlog.lock:
            for job in refused:
                self._backlog.forget(job)
        return self._started(pieces)

    def _started(self, pieces: list[Piece]) -> list[Piece]:
        """Note which jobs start with this batch; drop those that are gone."""
        with self._backlog.lock:
            pieces = [piece for piece in pieces if not piece.job.cancelled]
        started = dict.fromkeys(piece.job for piece in pieces if piece.job.started_at is None)
        now = time.time()
        for job in started:
            job.started_at = now
        if started:
            self._sink.started(list(started))
        return pieces
