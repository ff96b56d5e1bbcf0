"""Tasks other than `embed`, each on a thread, as in a pool of threads of Celery's own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from celery.concurrency.base import apply_target
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state
from celery.worker.request import Request

from worker.contract.batches import TASK_NAME as BATCH
from worker.pool.loop import LoopCalls
from worker.pool.requests import end_unrun, overdue
from worker.pool.threads import DaemonThreads
from worker.transport import lease_of, leases

logger = logging.getLogger(__name__)

#: Tasks that may wait for a thread before no more messages are fetched.
_BACKLOG = 256
#: Batches that are coordinated at once: they wait most of the time, and users' tasks need not.
_COORDINATORS = 2


class OtherTask:
    """One request in the hands of the threads. Its state belongs to the loop's thread."""

    def __init__(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        callback: Callable[..., Any],
        accept_callback: Callable[..., Any],
    ) -> None:
        self.request: Request = callback.__self__  # type: ignore[attr-defined]
        self.target = target
        self.args = args
        self.callback = callback
        self.accept_callback = accept_callback
        lease = lease_of(self.request.message)
        #: Whether it may be cut off at any moment, since another run goes on where it was.
        self.resumes = args[0] == BATCH
        #: The name of its lease, or '' on the stock transport.
        self.tag = lease.tag if lease is not None else ""
        self.accepted = False


class OtherTasks:
    """Runs tasks by Celery's tracer, so that they neither block encoding nor wait for it.

    All methods belong to the loop's thread, where Celery's callbacks run, too. Leases are kept
    until the task has ended, so that a lost connection does not make it run twice.
    """

    def __init__(self, threads: int, loop: LoopCalls) -> None:
        self._loop = loop
        self._threads = DaemonThreads(threads, "embedq-task", self._run)
        self._coordinators = DaemonThreads(_COORDINATORS, "embedq-batch", self._run)
        self._open: dict[OtherTask, None] = {}

    def has_room(self) -> bool:
        """Whether another task may be fetched."""
        return self._threads.backlog < _BACKLOG

    def submit(self, task: OtherTask) -> None:
        """Run a task on the next free thread."""
        if task.tag:
            leases.hold(task.tag)
        self._open[task] = None
        self._threads_of(task).submit(task)

    def flush(self) -> None:
        """The connection is lost; see `TaskPool.flush`."""
        for task in list(self._open):
            if task.tag or task.accepted:
                state.task_reserved(task.request)
            elif self._threads_of(task).withdraw(task):
                del self._open[task]

    def withdraw(self) -> None:
        """Give back what nobody has begun."""
        waiting = [task for task in self._open if self._threads_of(task).withdraw(task)]
        leases.release([task.tag for task in waiting if task.tag])
        for task in waiting:
            del self._open[task]

    def wait(self, seconds: float) -> bool:
        """Whether those that run, and cannot be resumed, ended within so many seconds."""
        return self._threads.wait(seconds)

    def close(self) -> None:
        """Put back what still runs; the process is about to end."""
        cut_off = sum(not task.resumes for task in self._open)
        if cut_off:
            logger.warning("%d tasks still run; their messages are put back", cut_off)
        for task in self._open:
            if task.tag:
                leases.reject(task.tag, requeue=True)
        self._open.clear()
        self._threads.close()
        self._coordinators.close()

    def _threads_of(self, task: OtherTask) -> DaemonThreads:
        return self._coordinators if task.resumes else self._threads

    def _run(self, task: OtherTask) -> None:
        if overdue(task.request):
            self._loop.call(self._revoke, task)
            return
        # A thread's id, so that nobody takes it for the process and ends that.
        thread = threading.get_native_id()
        call = self._loop.call
        try:
            apply_target(
                task.target,
                task.args,
                callback=lambda answer: call(self._end, task, answer),
                accept_callback=lambda _, started: call(self._accept, task, thread, started),
            )
        except (WorkerShutdown, WorkerTerminate) as error:
            code = getattr(error, "exitcode", None) or 0
            if isinstance(error, WorkerTerminate):
                state.should_terminate = code
            else:
                state.should_stop = code
            call(self._put_back, task)
        except Exception:
            # Not the task's own failure, which the tracer answers: its outcome was not stored.
            logger.exception("Task %s could not be ended; it is put back", task.request.id)
            call(self._put_back, task)

    def _accept(self, task: OtherTask, thread: int, started: float) -> None:
        task.accepted = True
        task.accept_callback(thread, started)

    def _end(self, task: OtherTask, answer: Any) -> None:
        if self._take(task):
            task.callback(answer)

    def _put_back(self, task: OtherTask) -> None:
        if self._take(task):
            task.request.reject(requeue=True)

    def _revoke(self, task: OtherTask) -> None:
        if self._take(task):
            end_unrun(task.request)

    def _take(self, task: OtherTask) -> bool:
        """Whether the task had not ended yet; it has now."""
        if task not in self._open:
            return False
        del self._open[task]
        return True
