"""Celery's consumer, for messages that nobody can run and for brokers that hold nothing back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import MethodType
from typing import Any

from celery import bootsteps, signals
from celery.exceptions import InvalidTaskError
from celery.worker import consumer
from kombu.exceptions import ContentDisallowed, DecodeError

from worker.contract import keys
from worker.contract.errors import JobFailed
from worker.contract.jobs import TASK_NAME
from worker.contract.lanes import Lane
from worker.transport import admission, lease_of, leases

logger = logging.getLogger(__name__)

#: What a message of the wrong form raises in Celery's own code. Its consumer does not expect that
#: and would end, and so would that of every worker which gets the message next.
_MALFORMED = (TypeError, ValueError, KeyError, AttributeError)


class StockAdmission(bootsteps.StartStopStep):
    """Lets a channel of kombu's own transport fetch only while the engine has room.

    Our channels ask by themselves. Without this, and with no limit by count, a worker would take
    the whole queue into its memory. Runs anew for the channel of each connection.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Celery: the channel is there and nothing has been fetched yet."""
        qos = parent.task_consumer.channel.qos
        can_consume = qos.can_consume

        def with_room(_: Any) -> bool:
            room = admission.room
            return (room is None or room(Lane.NORMAL) > 0) and bool(can_consume())

        qos.can_consume = MethodType(with_room, qos)


class Consumer(consumer.Consumer):
    """Moves messages that nobody can run to the dead letters and fails their jobs.

    Celery's own acknowledges some of them, rejects others, and logs their bodies. All on the
    loop's thread.
    """

    class Blueprint(consumer.Consumer.Blueprint):
        """Celery's steps and ours."""

        default_steps = (*consumer.Consumer.Blueprint.default_steps, StockAdmission)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Celery: what is called with each message of a task."""
        handle = super().create_task_handler(*args, **kwargs)
        strategies, callbacks = self.strategies, self.on_task_message

        def hand_over(message: Any) -> None:
            if not _is_leased_job(message):
                handle(message)
                return
            # To end a lease is to note it, on any thread: nothing has to wait for the loop, as
            # Celery's own handler lets acknowledgements of every broker do.
            try:
                strategies[TASK_NAME](
                    message, None, message.ack_log_error, message.reject_log_error, callbacks
                )
            except (InvalidTaskError, ContentDisallowed) as error:
                self.on_invalid_task(None, message, error)
            except DecodeError as error:
                self.on_decode_error(message, error)

        def on_task_received(message: Any) -> None:
            try:
                hand_over(message)
            except _MALFORMED as error:
                if isinstance(error, self.connection_errors):
                    raise
                logger.exception("Celery failed on a message")
                self._refuse(message, f"Celery raised {type(error).__name__}")

        return on_task_received

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Celery: the body is not what its content type says."""
        self._refuse(message, f"the body cannot be read ({type(exc).__name__})")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Celery: the message has the wrong form, or a content type that is not accepted."""
        self._refuse(message, str(exc))
        signals.task_rejected.send(sender=self, message=message, exc=exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Celery: the message is of no task."""
        self._refuse(message, "the message is of no task")
        signals.task_rejected.send(sender=self, message=message, exc=None)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Celery: no task of this name is registered here."""
        reason = f"no worker here knows the task {message.headers.get('task')!r}"
        _log_refusal(message.headers.get("id"), reason)
        self._bury(message, reason)
        # Celery logs these, and the texts may be meant for `embed`.
        message.body = ""
        message.headers |= {"argsrepr": "", "kwargsrepr": ""}
        super().on_unknown_task("", message, exc)

    def _refuse(self, message: Any, reason: str) -> None:
        headers = message.headers if isinstance(message.headers, dict) else {}
        job_id = headers.get("id")
        _log_refusal(job_id, reason)
        if not self._bury(message, reason):
            message.reject_log_error(logger, self.connection_errors)
        if isinstance(job_id, str):
            ours = headers.get("task") == TASK_NAME
            error = JobFailed("invalid_request", reason) if ours else InvalidTaskError(reason)
            self.app.backend.mark_as_failure(job_id, error)

    def _bury(self, message: Any, reason: str) -> bool:
        """Keep a leased message for people to look at; kombu's own transport cannot."""
        lease = lease_of(message)
        if lease is None:
            return False
        leases.bury(lease.tag, reason, keys.dead_letters(self.app.conf.task_default_queue))
        return True


def _is_leased_job(message: Any) -> bool:
    """Whether it is a job of `embed`, in protocol 2, under a lease of ours."""
    headers = message.headers
    return (
        isinstance(headers, dict)
        and headers.get("task") == TASK_NAME
        and lease_of(message) is not None
    )


def _log_refusal(job_id: Any, reason: str) -> None:
    logger.error("Message %s cannot be run: %s", job_id, reason, extra={"job_id": job_id})
