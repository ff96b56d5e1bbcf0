"""Failures that the pool stores itself, since neither the engine nor a task can."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import redis
from billiard.einfo import ExceptionInfo
from celery import Celery, signals
from celery.exceptions import Reject
from celery.worker import state
from celery.worker.request import Request
from kombu.exceptions import OperationalError
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)

from worker.contract import keys
from worker.pool.threads import DaemonThreads
from worker.transport import leases

logger = logging.getLogger(__name__)

#: Errors of a lost connection, and of a server that will answer again. kombu's own list includes
#: KeyError, which any message can cause.
_LOST = (
    *(ConnectionError, TimeoutError, redis.ConnectionError, redis.TimeoutError),
    *(MasterDownError, OutOfMemoryError, ReadOnlyError, NoScriptError),
    *(TryAgainError, ClusterDownError),
)
#: Prefixes of error replies to calls that the server will accept later.
_PASSING = ("LOADING", "BUSY", "MISCONF", "NOREPLICAS", "NOAUTH", "UNKILLABLE")
#: Failures that may wait to be stored before messages to refuse are parked.
_BACKLOG = 5000
#: Frames of a traceback in the log.
_FRAMES = 3


class Failures:
    """Stores failures on its own thread, so that no other waits for the result backend."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._key = keys.dead_letters(app.conf.task_default_queue)
        self._threads = DaemonThreads(1, "embedq-fail", self._run)

    @property
    def is_full(self) -> bool:
        """Whether the backlog is full, so that messages to refuse have to wait."""
        return self._threads.backlog >= _BACKLOG

    def refuse(self, tag: str, job_id: object, error: Exception, reason: str) -> None:
        """Fail the job of a message that cannot run, if it has an id, then dead-letter the message.

        `tag` names its lease. In this order, since after a crash a message that is still leased is
        refused again. Any thread.
        """
        leases.detach(tag)
        self.soon(self._refuse, tag, job_id, error, reason)

    def soon(self, function: Callable[..., Any], *args: Any) -> None:
        """Run `function(*args)` on the thread. Any thread."""
        self._threads.submit((function, args))

    def fail(self, request: Request, info: ExceptionInfo, tag: str) -> None:
        """Fail a task as Celery's pool of processes does, then end its lease. On the thread.

        SystemExit and KeyboardInterrupt become WorkerLostError there.
        """
        try:
            request.on_failure(info)
        except Exception as error:  # noqa: BLE001 - a follow-up of the task is malformed
            self._refuse(tag, request.id, info.exception, f"it failed ({type(error).__name__})")
        finally:
            leases.ack(tag)

    def give_up(self, request: Request, tag: str, error: Exception) -> None:
        """Fail a task that crashes workers, then dead-letter its message. On the thread."""
        logger.error("Task %s: %s", request.id, error, extra={"job_id": request.id})
        try:
            self._tell(request, error)
        finally:
            state.task_ready(request)
            if tag:
                leases.dead_letter(tag, str(error), self._key)
            else:
                request.acknowledge()

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds`; return whether everything was stored."""
        return self._threads.wait(seconds)

    def close(self) -> None:
        self._threads.close()

    def _tell(self, request: Request, error: Exception) -> None:
        """Store a failure and announce it, as Celery does when a task exceeds its hard limit."""
        try:
            raise error
        except type(error):
            info = ExceptionInfo()
        task = request.task
        # The context that the task's own code sees; private to Celery.
        context = request._context  # noqa: SLF001
        task.backend.mark_as_failure(
            request.id, error, request=context, store_result=request.store_errors
        )
        task.on_failure(error, request.id, request.args, request.kwargs, info)
        signals.task_failure.send(
            sender=task,
            task_id=request.id,
            exception=error,
            args=request.args,
            kwargs=request.kwargs,
            traceback=error.__traceback__,
            einfo=info,
        )
        request.send_event("task-failed", exception=repr(error), traceback=info.traceback)

    def _refuse(self, tag: str, job_id: object, error: Exception, reason: str) -> None:
        if isinstance(job_id, str):
            try:
                self._app.backend.mark_as_failure(job_id, error)
            except Exception as failure:  # noqa: BLE001 - the message must not come back
                logger.error(  # noqa: TRY400
                    "The failure of job %.100s was not stored:\n%s",
                    job_id,
                    place_of(failure),
                    extra={"job_id": job_id},
                )
        leases.dead_letter(tag, reason, self._key)

    def _run(self, call: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
        function, args = call
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001 - the next is another's
            logger.error("A failure was not stored:\n%s", place_of(error))  # noqa: TRY400


def is_connection_lost(error: BaseException) -> bool:
    """Whether Redis was away, so that a retry can succeed."""
    if isinstance(error, OperationalError | Reject) and error.__cause__ is not None:
        return is_connection_lost(error.__cause__)
    if isinstance(error, redis.ResponseError) and str(error).startswith(_PASSING):
        return True
    return isinstance(error, (*_LOST, OperationalError))


def place_of(error: BaseException) -> str:
    """Type and place of an error. Its text may quote a message, and so may not be logged."""
    frames = traceback.format_tb(error.__traceback__)[-_FRAMES:]
    return "".join(frames) + type(error).__name__
