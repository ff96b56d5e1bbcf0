"""Encode: the thread of a slot takes a batch, encodes it and returns the vectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from worker.encoder.protocol import Encoder
from worker.engine import batch
from worker.engine.callbacks import grouped
from worker.engine.deduplicate import Distinct, distinct
from worker.engine.encode import BatchEncoder, Closing
from worker.engine.job import Job, Piece
from worker.engine.metrics import Counts
from worker.engine.occupancy import Occupancy
from worker.engine.queue import Stage
from worker.engine.scheduler import Scheduler, Selection
from worker.engine.tokenize import Slice, Tokenize, next_slices

#: Token budgets' worth of texts that may share a batch if most of them are equal.
_MOST_BUDGETS = 8


@dataclass(slots=True)
class BatchTotals:
    """Sums over all batches. They change under the engine's lock; any thread may read."""

    batches: int = 0
    texts: int = 0
    #: Texts that share the vector of an equal text of the batch.
    repeats: int = 0
    tokens: int = 0
    #: Token budgets of the batches: `tokens / capacity` is how full they were.
    capacity: int = 0
    #: Seconds of forward passes, divided by the number of slots.
    busy_seconds: float = 0.0


class Slot:
    """One slot. `run` is the body of its thread; all methods belong to it.

    The first slot also runs isolated jobs. The reserved slot, which is `interactive`, takes
    interactive texts while all other slots are busy.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        scheduler: Scheduler,
        tokenize: Tokenize,
        counts: Counts,
        totals: BatchTotals,
        *,
        name: str,
        first: bool = False,
        interactive: bool = False,
    ) -> None:
        self.batch_encoders = {
            one: BatchEncoder(
                encoder, encoder.info.batch_tokens, encoder.tokenize(["probe"]), self._pause
            )
            for one, encoder in encoders.items()
        }
        self._encoders = encoders
        self._scheduler = scheduler
        self._tokenize = tokenize
        self._counts = counts
        self._totals = totals
        self._first = first
        self._interactive = interactive
        changed = scheduler.to_answer if interactive else scheduler.to_encode
        self.stage = Stage(name, changed, scheduler.isolation, rests=not first)
        scheduler.stages.append(self.stage)
        #: The reserved slot has its own; the other slots do not read it.
        self._occupancy = Occupancy(1) if interactive else scheduler.slots

    def run(self) -> None:
        """Encode until the engine closes."""
        for encoder in self._encoders.values():
            encoder.enter(yielding=not self._interactive)
        try:
            while (work := self._next()) is not None:
                work()
        except Closing:
            # `Engine.close` returns the jobs that have not ended.
            return

    # -- choose -----------------------------------------------------------------------------

    def _next(self) -> Callable[[], None] | None:
        """Wait for work; None once the engine closes."""
        with self._scheduler.lock:
            self._occupancy.rest(self)
            return self.stage.wait(self._find)

    def _find(self) -> Callable[[], None] | None:
        """A slice of an isolated job, a batch, or texts to tokenize, in this order."""
        scheduler, pieces = self._scheduler, list[Piece]()
        if scheduler.closed:
            return None
        if (work := self._isolated_work() if self._first else None) is not None:
            pass
        elif selection := scheduler.next_batch(self.budgets, interactive=self._interactive):
            work, pieces = partial(self._run, selection), selection.pieces
        elif not self._interactive and (slices := self._claim_texts()):
            work = partial(self._run_tokenizer, slices)
        else:
            return None
        self._occupancy.run(self, pieces)
        scheduler.wake_others()
        return work

    @property
    def budgets(self) -> dict[str, int]:
        """The current token budget of each model. Any thread."""
        return {name: encoder.budget for name, encoder in self.batch_encoders.items()}

    def _claim_texts(self) -> list[Slice]:
        scheduler = self._scheduler
        return [] if scheduler.isolation.active else scheduler.tokenize.claim(next_slices)

    def _run_tokenizer(self, slices: Sequence[Slice]) -> None:
        self._tokenize.tokenize(slices)
        with self._scheduler.lock:
            self._scheduler.tokenize.release()

    # -- encode -----------------------------------------------------------------------------

    def _run(self, selection: Selection) -> None:
        if not (pieces := self._admitted(selection)):
            return
        pieces, texts = self._filled(pieces)
        cores = 1
        if len(texts.block) == 1 and not self._interactive:
            # A single text may use the cores of the idle slots.
            with self._scheduler.lock:
                cores += self._scheduler.slots.idle
        self._encode(pieces, texts, cores)

    def _admitted(self, selection: Selection) -> list[Piece]:
        """Admit the jobs that start; drop refused and cancelled jobs."""
        pieces, starting = selection
        refused = [job for job in starting if not (job.isolated or job.callbacks.admit(job))]
        with self._scheduler.lock:
            for job in refused:
                self._scheduler.forget(job)
            started = [job for job in starting if not job.cancelled]
            pieces = [piece for piece in pieces if not piece.job.cancelled]
        for callbacks, jobs in grouped(started):
            callbacks.started(jobs)
        return pieces

    def _filled(self, pieces: list[Piece]) -> tuple[list[Piece], Distinct]:
        """Deduplicate a batch, and fill it with waiting texts if it becomes small."""
        scheduler, name = self._scheduler, pieces[0].job.info.name
        texts, most = distinct(batch.joined(pieces)), self.batch_encoders[name].budget
        tokens = sum(piece.tokens for piece in pieces)
        lanes = {piece.job.lane for piece in pieces}
        while texts.repeats and texts.block.tokens <= most // 2 and tokens < _MOST_BUDGETS * most:
            with scheduler.lock:
                room = most - texts.block.tokens
                selection = scheduler.select(scheduler.queues[name].take(most, lanes, room=room))
            more = self._admitted(selection)
            if not more:
                break
            pieces = [*pieces, *more]
            tokens += sum(piece.tokens for piece in more)
            texts = distinct(batch.joined(pieces))
        return pieces, texts

    def _encode(self, pieces: list[Piece], texts: Distinct, cores: int = 1) -> None:
        encoder = self.batch_encoders[pieces[0].job.info.name]
        budget, begun = encoder.budget, time.monotonic()
        vectors, faults = texts.spread(*encoder.encode(texts.block, cores))
        seconds = time.monotonic() - begun
        rows = list(batch.rows_of(pieces, vectors))
        encoded = sum(piece.texts for piece in pieces)
        with self._scheduler.lock:
            # Another slot may have texts of the same job.
            for piece, own in rows:
                piece.job.put_vectors(piece, own)
            self._count(pieces, texts, encoded, budget, seconds)
            self._counts.encoded(
                pieces,
                seconds,
                texts=encoded,
                tokens=texts.block.tokens,
                budget=budget,
                faults=[fault.code for fault in faults.values()],
            )
            self._scheduler.arrive(pieces, faults)

    def _count(
        self, pieces: list[Piece], texts: Distinct, encoded: int, budget: int, seconds: float
    ) -> None:
        totals = self._totals
        totals.batches += 1
        totals.texts += encoded
        totals.repeats += texts.repeats
        totals.tokens += sum(piece.tokens for piece in pieces)
        totals.capacity += budget
        totals.busy_seconds += seconds / self._scheduler.slots.count

    def _pause(self, seconds: float) -> bool:
        """Wait for memory of the device, which is no hang; False if the engine closes."""
        self.stage.busy.leave()
        goes_on = self._scheduler.pause(seconds)
        self.stage.busy.enter()
        return goes_on

    # -- isolate ----------------------------------------------------------------------------

    def _isolated_work(self) -> Callable[[], None] | None:
        """The next slice, or the end of one; None until all other threads rest."""
        isolation = self._scheduler.isolation
        if not (isolation.active and self._scheduler.quiet()):
            return None
        if isolation.running is not None:
            return partial(self._release, isolation.running)
        return partial(self._run_slice, isolation.begin())

    def _run_slice(self, job: Job) -> None:
        scheduler = self._scheduler
        if not job.callbacks.isolate(job):
            with scheduler.lock:
                scheduler.forget(job)
                self._end_isolation()
            return
        if not job.waiting:
            self._tokenize.tokenize_isolated(job)
        with scheduler.lock:
            budget = self.batch_encoders[job.info.name].budget
            selection = scheduler.select(job.take_batch(budget))
        if pieces := self._admitted(selection):
            self._encode(pieces, distinct(batch.joined(pieces)))

    def _release(self, job: Job) -> None:
        """The writer has written the slice."""
        job.callbacks.released(job)
        with self._scheduler.lock:
            self._end_isolation()

    def _end_isolation(self) -> None:
        self._scheduler.isolation.end()
        self._scheduler.wake_all()
