"""One thread's calls of the tokenizer, and those for a job that is isolated."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence

from worker.encoder.protocol import Encoder
from worker.engine.backlog import Backlog
from worker.engine.counts import Counts
from worker.engine.job import Job
from worker.engine.tokenising import Slice, front, tokenise


class Tokeniser:
    """Tokenises what waits in the intake; `run` is the body of its thread."""

    def __init__(self, encoders: Mapping[str, Encoder], backlog: Backlog, counts: Counts) -> None:
        self._encoders = encoders
        self._backlog = backlog
        self._counts = counts

    def run(self) -> None:
        """Until the backlog is shut."""
        while True:
            with self._backlog.lock:
                slices = self._backlog.intake.take()
            if not slices:
                return
            self.tokenise(slices)

    def tokenise_isolated(self, job: Job) -> None:
        """Tokenise the next texts of a job alone. On the first slot, while all others rest."""
        with self._backlog.lock:
            slices = front(deque([job]))
        if slices:
            with self._backlog.intake.busy:
                self.tokenise(slices)

    def tokenise(self, slices: Sequence[Slice]) -> None:
        """One call of the tokenizer. Any thread."""
        first = slices[0].job
        begun = time.monotonic()
        encoder = self._encoders[first.info.name]
        pieces, refusals, cut = tokenise(encoder, slices, first.prompt)
        seconds = time.monotonic() - begun
        self._counts.tokenised(slices, seconds, [one.code for one in refusals], len(cut))
        estimated = [(part.job, part.estimate) for part in slices]
        with self._backlog.lock:
            for job, index in cut:
                job.truncated.append(index)
            self._backlog.line_up(estimated, pieces)
            self._backlog.refuse(refusals)
