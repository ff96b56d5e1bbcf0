"""Tasks other than `embed`, each on a thread, as in Celery's own thread pool."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state
from celery.worker.request import Request

from worker.pool.failures import Failures, is_connection_lost, place_of
from worker.pool.loop import LoopCalls
from worker.pool.poison_tasks import PoisonTasks
from worker.pool.request import checked, end_unrun, overdue
from worker.pool.threads import DaemonThreads
from worker.store.jobs import JobStore
from worker.store.openai_batches import TASK_NAME as BATCH
from worker.transport import lease_of, leases

logger = logging.getLogger(__name__)

#: Tasks that may wait for a thread before fetching pauses.
_BACKLOG = 256
#: Batches that are coordinated at once. They mostly wait, and must not delay users' tasks.
_COORDINATORS = 2
#: Seconds of a thread's pause after Redis did not take an outcome.
_PAUSE = 0.5


class OtherTask:
    """A request that a thread runs. Its state belongs to the loop's thread.

    Raises InvalidTaskError for a message of the wrong form.
    """

    def __init__(
        self, target: Callable[..., Any], args: tuple[Any, ...], callback: Callable[..., Any]
    ) -> None:
        # Celery offers the request itself only behind its bound method.
        self.request: Request = callback.__self__  # type: ignore[attr-defined]
        checked(self.request)
        self.target = target
        self.args = args
        lease = lease_of(self.request.message)
        #: Whether it may be cut off at any moment, since another run continues from its checkpoint.
        self.resumes = args[0] == BATCH
        #: The name of its lease, or '' on a transport of kombu's own.
        self.tag = lease.tag if lease is not None else ""
        #: Whether a worker may have crashed on it.
        self.redelivered = bool(self.request.delivery_info.get("redelivered"))
        self.accepted = False


class OtherTasks:
    """Runs tasks through Celery's tracer, so that they neither block encoding nor wait for it.

    All methods belong to the loop's thread, on which Celery's callbacks also run. Leases are kept
    until the task has ended, so that a lost connection does not make it run twice.
    """

    def __init__(
        self, threads: int, loop: LoopCalls, failures: Failures, store: JobStore, max_attempts: int
    ) -> None:
        self._loop = loop
        self._failures = failures
        self._threads = DaemonThreads(threads, "embedq-task", self._run)
        self._coordinators = DaemonThreads(_COORDINATORS, "embedq-batch", self._run)
        self._isolation = PoisonTasks(self._run, failures, store, max_attempts)
        self._open: dict[OtherTask, None] = {}
        self._closing = threading.Event()

    def has_room(self) -> bool:
        """Whether another task may be fetched."""
        return self._threads.backlog + self._isolation.waiting < _BACKLOG

    @property
    def has_suspects(self) -> bool:
        """Whether redelivered tasks wait for their turn."""
        return self._isolation.waiting > 0

    def turn(self) -> None:
        """Start the next of them; no redelivered job of `embed` is in this worker now."""
        self._isolation.turn()

    def submit(self, task: OtherTask) -> None:
        """Run a task on the next free thread."""
        if task.tag:
            leases.detach(task.tag)
        self._open[task] = None
        if task.redelivered and not task.resumes:
            self._isolation.submit(task)
        else:
            self._threads_of(task).submit(task)

    def flush(self) -> None:
        """The connection is lost; see `TaskPool.flush`."""
        for task in list(self._open):
            if task.tag or task.accepted:
                state.task_reserved(task.request)
            elif self._withdraw(task):
                del self._open[task]

    def withdraw(self) -> None:
        """Release the tasks that have not begun."""
        waiting = [task for task in self._open if self._withdraw(task)]
        leases.release([task.tag for task in waiting if task.tag])
        for task in waiting:
            del self._open[task]

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds`; return whether all running, not resumable tasks ended."""
        deadline = time.monotonic() + seconds
        ended = self._threads.wait(seconds)
        return self._isolation.wait(max(deadline - time.monotonic(), 0.0)) and ended

    def close(self) -> None:
        """Requeue the tasks that still run; the process is about to end."""
        self._closing.set()
        cut_off = [task for task in self._open if not task.resumes]
        if cut_off:
            logger.warning("%d tasks still run; their messages are put back", len(cut_off))
        for task in cut_off:
            if task.tag:
                leases.nack(task.tag, requeue=True)
        # A task that continues from its checkpoint counts as not begun.
        leases.release([task.tag for task in self._open if task.resumes and task.tag])
        self._isolation.cut_off(task for task in self._open if task.redelivered)
        self._open.clear()
        for threads in (self._threads, self._coordinators, self._isolation):
            threads.close()

    def _threads_of(self, task: OtherTask) -> DaemonThreads:
        return self._coordinators if task.resumes else self._threads

    def _withdraw(self, task: OtherTask) -> bool:
        """Withdraw a task. Return whether it had not begun."""
        return self._isolation.withdraw(task) or self._threads_of(task).withdraw(task)

    # -- on a thread of its own -------------------------------------------------------------

    def _run(self, task: OtherTask) -> None:
        call = self._loop.call
        if overdue(task.request):
            call(self._revoke, task)
            return
        if task.redelivered:
            crashes = self._isolation.crashes(task)
            if crashes:
                call(self._give_up, task, crashes)
                return
        # The thread's id, so that it is not mistaken for the process, which would be ended.
        call(self._accept, task, threading.get_native_id(), time.monotonic())
        try:
            answer = task.target(*task.args)
        except (WorkerShutdown, WorkerTerminate) as error:
            code = getattr(error, "exitcode", None) or 0
            if isinstance(error, WorkerTerminate):
                state.should_terminate = code
            else:
                state.should_stop = code
            call(self._put_back, task)
        except BaseException as error:  # noqa: BLE001 - as a process of Celery's pool does
            # Celery's tracer handles other failures. This one it could not store, or it passes it
            # on to the pool, as SystemExit.
            if is_connection_lost(error):
                logger.error(  # noqa: TRY400
                    "Task %s could not be ended; it is put back:\n%s",
                    task.request.id,
                    place_of(error),
                    extra={"job_id": task.request.id},
                )
                call(self._put_back, task)
                self._closing.wait(_PAUSE)
            else:
                lost = isinstance(error, MemoryError)
                call(self._fail, task, _worker_lost() if lost else ExceptionInfo())
        else:
            call(self._end, task, answer)

    # -- on the loop's thread ---------------------------------------------------------------

    def _accept(self, task: OtherTask, thread: int, started: float) -> None:
        if task in self._open:
            task.accepted = True
            task.request.on_accepted(thread, started)

    def _end(self, task: OtherTask, answer: Any) -> None:
        if self._take(task):
            try:
                task.request.on_success(answer)
            finally:
                # The outcome is stored, so the task must not run again, even after an error.
                leases.ack(task.tag)

    def _fail(self, task: OtherTask, info: ExceptionInfo) -> None:
        if self._take(task):
            self._failures.soon(self._failures.fail, task.request, info, task.tag)

    def _give_up(self, task: OtherTask, crashes: int) -> None:
        if self._take(task):
            reason = f"Worker exited prematurely {crashes} times while it ran this task."
            self._failures.soon(
                self._failures.give_up, task.request, task.tag, WorkerLostError(reason)
            )

    def _put_back(self, task: OtherTask) -> None:
        if self._take(task):
            task.request.reject(requeue=True)

    def _revoke(self, task: OtherTask) -> None:
        if self._take(task):
            end_unrun(task.request)

    def _take(self, task: OtherTask) -> bool:
        """Mark a task as ended without a crash. Return whether it had not ended before."""
        if task.redelivered:
            self._isolation.ended(task)
        return self._open.pop(task, task) is None


def _worker_lost() -> ExceptionInfo:
    """The current error, in Celery's form for errors that it does not pass on."""
    error = ExceptionInfo().exception
    try:
        raise WorkerLostError(repr(error))
    except WorkerLostError:
        return ExceptionInfo()
