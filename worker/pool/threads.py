"""Tasks other than `embed`, each on a thread as in Celery's own thread pool."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from celery.concurrency.base import apply_target
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state

from worker.pool.loop import LoopCalls

logger = logging.getLogger(__name__)

#: Tasks that may wait for a thread before no more messages are fetched.
_BACKLOG = 256


class TaskThreads:
    """Runs tasks by Celery's tracer, so that they neither block encoding nor wait for it.

    `submit` and `close` belong to the loop's thread; Celery's callbacks go back to it.
    """

    def __init__(self, threads: int, loop: LoopCalls) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="embedq-task")
        self._loop = loop
        self._running: set[Any] = set()

    def has_room(self) -> bool:
        """Whether another task may be fetched."""
        return len(self._running) < _BACKLOG

    def submit(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        callback: Callable[..., Any],
        accept_callback: Callable[..., Any],
    ) -> None:
        """Run a task on the next free thread."""
        future = self._executor.submit(self._run, target, args, callback, accept_callback)
        self._running.add(future)
        future.add_done_callback(self._running.discard)

    def close(self, seconds: float) -> bool:
        """Drop what waits, let what runs finish. Returns whether it all did in time."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        return not wait(list(self._running), timeout=seconds).not_done

    def _run(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        callback: Callable[..., Any],
        accept_callback: Callable[..., Any],
    ) -> None:
        call = self._loop.call
        # A thread's id, so that nobody takes it for the process and ends that.
        thread = threading.get_native_id()
        try:
            apply_target(
                target,
                args,
                callback=lambda answer: call(callback, answer),
                accept_callback=lambda _, started: call(accept_callback, thread, started),
            )
        except (WorkerShutdown, WorkerTerminate) as error:
            code = getattr(error, "exitcode", None) or 0
            if isinstance(error, WorkerTerminate):
                state.should_terminate = code
            else:
                state.should_stop = code
        except Exception:
            # Not the task's own failure, which the tracer answers: its outcome was not stored.
            logger.exception("Task %s could not be ended; it is put back", args[1])
            call(callback.__self__.reject, True)  # type: ignore[attr-defined]
