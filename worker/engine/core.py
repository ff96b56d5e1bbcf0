"""The threads: tokenise, encode, write.

Three threads, each blocking on a condition of one lock, and one hand-over between neighbours:

    submit ─► jobs ─► tokenise ─► schedule ─► encode ─► finished jobs ─► write ─► sink

The lock guards the queues and every job until its last text is encoded; nothing slow runs under
it. There is no timer: the device takes what waits the moment it is free.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from worker.contract import estimates
from worker.contract.jobs import TextError
from worker.contract.results import Matrix
from worker.encoder.protocol import Encoder
from worker.engine.forward import Forward
from worker.engine.job import Job, Piece
from worker.engine.schedule import Schedule
from worker.engine.tokenising import Slice, tokenise
from worker.tokens import TokenBlock

logger = logging.getLogger(__name__)

#: Texts of one call of the tokenizer, and of one job in it: a large job tokenises in parts, so
#: that a small one behind it does not wait.
_TOKENISED_TEXTS = 512
_TOKENISED_A_JOB = 256
#: Batches whose finished jobs may wait to be written before the device waits too.
_UNWRITTEN_BATCHES = 8
#: Seconds between two signs of life of an idle device thread.
_IDLE_BEAT = 5.0
#: Batches worth of tokens to hold: enough to never run dry, little enough to leave to others.
_BATCHES_AHEAD = 8
_LEAST_AHEAD = 16_384


class Sink(Protocol):
    """Who is told what becomes of jobs. What it raises takes the engine down."""

    def admit(self, job: Job) -> bool:
        """Whether a job may start; asked once, before its first text is encoded.

        On the device thread, which waits for the answer.
        """

    def started(self, jobs: Sequence[Job]) -> None:
        """The first texts of these jobs are in the batch that runs now. Device thread."""

    def progressed(self, jobs: Sequence[Job]) -> None:
        """More texts of these jobs have vectors, others do not yet. Writer thread."""

    def finished(self, jobs: Sequence[Job]) -> None:
        """Every text of these jobs has ended. Writer thread; may block, the device goes on."""

    def crashed(self, error: BaseException) -> None:
        """A thread of the engine died of `error`; nothing will be encoded any more."""


class Engine:
    """Continuous batching over some models on one device.

    `submit`, `cancel`, `room` and `close` may be called from any thread and do not block, but for
    `close`. All three threads are daemons: a hung device cannot keep the process alive.
    """

    def __init__(self, encoders: Mapping[str, Encoder], sink: Sink) -> None:
        self._encoders = dict(encoders)
        self._sink = sink
        self._forwards = {
            name: Forward(encoder, encoder.info.batch_tokens, encoder.tokenize(["probe"]))
            for name, encoder in self._encoders.items()
        }
        self._lock = threading.Lock()
        self._to_tokenise = threading.Condition(self._lock)
        self._to_encode = threading.Condition(self._lock)
        self._to_write = threading.Condition(self._lock)
        self._written = threading.Condition(self._lock)
        self._jobs: dict[Job, None] = {}
        self._raw: deque[Job] = deque()
        self._schedules = {name: Schedule() for name in self._encoders}
        self._models = deque(self._encoders)
        self._unwritten: deque[tuple[list[Job], list[Job]]] = deque()
        #: Threads that may still hand finished jobs to the writer.
        self._producers = 2
        self._waiting_tokens = 0
        #: The same with at most one batch's worth of each job.
        self._crowd = 0
        self._closing = False
        self._broken = False
        #: Monotonic time of the device thread's last sign of life, and of the forward pass that
        #: runs now, else None. Written by the device thread, read by anyone.
        self.beat = time.monotonic()
        self.busy_since: float | None = None
        self.batches = 0
        self.texts = 0
        self.tokens = 0
        self.busy_seconds = 0.0
        self._threads = [
            threading.Thread(target=self._guarded, args=(run,), name=f"embedq-{name}", daemon=True)
            for name, run in (
                ("tokenise", self._produce_from(self._run_tokeniser)),
                ("encode", self._produce_from(self._run_device)),
                ("write", self._run_writer),
            )
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Take a job over; the sink hears how it ends. Raises RuntimeError once closed."""
        with self._lock:
            if self._closing or self._broken:
                raise RuntimeError("the engine is closed")
            self._jobs[job] = None
            self._raw.append(job)
            self._weigh(job, self._estimate(job, 0, len(job.texts)))
            self._to_tokenise.notify()

    def cancel(self, job: Job) -> bool:
        """Forget a job; its texts in the running batch are encoded and dropped.

        Returns whether it was still under way, in which case the sink hears no more of it.
        """
        with self._lock:
            return self._forget(job)

    def room(self) -> int:
        """Tokens that may still be submitted before enough wait; zero or less: not now.

        Of each job only one batch's worth counts, or a small job would wait in the queue until
        the large one before it is done.
        """
        ahead = sum(_BATCHES_AHEAD * forward.budget for forward in self._forwards.values())
        return max(ahead, _LEAST_AHEAD) - self._crowd

    @property
    def waiting_tokens(self) -> int:
        """Tokens submitted and in no batch yet, those not tokenised estimated."""
        return self._waiting_tokens

    @property
    def budgets(self) -> dict[str, int]:
        """The token budget of each model as it is now."""
        return {name: forward.budget for name, forward in self._forwards.items()}

    @property
    def splits(self) -> int:
        """Batches that were cut because they raised or ran out of memory."""
        return sum(forward.splits for forward in self._forwards.values())

    def tokens_per_second(self) -> float:
        """Tokens a second of forward passes, over the life of the engine; 0.0 before the first."""
        return self.tokens / self.busy_seconds if self.busy_seconds else 0.0

    def close(self, seconds: float) -> list[Job]:
        """Finish the running batch, write what has ended, and return the jobs that have not.

        Takes at most `seconds`. Idempotent.
        """
        deadline = time.monotonic() + seconds
        with self._lock:
            self._closing = True
            self._to_tokenise.notify_all()
            self._to_encode.notify_all()
            self._to_write.notify_all()
            self._written.notify_all()
        current = threading.current_thread()
        for thread in self._threads:
            if thread is not current and thread.ident is not None:
                thread.join(max(deadline - time.monotonic(), 0.0))
        with self._lock:
            left, self._jobs = list(self._jobs), {}
            return left

    # -- tokenise ---------------------------------------------------------------------------

    def _run_tokeniser(self) -> None:
        while True:
            with self._lock:
                while not self._raw and not self._closing:
                    self._to_tokenise.wait()
                if self._closing:
                    return
                slices = self._next_slices()
            if not slices:
                continue
            first = slices[0].job
            encoder = self._encoders[first.info.name]
            pieces, refusals, cut = tokenise(encoder, slices, first.prompt)
            with self._lock:
                for job, start, stop in slices:
                    if not job.cancelled:
                        self._weigh(job, -self._estimate(job, start, stop))
                ended = []
                for piece in pieces:
                    if not piece.job.cancelled:
                        self._weigh(piece.job, piece.tokens)
                        piece.job.chunks.append(piece)
                        self._schedules[piece.job.info.name].add(piece.job)
                for job, index in cut:
                    job.truncated.append(index)
                for job, index, code, message in refusals:
                    job.fail(index, code, message)
                    if job.ended and self._leave(job):
                        ended.append(job)
                if ended:
                    self._unwritten.append((ended, []))
                    self._to_write.notify()
                self._to_encode.notify()

    def _next_slices(self) -> list[Slice]:
        """Texts for one call of the tokenizer: of one model and prompt, of several jobs in turn."""
        slices: list[Slice] = []
        left = _TOKENISED_TEXTS
        first = self._raw[0]
        while self._raw and left:
            job = self._raw[0]
            if (job.info.name, job.prompt) != (first.info.name, first.prompt):
                break
            self._raw.popleft()
            if job.cancelled:
                continue
            start = job.tokenised
            stop = min(start + min(left, _TOKENISED_A_JOB), len(job.texts))
            job.tokenised = stop
            left -= stop - start
            slices.append(Slice(job, start, stop))
            if stop < len(job.texts):
                self._raw.append(job)
                if self._raw[0] is job:
                    break
        return slices

    def _estimate(self, job: Job, start: int, stop: int) -> int:
        return estimates.tokens(job.texts[start:stop], job.info.max_tokens)

    # -- encode -----------------------------------------------------------------------------

    def _run_device(self) -> None:
        while True:
            with self._lock:
                pieces = self._next_batch()
            if pieces is None:
                return
            pieces = self._admitted(pieces)
            if not pieces:
                continue
            forward = self._forwards[pieces[0].job.info.name]
            block = _joined(pieces)
            self.busy_since = begun = time.monotonic()
            vectors, faults = forward.run(block)
            self.beat = time.monotonic()
            self.busy_since = None
            self.busy_seconds += self.beat - begun
            self.batches += 1
            self.texts += len(block)
            self.tokens += block.tokens
            unit = _unit(vectors) if any(p.job.options.normalize for p in pieces) else vectors
            with self._lock:
                self._deliver(pieces, vectors, unit, faults)

    def _next_batch(self) -> list[Piece] | None:
        """Wait for texts and cut a batch of one model; None when the engine closes."""
        while not self._closing:
            if len(self._unwritten) >= _UNWRITTEN_BATCHES:
                self.beat = time.monotonic()
                self._written.wait(_IDLE_BEAT)
                continue
            for _ in range(len(self._models)):
                name = self._models[0]
                self._models.rotate(-1)
                if self._schedules[name]:
                    pieces = self._schedules[name].cut(self._forwards[name].budget)
                    for piece in pieces:
                        self._weigh(piece.job, -piece.tokens)
                    return pieces
            self.beat = time.monotonic()
            self._to_encode.wait(_IDLE_BEAT)
        return None

    def _admitted(self, pieces: list[Piece]) -> list[Piece]:
        """Ask for the jobs that start with this batch; drop those that may not, or are gone."""
        starting = {id(p.job): p.job for p in pieces if p.job.started_at is None}
        refused = [job for job in starting.values() if not self._sink.admit(job)]
        if refused:
            with self._lock:
                for job in refused:
                    self._forget(job)
        pieces = [piece for piece in pieces if not piece.job.cancelled]
        now = time.time()
        started = [job for job in starting.values() if not job.cancelled]
        for job in started:
            job.started_at = now
        if started:
            self._sink.started(started)
        return pieces

    def _deliver(
        self,
        pieces: list[Piece],
        vectors: Matrix,
        unit: Matrix,
        faults: Mapping[int, tuple[str, str]],
    ) -> None:
        """Hand the rows of a batch to their jobs, and the jobs that ended to the writer."""
        ended, going = [], []
        row = 0
        for piece in pieces:
            job = piece.job
            count = piece.stop - piece.start
            rows = unit if job.options.normalize else vectors
            job.receive(piece, rows[row : row + count])
            for at in [at for at in faults if row <= at < row + count] if faults else ():
                job.errors.append(TextError(piece.first + at - row, *faults[at]))
            row += count
            if job.ended:
                if self._leave(job):
                    ended.append(job)
            elif not job.cancelled:
                going.append(job)
        if ended or going:
            self._unwritten.append((ended, going))
            self._to_write.notify()

    # -- write ------------------------------------------------------------------------------

    def _run_writer(self) -> None:
        while True:
            with self._lock:
                while not self._unwritten:
                    if not self._producers:
                        return
                    self._to_write.wait()
                batches, self._unwritten = self._unwritten, deque()
                self._written.notify_all()
            ended = [job for jobs, _ in batches for job in jobs]
            going = {id(job): job for _, jobs in batches for job in jobs if not job.ended}
            if ended:
                for job in ended:
                    _cut_dimensions(job)
                self._sink.finished(ended)
            if going:
                self._sink.progressed(list(going.values()))

    # -- all --------------------------------------------------------------------------------

    def _forget(self, job: Job) -> bool:
        """Drop a job from every queue. The lock is held."""
        if not self._leave(job):
            return False
        self._weigh(job, -job.waiting_tokens)
        job.cancelled = True
        job.chunks.clear()
        self._schedules[job.info.name].discard(job)
        return True

    def _weigh(self, job: Job, tokens: int) -> None:
        """So many tokens of a job wait more, or fewer. The lock is held."""
        most = job.info.batch_tokens
        before, after = job.waiting_tokens, job.waiting_tokens + tokens
        job.waiting_tokens = after
        self._waiting_tokens += tokens
        self._crowd += min(after, most) - min(before, most)

    def _leave(self, job: Job) -> bool:
        """Whether a job was still under way; it is no longer. The lock is held."""
        if job not in self._jobs:
            return False
        del self._jobs[job]
        return True

    def _produce_from(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run a thread that feeds the writer, and let the writer know when it is over."""

        def producer() -> None:
            run()
            with self._lock:
                self._producers -= 1
                self._to_write.notify()

        return producer

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            with self._lock:
                self._broken = True
            self._sink.crashed(error)
            raise


def _joined(pieces: Sequence[Piece]) -> TokenBlock:
    """The tokens of a batch; neighbours in a block, as one-text jobs mostly are, as one slice."""
    parts: list[TokenBlock] = []
    block, start, stop = pieces[0].block, pieces[0].start, pieces[0].stop
    for piece in pieces[1:]:
        if piece.block is block and piece.start == stop:
            stop = piece.stop
            continue
        parts.append(block.slice(start, stop))
        block, start, stop = piece.block, piece.start, piece.stop
    parts.append(block.slice(start, stop))
    return TokenBlock.join(parts)


def _unit(vectors: Matrix) -> Matrix:
    """Rows scaled to unit length as torch's `normalize` does it; zero rows stay zero."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    unit: Matrix = vectors / np.maximum(norms, 1e-12)[:, None]
    return unit


def _cut_dimensions(job: Job) -> None:
    """Matryoshka: the first dimensions, normalised again. Only models trained for it get here."""
    size = job.options.dimensions
    if size is None or job.vectors is None or size == job.vectors.shape[1]:
        return
    vectors = np.ascontiguousarray(job.vectors[:, :size])
    job.vectors = _unit(vectors) if job.options.normalize else vectors
