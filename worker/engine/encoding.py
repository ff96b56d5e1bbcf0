"""One thread's batches: composed one after the other, run through a model, counted.

Where a model runs a batch in parts, a core a part, the next batch begins as soon as one of them has
nothing left to do, if enough waits to fill it: so no core waits for another at a batch's end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from worker.encoder.protocol import Begun
from worker.engine import batch
from worker.engine.backlog import Backlog
from worker.engine.composer import Batch, Composer
from worker.engine.counts import Counts
from worker.engine.forward import Closing, Forward
from worker.engine.job import Job
from worker.engine.sink import Sink
from worker.watchdog import Busy


class _Running(NamedTuple):
    """A batch that has begun, or is to run when it ends; `budget` as it was then."""

    batch: Batch
    forward: Forward
    budget: int
    begun: Begun | None


class Encoding:
    """What one thread encodes, and what it has encoded so far.

    `run` is that thread: it alone changes what is here, and uses `forwards`; any other may look.
    """

    def __init__(
        self,
        backlog: Backlog,
        sink: Sink,
        forwards: Mapping[str, Forward],
        counts: Counts,
        *,
        tokenise_isolated: Callable[[Job], None] | None = None,
    ) -> None:
        """`tokenise_isolated`: see `Composer`; None for the express."""
        self.forwards = forwards
        self._backlog = backlog
        self._counts = counts
        self._composer = Composer(
            backlog, sink, forwards, idle=self._sign_life, tokenise_isolated=tokenise_isolated
        )
        #: Monotonic time of the thread's last sign of life.
        self.beat = time.monotonic()
        #: Since when the forward pass runs that runs now.
        self.busy = Busy(f"embedq-{'encode' if tokenise_isolated else 'express'}")
        self.batches = 0
        self.texts = 0
        #: Texts of these that another one of their batch had the vector of.
        self.repeats = 0
        self.tokens = 0
        #: Token budgets of the batches so far: `tokens / capacity` is how full they were.
        self.capacity = 0
        self.busy_seconds = 0.0
        for forward in forwards.values():
            forward.pause = self._pause

    def run(self) -> None:
        """Encode until the engine closes."""
        try:
            running = self._begin(self._composer.next())
            while running is not None:
                following = self._begin(self._beside(running))
                self._end(running, goes_on=following is not None)
                running = following or self._begin(self._composer.next())
        except Closing:
            # Who closes the engine is given the jobs that have not ended.
            return

    def _begin(self, found: Batch | None) -> _Running | None:
        if found is None:
            return None
        forward = self.forwards[found.pieces[0].job.info.name]
        forward.patient = found.patient
        self.capacity += forward.budget
        if self.busy.since is None:
            self.busy.enter()
        return _Running(found, forward, forward.budget, forward.begin(found.texts.block))

    def _beside(self, running: _Running) -> Batch | None:
        """What begins before this one is done, once that leaves a core idle.

        Nothing does beside an isolated job, nor beside a batch that would get no core any more.
        """
        if running.begun is None or running.batch.patient or running.batch.pieces[0].job.alone:
            return None
        running.begun.wait_for_core()
        return self._composer.next_beside()

    def _end(self, running: _Running, *, goes_on: bool) -> None:
        """`goes_on`: the next batch has begun."""
        pieces, texts, patient = running.batch
        forward, budget = running.forward, running.budget
        forward.patient = patient
        vectors, faults = texts.spread(*forward.run(texts.block, running.begun))
        self._sign_life()
        seconds = self.beat - (self.busy.since or self.beat)
        self.busy.since = self.beat if goes_on else None
        self.busy_seconds += seconds
        self.batches += 1
        encoded = sum(piece.texts for piece in pieces)
        self.texts += encoded
        self.repeats += texts.repeats
        self.tokens += sum(piece.tokens for piece in pieces)
        batch.hand_out(pieces, vectors)
        with self._backlog.lock:
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
