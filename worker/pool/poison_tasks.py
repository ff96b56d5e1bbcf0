"""Redelivered tasks other than `embed`: their workers may have died of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from worker.pool.failures import Failures
from worker.pool.poison_jobs import PoisonJobs, isolated
from worker.pool.threads import DaemonThreads
from worker.store.jobs import JobStore

#: A coordinator of batches goes on where its last run was, so crashes beside it say little of it:
#: it may come back so many times as often as other tasks.
_COORDINATOR_PATIENCE = 10


class Task(Protocol):
    """A task in the hands of the threads."""

    request: Any
    tag: str
    resumes: bool


class PoisonTasks:
    """Runs suspects one at a time, on a thread of their own, and counts their crashes.

    One begins only while no suspect of `embed` is in this worker, and those that come meanwhile are
    not counted: so a crash is put down to one suspect. Coordinators of batches are counted, but run
    where they always do. Loop's thread, unless said otherwise.
    """

    def __init__(
        self, run: Callable[[Any], None], failures: Failures, store: JobStore, max_attempts: int
    ) -> None:
        self._failures = failures
        self._suspects = PoisonJobs(store, max_attempts, isolates=True)
        patience = max_attempts * _COORDINATOR_PATIENCE
        self._coordinators = PoisonJobs(store, patience, isolates=True)
        self._thread = DaemonThreads(1, "embedq-isolated", run)
        self._waiting: deque[Task] = deque()
        self._running: Task | None = None

    @property
    def waiting(self) -> int:
        """PoisonJobs that have not begun."""
        return len(self._waiting)

    def submit(self, task: Task) -> None:
        """Run a suspect when its turn has come."""
        self._waiting.append(task)

    def withdraw(self, task: Task) -> bool:
        """Whether a suspect had not begun; it will not."""
        if task not in self._waiting:
            return False
        self._waiting.remove(task)
        return True

    def turn(self) -> None:
        """Begin the next suspect, if none runs; no suspect of `embed` is in this worker now."""
        if self._waiting and self._running is None:
            isolated.set()
            self._running = self._waiting.popleft()
            self._thread.submit(self._running)

    def crashes(self, task: Task) -> int:
        """Count a run that begins. Not 0: so many crashes, it may not. Blocks; any thread."""
        return self._counts_of(task).begin(task.request.id, task.tag)

    def ended(self, task: Task) -> None:
        """A redelivered task has ended without a crash."""
        if task is self._running:
            self._running = None
            isolated.clear()
        delivery = (task.request.id, task.tag)
        self._failures.soon(self._counts_of(task).clear, [delivery])

    def cut_off(self, tasks: Iterable[Task]) -> None:
        """The worker stops while these run, which is not their fault. Blocks."""
        for task in tasks:
            self._counts_of(task).clear([(task.request.id, task.tag)])

    def wait(self, seconds: float) -> bool:
        """Whether the one that runs ended within so many seconds."""
        return self._thread.wait(seconds)

    def close(self) -> None:
        self._thread.close()

    def _counts_of(self, task: Task) -> PoisonJobs:
        return self._coordinators if task.resumes else self._suspects
