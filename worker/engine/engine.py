"""The threads of the engine, one or more per stage.

    submit ─► tokenize ─► schedule ─► encode ─► write ─► callbacks of the job

Each arrow is a hand-over between threads, which block on conditions of one lock. The device has a
slot, with a thread, for each batch that it runs at a time. If the device can be shared, one more
slot runs interactive texts. With a cache there are two more threads: `CacheReader` before tokenize,
and `CacheWriter` after write.

The lock guards all queues and every job; neither slow work nor callbacks run under it. No batch
waits for more texts: a free slot takes the waiting ones at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from worker.contract.lanes import Lane
from worker.encoder.protocol import Encoder
from worker.engine.cache import CacheReader, CacheWriter
from worker.engine.job import Job
from worker.engine.metrics import Counts
from worker.engine.scheduler import Scheduler
from worker.engine.slot import BatchTotals, Slot
from worker.engine.threads import Threads
from worker.engine.tokenize import Tokenize
from worker.engine.write import Write
from worker.watchdog import Busy

if TYPE_CHECKING:
    from worker.cache.store import Cache


class Engine:
    """Continuous batching over some models on one device.

    Any thread may call any method, and only `close` blocks. All threads are daemons: a hung device
    cannot keep the process alive. If one of them dies, the engine closes and calls `crashed`.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        *,
        crashed: Callable[[BaseException], None],
        cache: Cache | None = None,
    ) -> None:
        """`crashed`: called on the thread that an exception ended; encoding has stopped.

        It may call `close`. `cache`: vectors of earlier texts; None: every text is encoded.
        """
        self._encoders = dict(encoders)
        self._crashed = crashed
        self.counts = Counts()
        self.totals = BatchTotals()
        slots = min(encoder.slots for encoder in self._encoders.values())
        reserved = all(encoder.reserved for encoder in self._encoders.values())
        budgets = {name: encoder.info.batch_tokens for name, encoder in self._encoders.items()}
        self._scheduler = Scheduler(budgets, slots=slots, cached=cache is not None)
        tokenize = Tokenize(self._encoders, self._scheduler, self.counts)
        shared = self._encoders, self._scheduler, tokenize, self.counts, self.totals
        make = functools.partial(Slot, *shared)
        self._slots = [
            make(name="encode", first=True),
            *(make(name=f"encode-{number}") for number in range(2, slots + 1)),
            *(make(name="interactive", interactive=True) for _ in range(reserved)),
        ]
        runs = {slot.stage.busy.name: slot.run for slot in self._slots}
        runs["embedq-tokenize"] = tokenize.run
        cache_writer = None
        if cache is not None:
            runs["embedq-read-cache"] = CacheReader(cache, self._scheduler, self.counts).run
            cache_writer = CacheWriter(cache, self._scheduler, self.counts)
        #: The threads that pass jobs to the writer.
        self._producers = set(runs)
        runs["embedq-write"] = Write(self._scheduler, cache_writer).run
        if cache_writer is not None:
            runs["embedq-write-cache"] = cache_writer.run
        self._threads = Threads(runs, ended=self._end_thread, died=self._die)

    def start(self) -> None:
        """Start the threads."""
        self._threads.start()

    def submit(self, *jobs: Job) -> None:
        """Add jobs of at least one text; many at once cost less.

        Raises RuntimeError once the engine is closed.
        """
        self._scheduler.submit(jobs)

    def cancel(self, job: Job) -> bool:
        """Drop a job; its texts in a running batch are encoded in vain.

        Return False if it has ended already, and its completion was or is being called.
        """
        with self._scheduler.lock:
            return self._scheduler.forget(job)

    def capacity(self, lane: Lane = Lane.NORMAL) -> int:
        """Tokens of a lane that may be submitted before enough wait; ≤ 0 if full."""
        return self._scheduler.capacity.left(lane)

    def close(self, seconds: float) -> list[Job]:
        """Finish the running batches, complete ended jobs, return the others.

        Takes at most `seconds`; if they do not suffice, jobs that wait to be written are among the
        returned ones. Idempotent: a job is returned once. A callback may call it.
        """
        self._shut()
        self._threads.join(seconds)
        with self._scheduler.lock:
            return self._scheduler.clear()

    @property
    def stopped(self) -> bool:
        """Whether all threads have ended, so that the models are unused."""
        return not self._threads.alive

    # -- metrics ----------------------------------------------------------------------------

    @property
    def waiting_tokens(self) -> int:
        """Tokens that are submitted and in no batch yet, including estimates."""
        return self._scheduler.waiting_tokens

    @property
    def budgets(self) -> dict[str, int]:
        """The current token budget of each model."""
        return self._slots[0].budgets

    @property
    def beat(self) -> float:
        """Monotonic time of the oldest of the slots' last heartbeats."""
        return min(slot.stage.busy.last_beat for slot in self._slots)

    @property
    def busy_since(self) -> float | None:
        """Monotonic time of the start of the oldest running batch, else None."""
        return min(filter(None, (slot.stage.busy.since for slot in self._slots)), default=None)

    @property
    def threads(self) -> list[Busy]:
        """The current work of each thread."""
        return [stage.busy for stage in self._scheduler.stages]

    @property
    def splits(self) -> int:
        """Batches that were halved because they raised or ran out of memory."""
        return sum(one.splits for slot in self._slots for one in slot.batch_encoders.values())

    @property
    def memory_splits(self) -> int:
        """Those of the splits that ran out of memory."""
        return sum(
            one.memory_splits for slot in self._slots for one in slot.batch_encoders.values()
        )

    @property
    def padding(self) -> int:
        """Positions of batches that held padding."""
        return sum(encoder.padding for encoder in self._encoders.values())

    def tokens_per_second(self) -> float:
        """Tokens per second of forward passes since the start; 0.0 before the first."""
        totals = self.totals
        return totals.tokens / totals.busy_seconds if totals.busy_seconds else 0.0

    # -- threads ----------------------------------------------------------------------------

    def _end_thread(self, name: str) -> None:
        """The writer ends after the last thread that passes jobs to it."""
        with self._scheduler.lock:
            self._producers.discard(name)
            if not self._producers:
                self._scheduler.write.close(drop=False)

    def _shut(self) -> None:
        with self._scheduler.lock:
            self._scheduler.shut()

    def _die(self, error: BaseException) -> None:
        self._shut()
        self._crashed(error)
