"""Celery's consumer, for messages that cannot be run and for brokers without leases."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import MethodType
from typing import Any

from celery import bootsteps, signals
from celery.exceptions import InvalidTaskError, NotRegistered
from celery.worker import consumer, state
from kombu.exceptions import ContentDisallowed, DecodeError

from worker.contract.errors import JobFailed
from worker.contract.jobs import TASK_NAME
from worker.pool.failures import Failures, is_connection_lost, place_of
from worker.pool.parking import SharedClock
from worker.pool.pool import TaskPool
from worker.transport import lease_of, leases

logger = logging.getLogger(__name__)

#: Seconds for which a message to refuse is deferred while too many failures wait to be stored.
_PARKED_SECONDS = 10.0
#: Characters of a reason, which may quote a header of any length.
_LONGEST_REASON = 200


class KombuAdmission(bootsteps.StartStopStep):
    """Lets a channel of kombu's own transports fetch only while the pool has capacity.

    Our channels check the capacity themselves. Without this step and without a prefetch count, a
    worker would load the whole queue into memory. Runs for the channel of each connection.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Celery: the channel is open, and no message has been fetched."""
        qos = parent.task_consumer.channel.qos
        can_consume = qos.can_consume

        pool = parent.pool

        def with_room(_: Any) -> bool:
            has_room = not isinstance(pool, TaskPool) or pool.holds_more()
            return has_room and bool(can_consume())

        qos.can_consume = MethodType(with_room, qos)


class JobConsumer(consumer.Consumer):
    """Moves messages that cannot be run to the dead letters and fails their jobs.

    Celery's consumer acknowledges some of them, rejects others, logs their bodies, and crashes on
    the rest. All methods run on the loop's thread.
    """

    class Blueprint(consumer.Consumer.Blueprint):
        """Celery's steps and ours."""

        default_steps = (*consumer.Consumer.Blueprint.default_steps, KombuAdmission)

    timer: Any
    _own_failures: Failures | None = None

    def __init__(self, on_task_request: Callable[[Any], None], *args: Any, **kwargs: Any) -> None:
        super().__init__(on_task_request, *args, **kwargs)
        if isinstance(self.pool, TaskPool):
            self.timer = SharedClock(self.timer, self.pool)

        def deliver(request: Any) -> None:
            # Also called by timers: an error there would leave the message leased indefinitely.
            try:
                on_task_request(request)
            except Exception as error:  # noqa: BLE001 - logged there
                self._failed_on(request.message, error)

        self.on_task_request = deliver

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Celery: the function that is called with each message of a task."""
        handle = super().create_task_handler(*args, **kwargs)
        strategies, callbacks = self.strategies, self.on_task_message
        pool = self.pool if isinstance(self.pool, TaskPool) else None

        def deliver(message: Any) -> None:
            # With a consumer's tag there kombu would treat the message as acknowledged.
            message.delivery_info.pop("consumer_tag", None)
            lease = lease_of(message)
            if lease is not None and pool is not None and pool.parking.parks(message, lease):
                return
            if lease is None or _headers_of(message).get("task") != TASK_NAME:
                handle(message)
                return
            # A job of `embed` in protocol 2. Any thread can end its lease, without a turn of the
            # loop, which acknowledgements in Celery's own handler need.
            ack, reject = message.ack_log_error, message.reject_log_error
            strategies[TASK_NAME](message, None, ack, reject, callbacks)

        def on_task_received(message: Any) -> None:
            try:
                deliver(message)
            except Exception as error:  # noqa: BLE001 - logged there
                self._failed_on(message, error)

        return on_task_received

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Celery: the body does not match its content type."""
        self._refuse(message, f"the body cannot be read ({type(exc).__name__})")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Celery: the message has the wrong form, or a content type that is not accepted."""
        self._refuse(message, str(exc), body=body)
        signals.task_rejected.send(sender=self, message=message, exc=exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Celery: the message belongs to no task."""
        self._refuse(message, "the message is of no task", body=body)
        signals.task_rejected.send(sender=self, message=message, exc=None)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Celery: no task of this name is registered here."""
        headers = _headers_of(message)
        name = headers.get("task")
        reason = f"no worker here knows the task {name!r}"
        self._refuse(message, reason, error=NotRegistered(name), body=body)
        if self.event_dispatcher:
            shown = f"NotRegistered({name!r})"
            self.event_dispatcher.send("task-failed", uuid=headers.get("id"), exception=shown)
        signals.task_unknown.send(
            sender=self, message=message, exc=exc, name=name, id=headers.get("id")
        )

    def _failed_on(self, message: Any, error: Exception) -> None:
        """Refuse a message after an exception; raise that of a lost connection again."""
        if is_connection_lost(error):
            raise error
        if isinstance(error, InvalidTaskError | ContentDisallowed):
            self.on_invalid_task(None, message, error)
            return
        if isinstance(error, DecodeError):
            self.on_decode_error(message, error)
            return
        logger.error("Celery failed on a message:\n%s", place_of(error))
        self._refuse(message, f"Celery raised {type(error).__name__}")

    def _refuse(
        self, message: Any, reason: str, *, error: Exception | None = None, body: Any = None
    ) -> None:
        lease = lease_of(message)
        if lease is not None and self._failures.is_full:
            leases.defer(lease.tag, _PARKED_SECONDS)
            return
        headers = _headers_of(message)
        job_id = headers.get("id", body.get("id") if isinstance(body, dict) else None)
        reason = _plain(reason[:_LONGEST_REASON])
        shown = _plain(job_id[:_LONGEST_REASON]) if isinstance(job_id, str) else None
        logger.error("Message %s cannot be run: %s", shown, reason, extra={"job_id": shown})
        if error is None:
            ours = headers.get("task") == TASK_NAME
            error = JobFailed("invalid_request", reason) if ours else InvalidTaskError(reason)
        _forget(job_id, message)
        if lease is not None:
            self._failures.refuse(lease.tag, job_id, error, reason)
            return
        # kombu's own transport has no dead letters.
        if isinstance(job_id, str):
            self._failures.soon(self.app.backend.mark_as_failure, job_id, error)
        try:
            message.reject_log_error(logger, self.connection_errors)
        except Exception as failure:  # noqa: BLE001 - it was rejected already, for example
            logger.error("A message was not rejected:\n%s", place_of(failure))  # noqa: TRY400

    @property
    def _failures(self) -> Failures:
        """The pool's failures, or our own with one of Celery's pools."""
        shared: Failures | None = getattr(self.pool, "failures", None)
        if shared is None:
            shared = self._own_failures = self._own_failures or Failures(self.app)
        return shared


def _plain(text: str) -> str:
    """Escape lone surrogates, which neither logs nor servers accept."""
    return text.encode("utf-8", "backslashreplace").decode()


def _headers_of(message: Any) -> dict[str, Any]:
    return message.headers if isinstance(message.headers, dict) else {}


def _forget(job_id: object, message: Any) -> None:
    """Remove the request that Celery may have noted before the message failed."""
    request = state.requests.get(job_id) if isinstance(job_id, str) else None
    if request is not None and request.message is message:
        state.task_ready(request)
