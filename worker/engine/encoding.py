"""One thread's batches: composed one after the other, run through a model, counted."""

from __future__ import annotations

import time
from collections.abc import Mapping

from worker.engine import batch
from worker.engine.backlog import Backlog
from worker.engine.composer import Batch, Composer
from worker.engine.counts import Counts
from worker.engine.forward import Forward
from worker.engine.sink import Sink


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
        express: bool = False,
    ) -> None:
        """`express`: it takes what need not wait for the batch that another thread runs."""
        self.forwards = forwards
        self._backlog = backlog
        self._counts = counts
        self._composer = Composer(backlog, sink, forwards, idle=self._sign_life, express=express)
        #: Monotonic time of the thread's last sign of life, and of the forward pass that runs now,
        #: else None.
        self.beat = time.monotonic()
        self.busy_since: float | None = None
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
        while (found := self._composer.next()) is not None:
            self._encode(found)

    def _encode(self, found: Batch) -> None:
        pieces, texts, patient = found
        self.busy_since = begun = time.monotonic()
        forward = self.forwards[pieces[0].job.info.name]
        forward.patient = patient
        budget = forward.budget
        self.capacity += budget
        vectors, faults = texts.spread(*forward.run(texts.block))
        self._sign_life()
        self.busy_since = None
        seconds = self.beat - begun
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

    def _sign_life(self) -> None:
        self.beat = time.monotonic()
