"""The threads: tokenise, encode, write.

Three threads, each blocking on a condition of one lock, and one hand-over between neighbours:

    submit ─► intake ─► tokenise ─► schedule ─► encode ─► outbox ─► write ─► sink

The lock guards all of these and every job, but for a job's vectors; nothing slow runs under it,
and no call of the sink. Batches wait for nothing: the device takes what there is the moment it is
free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from worker.contract.lanes import Lane
from worker.encoder.protocol import Encoder
from worker.engine import batch
from worker.engine.counts import Counts
from worker.engine.forward import Fault, Forward
from worker.engine.job import Job, Piece
from worker.engine.outbox import Outbox
from worker.engine.repeats import Distinct, distinct
from worker.engine.room import Room
from worker.engine.schedule import Schedules
from worker.engine.sink import Sink
from worker.engine.threads import Threads
from worker.engine.tokenising import Intake, Refusal, Slice, tokenise

#: Seconds between two signs of life of an idle device thread.
_IDLE_BEAT = 5.0
#: Token budgets' worth of texts that may share a batch where most of them repeat.
_MOST_BUDGETS = 8


class Engine:
    """Continuous batching over some models on one device.

    `submit`, `cancel`, `room` and `close` may be called from any thread and do not block, but for
    `close`. All three threads are daemons: a hung device cannot keep the process alive. Where one
    of them dies, the sink is told and the engine closes.
    """

    def __init__(self, encoders: Mapping[str, Encoder], sink: Sink) -> None:
        self._encoders = dict(encoders)
        self._sink = sink
        self._forwards = {
            name: Forward(encoder, encoder.info.batch_tokens, encoder.tokenize(["probe"]))
            for name, encoder in self._encoders.items()
        }
        self._lock = threading.Lock()
        self._to_encode = threading.Condition(self._lock)
        #: Jobs whose end the sink has not heard of and will.
        self._jobs: dict[Job, None] = {}
        self._intake = Intake(self._lock)
        self._schedules = Schedules(self._encoders)
        self._outbox = Outbox(self._lock, producers=2)
        self._room = Room()
        self._closing = False
        #: Whether the last batch was a suspect's, see `_next_batch`. The device thread's alone.
        self._ran_alone = False
        #: Monotonic time of the device thread's last sign of life, and of the forward pass that
        #: runs now, else None. These and the counters are written by the device thread alone.
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
        self.counts = Counts()
        self._threads = Threads(
            {
                "tokenise": self._run_tokeniser,
                "encode": self._run_device,
                "write": self._run_writer,
            },
            left=self._leave_outbox,
            died=self._crash,
        )

    def start(self) -> None:
        """Start the threads."""
        self._threads.start()

    def submit(self, job: Job) -> None:
        """Take a job of one text or more over; the sink hears how it ends.

        Raises RuntimeError once the engine is closed.
        """
        estimate = Slice(job, 0, len(job.texts)).estimate
        with self._lock:
            if self._closing:
                raise RuntimeError("the engine is closed")
            self._jobs[job] = None
            self._intake.put(job)
            self._room.weigh(job, estimate)

    def cancel(self, job: Job) -> bool:
        """Forget a job; its texts in the running batch are encoded and dropped.

        Returns whether the sink had not been told of its end, and so will not be.
        """
        with self._lock:
            return self._forget(job)

    def room(self, lane: Lane = Lane.NORMAL) -> int:
        """Tokens of a lane that may still be submitted before enough wait; ≤ 0: not now."""
        return self._room.left(lane, self.budgets.values())

    @property
    def waiting_tokens(self) -> int:
        """Tokens submitted and in no batch yet, those not tokenised estimated."""
        return self._room.waiting

    @property
    def budgets(self) -> dict[str, int]:
        """The token budget of each model as it is now."""
        return {name: forward.budget for name, forward in self._forwards.items()}

    @property
    def splits(self) -> int:
        """Batches that were cut because they raised or ran out of memory."""
        return sum(forward.splits for forward in self._forwards.values())

    @property
    def memory_splits(self) -> int:
        """Those of them that ran out of memory."""
        return sum(forward.memory_splits for forward in self._forwards.values())

    @property
    def padding(self) -> int:
        """Positions of batches that held padding."""
        return sum(encoder.padding for encoder in self._encoders.values())

    def tokens_per_second(self) -> float:
        """Tokens a second of forward passes, over the life of the engine; 0.0 before the first."""
        return self.tokens / self.busy_seconds if self.busy_seconds else 0.0

    def close(self, seconds: float) -> list[Job]:
        """Finish the running batch, tell the sink of what has ended, return the other jobs.

        Takes at most `seconds`; where those do not suffice, jobs that wait to be written are among
        the ones returned. Idempotent: a job is returned once. May be called by the sink.
        """
        with self._lock:
            self._shut()
        self._threads.join(seconds)
        with self._lock:
            left, self._jobs = list(self._jobs), {}
            return left

    @property
    def stopped(self) -> bool:
        """Whether no thread runs, so that nobody uses the models any more."""
        return not self._threads.alive

    # -- tokenise ---------------------------------------------------------------------------

    def _run_tokeniser(self) -> None:
        while True:
            with self._lock:
                slices = self._intake.take()
            if not slices:
                return
            first = slices[0].job
            encoder = self._encoders[first.info.name]
            begun = time.monotonic()
            pieces, refusals, cut = tokenise(encoder, slices, first.prompt)
            seconds = time.monotonic() - begun
            self.counts.tokenised(slices, seconds, [one.code for one in refusals], len(cut))
            estimates = [part.estimate for part in slices]
            with self._lock:
                for part, estimate in zip(slices, estimates, strict=True):
                    if not part.job.cancelled:
                        self._room.weigh(part.job, -estimate)
                for job, index in cut:
                    job.truncated.append(index)
                self._line_up(pieces)
                self._refuse(refusals)

    def _line_up(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            job = piece.job
            if not job.cancelled:
                self._room.weigh(job, piece.tokens)
                job.chunks.append(piece)
                self._schedules.add(job)
        self._to_encode.notify()

    def _refuse(self, refusals: Sequence[Refusal]) -> None:
        ended = []
        for job, index, code, message in refusals:
            job.fail(index, code, message)
            if job.ended:
                ended.append(job)
        self._outbox.put(ended)

    # -- encode -----------------------------------------------------------------------------

    def _run_device(self) -> None:
        while (pieces := self._next_batch()) is not None:
            pieces = self._admitted(pieces)
            if not pieces:
                continue
            self._ran_alone = pieces[0].job.alone
            pieces, texts = self._without_repeats(pieces)
            self.busy_since = begun = time.monotonic()
            forward = self._forwards[pieces[0].job.info.name]
            budget = forward.budget
            self.capacity += budget
            vectors, faults = texts.spread(*forward.run(texts.block))
            self.beat = time.monotonic()
            self.busy_since = None
            self.busy_seconds += self.beat - begun
            self.batches += 1
            encoded = sum(piece.texts for piece in pieces)
            self.texts += encoded
            self.repeats += texts.repeats
            self.tokens += sum(piece.tokens for piece in pieces)
            self.counts.encoded(
                pieces,
                self.beat - begun,
                texts=encoded,
                tokens=texts.block.tokens,
                budget=budget,
                faults=[fault.code for fault in faults.values()],
            )
            batch.hand_out(pieces, vectors)
            with self._lock:
                self._arrive(pieces, faults)

    def _next_batch(self) -> list[Piece] | None:
        """Wait for texts and cut a batch of one model; None when the engine closes.

        After a job that ran alone, since a worker may have died of it, nothing runs before its end
        is told: what the next batch does to this process must not be laid on it.
        """
        with self._lock:
            while not self._closing:
                if self._outbox.full or (self._ran_alone and not self._outbox.told):
                    self.beat = time.monotonic()
                    self._outbox.wait_until_emptied(_IDLE_BEAT)
                    continue
                pieces = self._schedules.cut(self.budgets)
                for piece in pieces:
                    self._room.weigh(piece.job, -piece.tokens)
                if pieces:
                    return pieces
                self.beat = time.monotonic()
                self._to_encode.wait(_IDLE_BEAT)
            return None

    def _without_repeats(self, pieces: list[Piece]) -> tuple[list[Piece], Distinct]:
        """What differs among a batch's texts; the room of what repeats goes to others that wait."""
        texts = distinct(batch.joined(pieces))
        name, most = pieces[0].job.info.name, self._forwards[pieces[0].job.info.name].budget
        tokens = sum(piece.tokens for piece in pieces)
        while texts.repeats and texts.block.tokens <= most // 2 and tokens < _MOST_BUDGETS * most:
            with self._lock:
                more = self._schedules.more(name, most - texts.block.tokens)
                for piece in more:
                    self._room.weigh(piece.job, -piece.tokens)
            more = self._admitted(more)
            if not more:
                break
            pieces = [*pieces, *more]
            tokens += sum(piece.tokens for piece in more)
            texts = distinct(batch.joined(pieces))
        return pieces, texts

    def _admitted(self, pieces: list[Piece]) -> list[Piece]:
        """Ask for the jobs that start with this batch; drop those that may not, or are gone."""
        starting = dict.fromkeys(piece.job for piece in pieces if piece.job.started_at is None)
        refused = [job for job in starting if not self._sink.admit(job)]
        with self._lock:
            for job in refused:
                self._forget(job)
            pieces = [piece for piece in pieces if not piece.job.cancelled]
            started = [job for job in starting if not job.cancelled]
        now = time.time()
        for job in started:
            job.started_at = now
        if started:
            self._sink.started(started)
        return pieces

    def _arrive(self, pieces: Sequence[Piece], faults: Mapping[int, Fault]) -> None:
        """Count a batch in its jobs, whose vectors are there, and tell the writer."""
        for job, error in batch.errors_of(pieces, faults):
            job.errors.append(error)
        for piece in pieces:
            piece.job.arrive(piece)
        jobs = dict.fromkeys(piece.job for piece in pieces)
        ended = [job for job in jobs if job.ended]
        self._outbox.put(ended, [job for job in jobs if not job.ended])

    # -- write ------------------------------------------------------------------------------

    def _run_writer(self) -> None:
        while True:
            with self._lock:
                news = self._outbox.take()
                if not news:
                    return
                ended = [job for told in news for job in told.ended if self._leave(job)]
                going = dict.fromkeys(job for told in news for job in told.going)
                going_on = [job for job in going if not (job.ended or job.cancelled)]
            if ended:
                self._tell(ended)
            if going_on:
                self._sink.progressed(going_on)

    def _tell(self, ended: Sequence[Job]) -> None:
        for job in ended:
            batch.cut_dimensions(job)
        try:
            self._sink.finished(ended)
        except BaseException:
            # Which of them it took is not known here: whoever closes the engine answers for all.
            with self._lock:
                self._jobs |= dict.fromkeys(ended)
            raise

    # -- all --------------------------------------------------------------------------------

    def _forget(self, job: Job) -> bool:
        """Drop a job from every queue. The lock is held."""
        if not self._leave(job):
            return False
        self._room.weigh(job, -job.waiting_tokens)
        job.cancelled = True
        job.chunks.clear()
        self._schedules.discard(job)
        return True

    def _leave(self, job: Job) -> bool:
        """Whether the sink was still to hear of a job; it is not any more. The lock is held."""
        if job not in self._jobs:
            return False
        del self._jobs[job]
        return True

    def _shut(self) -> None:
        """Let every thread come to its end. The lock is held."""
        self._closing = True
        self._intake.close()
        self._to_encode.notify_all()
        self._outbox.wake()

    def _leave_outbox(self, thread: str) -> None:
        """The writer goes on until nobody can put anything in."""
        if thread != "write":
            with self._lock:
                self._outbox.leave()

    def _crash(self, error: BaseException) -> None:
        with self._lock:
            self._shut()
        self._sink.crashed(error)
