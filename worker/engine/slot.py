"""One place on the device, with its thread: takes a batch, encodes it, passes the vectors on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from worker.encoder.protocol import Encoder
from worker.engine import batch
from worker.engine.backlog import Backlog, Taken
from worker.engine.counts import Counts
from worker.engine.forward import Closing, Forward
from worker.engine.job import Job, Piece
from worker.engine.repeats import Distinct, distinct
from worker.engine.sink import Sink
from worker.engine.tokeniser import Tokeniser
from worker.engine.tokenising import Slice
from worker.watchdog import Busy

#: Seconds between two signs of life of an idle slot.
_IDLE_BEAT = 5.0
#: Token budgets' worth of texts that may share a batch if most of them repeat.
_MOST_BUDGETS = 8


class Batch(NamedTuple):
    """Texts of one model for one forward pass, and the cores to compute it with."""

    pieces: list[Piece]
    texts: Distinct
    cores: int = 1


class ToTokenise(NamedTuple):
    """Texts for one call of the tokenizer."""

    slices: list[Slice]


class Slot:
    """One slot and its counters. `run` is the body of its thread.

    This thread alone changes the attributes and uses `forwards`; other threads may read them. The
    first slot also runs isolated jobs. The reserved slot, which is `interactive`, takes interactive
    texts while all other slots are busy.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        backlog: Backlog,
        sink: Sink,
        counts: Counts,
        *,
        name: str,
        tokeniser: Tokeniser,
        first: bool = False,
        interactive: bool = False,
    ) -> None:
        self.forwards = {
            one: Forward(
                encoder, encoder.info.batch_tokens, encoder.tokenize(["probe"]), self._pause
            )
            for one, encoder in encoders.items()
        }
        self._encoders = encoders
        self._backlog = backlog
        self._sink = sink
        self._counts = counts
        self._interactive = interactive
        self._tokeniser = tokeniser
        self._is_first = first
        #: Since when the batch runs that runs now.
        self.busy = Busy(f"embedq-{name}")
        if not self._is_first:
            backlog.isolation.watch(self.busy)
        #: The job whose slice runs, see `isolation`.
        self._isolated: Job | None = None
        #: Monotonic time of the thread's last sign of life.
        self.beat = time.monotonic()
        self.batches = 0
        self.texts = 0
        #: Texts of these that another one of their batch had the vector of.
        self.repeats = 0
        self.tokens = 0
        #: Token budgets of the batches so far: `tokens / capacity` is how full they were.
        self.capacity = 0
        self.busy_seconds = 0.0

    def run(self) -> None:
        """Encode until the engine closes."""
        for encoder in self._encoders.values():
            encoder.enter(yielding=not self._interactive)
        try:
            while (found := self._next()) is not None:
                self._encode(found)
        except Closing:
            # `Engine.close` returns the jobs that have not ended.
            return

    # -- take -------------------------------------------------------------------------------

    def _next(self) -> Batch | None:
        """Wait for texts and make a batch of them; None once the engine closes."""
        self._end_slice()
        while (found := self._take()) is not None:
            if isinstance(found, Job):
                if pieces := self._slice(found):
                    return Batch(pieces, distinct(batch.joined(pieces)))
                self._end_slice()
            elif isinstance(found, ToTokenise):
                self._tokeniser.tokenise(found.slices)
                with self._backlog.lock:
                    self._backlog.intake.give_back()
            elif pieces := self._admitted(found):
                return self._without_repeats(pieces)
        return None

    def _take(self) -> Taken | ToTokenise | Job | None:
        """Wait for something to do; None once the engine closes.

        Return the texts of a batch, a job to isolate, or texts to tokenize, in this order.
        """
        backlog, reserved = self._backlog, self._interactive
        found: Taken | ToTokenise | Job | None = None
        with backlog.lock:
            self.busy.leave()
            if not reserved:
                backlog.slots.rest(self)
            backlog.isolation.rested()
            while not backlog.closing and (found := self._find()) is None:
                self._sign_life()
                (backlog.to_answer if reserved else backlog.to_encode).wait(_IDLE_BEAT)
            if not reserved:
                backlog.slots.run(self, found.pieces if isinstance(found, Taken) else [])
            if found is not None:
                self.busy.enter()
                backlog.found()
        return found

    def _find(self) -> Taken | ToTokenise | Job | None:
        backlog = self._backlog
        if self._is_first and (job := backlog.isolated()) is not None:
            return job
        if (taken := backlog.cut(self._budgets(), interactive=self._interactive)) is not None:
            return taken
        slices = [] if self._interactive else backlog.to_tokenise()
        return ToTokenise(slices) if slices else None

    def _without_repeats(self, pieces: list[Piece]) -> Batch:
        """Return a batch without its repeated texts; waiting texts get the room of these."""
        backlog, name = self._backlog, pieces[0].job.info.name
        texts, most = distinct(batch.joined(pieces)), self.forwards[name].budget
        tokens = sum(piece.tokens for piece in pieces)
        lanes = {piece.job.lane for piece in pieces}
        while texts.repeats and texts.block.tokens <= most // 2 and tokens < _MOST_BUDGETS * most:
            with backlog.lock:
                room = most - texts.block.tokens
                taken = backlog.take(backlog.queues[name].take(most, lanes, room=room))
            more = self._admitted(taken)
            if not more:
                break
            pieces = [*pieces, *more]
            tokens += sum(piece.tokens for piece in more)
            texts = distinct(batch.joined(pieces))
        if len(texts.block) > 1 or self._interactive:
            return Batch(pieces, texts)
        with backlog.lock:
            return Batch(pieces, texts, 1 + backlog.slots.idle)

    def _admitted(self, taken: Taken) -> list[Piece]:
        """Ask for the jobs that start with these pieces; drop those that may not, or are gone."""
        pieces, starting = taken
        refused = [job for job in starting if not job.alone and not self._sink.admit(job)]
        with self._backlog.lock:
            for job in refused:
                self._backlog.forget(job)
            started = [job for job in starting if not job.cancelled]
            pieces = [piece for piece in pieces if not piece.job.cancelled]
        if started:
            self._sink.started(started)
        return pieces

    def _budgets(self) -> dict[str, int]:
        return {name: forward.budget for name, forward in self.forwards.items()}

    # -- encode -----------------------------------------------------------------------------

    def _encode(self, found: Batch) -> None:
        pieces, texts, cores = found
        forward = self.forwards[pieces[0].job.info.name]
        budget, begun = forward.budget, time.monotonic()
        vectors, faults = texts.spread(*forward.run(texts.block, cores))
        self._sign_life()
        seconds = self.beat - begun
        self.busy_seconds += seconds
        self.batches += 1
        self.capacity += budget
        encoded = sum(piece.texts for piece in pieces)
        self.texts += encoded
        self.repeats += texts.repeats
        self.tokens += sum(piece.tokens for piece in pieces)
        rows = list(batch.rows_of(pieces, vectors))
        with self._backlog.lock:
            # Another slot may have texts of the same job.
            for piece, own in rows:
                piece.job.keep(piece, own)
            self._counts.encoded(
                pieces,
                seconds,
                texts=encoded,
                tokens=texts.block.tokens,
                budget=budget,
                faults=[fault.code for fault in faults.values()],
            )
            self._backlog.arrive(pieces, faults)

    def _pause(self, seconds: float) -> bool:
        """Wait for memory of the device, which is no hang; False if the engine closes."""
        self.busy.leave()
        self._sign_life()
        goes_on = self._backlog.pause(seconds)
        self._sign_life()
        self.busy.enter()
        return goes_on

    def _sign_life(self) -> None:
        self.beat = time.monotonic()

    # -- isolate ----------------------------------------------------------------------------

    def _slice(self, job: Job) -> list[Piece]:
        """Return the next pieces of an isolated job; empty if it has none."""
        if not self._sink.isolate(job):
            with self._backlog.lock:
                self._backlog.forget(job)
                self._backlog.end_isolation(job)
            return []
        self._isolated = job
        if not job.chunks:
            self._tokeniser.tokenise_isolated(job)
        with self._backlog.lock:
            budget = self.forwards[job.info.name].budget
            taken = self._backlog.take(job.take_batch(budget))
        return self._admitted(taken)

    def _end_slice(self) -> None:
        """Wait until the writer has written the slice that ran, and end the isolation."""
        job, self._isolated = self._isolated, None
        if job is None:
            return
        backlog = self._backlog
        with backlog.lock:
            while not (backlog.outbox.told or backlog.closing):
                self._sign_life()
                backlog.outbox.wait_until_emptied(_IDLE_BEAT)
            told = backlog.outbox.told
        if told:
            self._sink.released(job)
        with backlog.lock:
            backlog.end_isolation(job)
