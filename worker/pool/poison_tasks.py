"""Run redelivered tasks other than `embed` one at a time: they may crash their workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from worker.pool.failures import Failures
from worker.pool.poison_jobs import PoisonJobs, isolated
from worker.pool.threads import DaemonThreads
from worker.store.jobs import JobStore

#: Allowed crashes of a coordinator of batches, as a multiple of those of other tasks. It resumes
#: its last run and is not isolated, so a crash is weak evidence against it.
_COORDINATOR_PATIENCE = 10


class Task(Protocol):
    """A task that a thread runs."""

    request: Any
    tag: str
    resumes: bool


class PoisonTasks:
    """Runs redelivered tasks one at a time, on their own thread, and counts their crashes.

    A task starts only while no redelivered job of `embed` is in this worker. Such jobs are not
    counted if they arrive meanwhile, so a crash counts against one task. Coordinators of batches
    are counted, but not isolated. Loop's thread, unless stated otherwise.
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
        """The number of tasks that have not begun."""
        return len(self._waiting)

    def submit(self, task: Task) -> None:
        """Run a task when its turn comes."""
        self._waiting.append(task)

    def withdraw(self, task: Task) -> bool:
        """Withdraw a task. Return whether it had not begun."""
        if task not in self._waiting:
            return False
        self._waiting.remove(task)
        return True

    def turn(self) -> None:
        """Start the next task if no other runs. No redelivered job of `embed` is here now."""
        if self._waiting and self._running is None:
            isolated.set()
            self._running = self._waiting.popleft()
            self._thread.submit(self._running)

    def crashes(self, task: Task) -> int:
        """Count a run that begins. Return 0 if it may, else its crashes. Blocks; any thread."""
        return self._counts_of(task).begin(task.request.id, task.tag)

    def ended(self, task: Task) -> None:
        """A redelivered task has ended without a crash."""
        if task is self._running:
            self._running = None
            isolated.clear()
        delivery = (task.request.id, task.tag)
        self._failures.soon(self._counts_of(task).clear, [delivery])

    def cut_off(self, tasks: Iterable[Task]) -> None:
        """Remove the counts of tasks that still run while the worker stops. Blocks."""
        for task in tasks:
            self._counts_of(task).clear([(task.request.id, task.tag)])

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds`; return whether the running task ended."""
        return self._thread.wait(seconds)

    def close(self) -> None:
        self._thread.close()

    def _counts_of(self, task: Task) -> PoisonJobs:
        return self._coordinators if task.resumes else self._suspects
