"""The threads: tokenise, encode, write.

    submit ─► intake ─► tokenise ─► fair queue ─► slots ─► outbox ─► write ─► sink

Each arrow is a hand-over between threads, which block on conditions of one lock. The device has as
many slots as it runs batches at a time, and one more for interactive texts if it can be shared.
With a cache there are two more threads: one looks up submitted texts before they go to the intake,
or straight to the outbox, and one stores new vectors. See `recall`.

The lock guards all of these and every job; nothing slow runs under it, and no call of the sink.
No batch waits for more texts: a free slot takes the waiting ones at once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from worker.contract.lanes import Lane
from worker.encoder.protocol import Encoder
from worker.engine import batch
from worker.engine.backlog import Backlog
from worker.engine.counts import Counts
from worker.engine.job import Job
from worker.engine.recall import Keeping, Lookup
from worker.engine.sink import Sink
from worker.engine.slot import Slot
from worker.engine.threads import Threads
from worker.engine.tokeniser import Tokeniser
from worker.watchdog import Busy

if TYPE_CHECKING:
    from worker.cache.store import Cache


class Engine:
    """Continuous batching over some models on one device.

    `submit`, `cancel`, `room` and `close` may be called from any thread and do not block, but for
    `close`. All threads are daemons: a hung device cannot keep the process alive. If one
    of them dies, the engine calls `Sink.crashed` and closes.
    """

    def __init__(
        self, encoders: Mapping[str, Encoder], sink: Sink, cache: Cache | None = None
    ) -> None:
        """`cache`: vectors of earlier texts; None: every text is encoded."""
        self._encoders = dict(encoders)
        self._sink = sink
        self.counts = Counts()
        cached = cache is not None
        slots = min(encoder.slots for encoder in self._encoders.values())
        reserved = all(encoder.reserved for encoder in self._encoders.values())
        producers = 1 + cached + slots + reserved
        self._backlog = Backlog(self._encoders, producers, slots=slots, looked_up=cached)
        tokeniser = Tokeniser(self._encoders, self._backlog, self.counts)
        shared = (self._encoders, self._backlog, sink, self.counts)
        make = functools.partial(Slot, *shared, tokeniser=tokeniser)
        self._slots = [
            make(name="encode", first=True),
            *(make(name=f"encode-{number}") for number in range(2, slots + 1)),
            *(make(name="interactive", interactive=True) for _ in range(reserved)),
        ]
        self._parallel = slots
        self._writing = Busy("embedq-write", uses_redis=True)
        runs = {"tokenise": tokeniser.run, "write": self._run_writer}
        runs |= {slot.busy.name.removeprefix("embedq-"): slot.run for slot in self._slots}
        self._keeping: Keeping | None = None
        if cache is not None:
            self._keeping = Keeping(cache, self._backlog, self.counts)
            runs["lookup"] = Lookup(cache, self._backlog, sink, self.counts).run
            runs["keep"] = self._keeping.run
        self._threads = Threads(runs, left=self._leave_outbox, died=self._crash)

    def start(self) -> None:
        """Start the threads."""
        self._threads.start()

    def submit(self, *jobs: Job) -> None:
        """Take jobs of one text or more over; the sink hears how they end.

        Many at once cost less. Raises RuntimeError once the engine is closed.
        """
        self._backlog.submit(jobs)

    def cancel(self, job: Job) -> bool:
        """Forget a job; its texts in the running batch are encoded and dropped.

        Returns whether the sink had not been told of its end, and so will not be.
        """
        with self._backlog.lock:
            return self._backlog.forget(job)

    def room(self, lane: Lane = Lane.NORMAL) -> int:
        """Tokens of a lane that may still be submitted before enough wait; ≤ 0: not now."""
        return self._backlog.room.left(lane, self.budgets.values())

    @property
    def waiting_tokens(self) -> int:
        """Tokens submitted and in no batch yet, those not tokenised estimated."""
        return self._backlog.room.waiting

    @property
    def budgets(self) -> dict[str, int]:
        """The token budget of each model as it is now."""
        return {name: forward.budget for name, forward in self._slots[0].forwards.items()}

    @property
    def beat(self) -> float:
        """Monotonic time at which the slot that was silent longest gave its last sign of life."""
        return min(slot.beat for slot in self._slots)

    @property
    def busy_since(self) -> float | None:
        """Monotonic time at which the oldest forward pass began that still runs, else None."""
        return min(filter(None, (one.busy.since for one in self._slots)), default=None)

    @property
    def threads(self) -> list[Busy]:
        """The current work of each thread."""
        slots = [slot.busy for slot in self._slots]
        return [*slots, self._writing, *self._backlog.isolation.threads]

    @property
    def batches(self) -> int:
        """Batches so far."""
        return sum(one.batches for one in self._slots)

    @property
    def texts(self) -> int:
        """Texts of these batches."""
        return sum(one.texts for one in self._slots)

    @property
    def repeats(self) -> int:
        """Texts of these that another one of their batch had the vector of."""
        return sum(one.repeats for one in self._slots)

    @property
    def tokens(self) -> int:
        """Tokens of these texts."""
        return sum(one.tokens for one in self._slots)

    @property
    def capacity(self) -> int:
        """Token budgets of the batches so far: `tokens / capacity` is how full they were."""
        return sum(one.capacity for one in self._slots)

    @property
    def busy_seconds(self) -> float:
        """Seconds of forward passes, by the slots that run at a time."""
        return sum(slot.busy_seconds for slot in self._slots) / self._parallel

    @property
    def splits(self) -> int:
        """Batches that were cut because they raised or ran out of memory."""
        return sum(forward.splits for one in self._slots for forward in one.forwards.values())

    @property
    def memory_splits(self) -> int:
        """Those of them that ran out of memory."""
        return sum(
            forward.memory_splits for one in self._slots for forward in one.forwards.values()
        )

    @property
    def padding(self) -> int:
        """Positions of batches that held padding."""
        return sum(encoder.padding for encoder in self._encoders.values())

    def tokens_per_second(self) -> float:
        """Tokens a second of forward passes, over the life of the engine; 0.0 before the first."""
        return self.tokens / self.busy_seconds if self.busy_seconds else 0.0

    def close(self, seconds: float) -> list[Job]:
        """Finish the running batches, pass completed jobs to the sink, return the others.

        Takes at most `seconds`; if those do not suffice, jobs that wait to be written are among
        the ones returned. Idempotent: a job is returned once. May be called by the sink.
        """
        self._shut()
        self._threads.join(seconds)
        with self._backlog.lock:
            return self._backlog.clear()

    @property
    def stopped(self) -> bool:
        """Whether all threads have ended, so that the models are unused."""
        return not self._threads.alive

    # -- write ------------------------------------------------------------------------------

    def _run_writer(self) -> None:
        backlog = self._backlog
        while True:
            with backlog.lock:
                news = backlog.outbox.take()
                if not news:
                    return
                ended = [job for told in news for job in told.ended if backlog.leave(job)]
                going = dict.fromkeys(job for told in news for job in told.going)
                going_on = [job for job in going if not (job.ended or job.cancelled)]
            with self._writing:
                if ended:
                    self._tell(ended)
                if going_on:
                    self._sink.progressed(going_on)

    def _tell(self, ended: Sequence[Job]) -> None:
        kept = self._keeping.of(ended) if self._keeping is not None else []
        for job in ended:
            batch.cut_dimensions(job)
        try:
            self._sink.finished(ended)
        except BaseException:
            # It may have taken some of them; `close` returns all.
            with self._backlog.lock:
                self._backlog.take_back(ended)
            raise
        if kept and self._keeping is not None:
            self._keeping.put(kept)

    # -- all --------------------------------------------------------------------------------

    def _leave_outbox(self, thread: str) -> None:
        """The writer goes on until its last producer has ended."""
        if thread not in ("write", "keep"):
            with self._backlog.lock:
                self._backlog.outbox.leave()

    def _shut(self) -> None:
        """Let every thread come to its end."""
        with self._backlog.lock:
            self._backlog.shut()
            if self._keeping is not None:
                self._keeping.wake()

    def _crash(self, error: BaseException) -> None:
        self._shut()
        self._sink.crashed(error)
