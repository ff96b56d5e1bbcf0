"""Requests of `embedq.embed`: what Celery hands over, and what the pool keeps of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from celery import signals
from celery.exceptions import InvalidTaskError
from celery.worker import state
from celery.worker.request import Request

from worker.contract.lanes import Lane, lane_of
from worker.contract.messages import owner_of, shown_args, submission_time
from worker.engine import Job
from worker.transport import Lease, leases

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

#: Signals that Celery's tracer sends around a task. With nobody listening it need not run.
_TRACER_SIGNALS = (
    signals.task_prerun,
    signals.task_postrun,
    signals.task_success,
)
#: As the headers of most messages have them.
_NO_LIMITS = [None, None]
_LISTS = (list, tuple)


class EmbedRequest(Request):
    """A request whose texts show neither in events, nor in logs, nor in `inspect`.

    Raises InvalidTaskError for a message of the wrong form, before anybody works with it.
    """

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        #: Callbacks, errbacks, chain and chord of the message. Celery's own way there is slow.
        self.embed: Mapping[str, Any] = _checked(
            self, self._body if self._decoded else message.payload
        )
        value = self._args[0] if self._args else self._kwargs.get("input")
        self._argsrepr = shown_args(len(value) if isinstance(value, list) else 1)
        self._kwargsrepr = "{}"
        # Read by Celery's own log of failures.
        self._request_dict["argsrepr"] = self._argsrepr
        self._request_dict["kwargsrepr"] = self._kwargsrepr

    def received(self) -> dict[str, Any]:
        """What Celery logs of a request that is to run as soon as it can."""
        return {
            "id": self.id,
            "name": self.name,
            "args": self._argsrepr,
            "kwargs": self._kwargsrepr,
            "eta": None,
        }

    def announce(self) -> None:
        """The event `task-received`, of a request that is to run as soon as it can."""
        self.send_event(
            "task-received",
            name=self.name,
            args=self._argsrepr,
            kwargs=self._kwargsrepr,
            root_id=self._root_id,
            parent_id=self._parent_id,
            retries=self._request_dict.get("retries", 0),
            eta=None,
            expires=None,
        )

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002
        """As Celery; what its dispatcher is to leave out, mostly all of them, costs a look here."""
        if self.is_watched:
            super().send_event(type, **fields)

    @property
    def is_watched(self) -> bool:
        """Whether somebody wants events of tasks."""
        groups = self._eventer.groups if self._eventer else None
        return not groups or "task" in groups

    def info(self, safe: bool = False) -> dict[str, Any]:
        # Even where somebody asks for the arguments themselves.
        info: dict[str, Any] = super().info(safe=True)
        return info


def _checked(request: Request, payload: Any) -> Mapping[str, Any]:
    """What the message of a request asks for besides its call. Raises InvalidTaskError."""
    args, kwargs, embed = payload
    limits = request.time_limits
    if not isinstance(request.id, str):
        raise InvalidTaskError("the id is no string")
    if not (isinstance(args, _LISTS) and isinstance(kwargs, dict)):
        raise InvalidTaskError("args or kwargs have the wrong type")
    if not (embed is None or isinstance(embed, dict)):
        raise InvalidTaskError("callbacks and errbacks have the wrong type")
    if limits != _NO_LIMITS and not (
        isinstance(limits, _LISTS)
        and len(limits) == 2
        and all(limit is None or isinstance(limit, int | float) for limit in limits)
    ):
        raise InvalidTaskError("the time limits are no numbers")
    return embed or {}


def heard_by_signals() -> bool:
    """Whether somebody listens for what Celery's tracer tells around a task."""
    return any(signal.receivers for signal in _TRACER_SIGNALS)


def overdue(request: Request) -> bool:
    """Whether it was revoked or has expired, so that it should not start any more."""
    expires = request.expires
    if expires and datetime.now(UTC if expires.tzinfo else None) > expires:
        return True
    return request.id in state.revoked


class Limits(NamedTuple):
    """Celery's time limits in seconds, counted from the moment that the task runs."""

    hard: float | None
    soft: float | None


class Burial(NamedTuple):
    """Why a message goes to a dead-letter list, and the list's key."""

    reason: str
    key: str


class Owner(Protocol):
    """The pool, as a ticket sees it. All on the loop's thread."""

    def abort(self, ticket: Ticket) -> None:
        """Somebody wants the job ended although it may be running."""

    def watch(self, ticket: Ticket, limits: Limits) -> list[Any]:
        """Start timers for the limits of a job that runs now."""


class Ticket:
    """What the pool keeps of a request until it has ended.

    It is open until Celery has been told how it ended, which happens once. Celery holds it weakly
    as the request's result and calls `terminate` on it. All methods belong to the loop's thread;
    other threads read what never changes.
    """

    __slots__ = (
        "__weakref__",
        "_open",
        "_owner",
        "_timers",
        "accepted",
        "burial",
        "id",
        "job",
        "lease",
        "limits",
        "request",
        "started",
        "submitted_at",
        "tag",
        "target",
        "trace",
    )

    def __init__(
        self,
        owner: Owner,
        open_tickets: dict[Ticket, None],
        request: EmbedRequest,
        target: Callable[..., Any],
        limits: Limits,
    ) -> None:
        self.request = request
        self.id: str = request.id
        #: Celery's tracer.
        self.target = target
        self.limits = limits
        self._owner = owner
        self._open = open_tickets
        self._timers: Sequence[Any] = ()
        #: Kept from now on: the ticket ends it, whatever becomes of the connection it came by.
        self.lease: Lease | None = leases.hold(request.message.delivery_tag)
        #: The name of its lease, or '' on the stock transport.
        self.tag = self.lease.tag if self.lease is not None else ""
        #: The span that submitted it, where its trace is recorded; see `spans`.
        self.trace: SpanContext | None = None
        #: Seconds since the epoch by its producer's clock, None where that does not say.
        self.submitted_at = submission_time(self.request.request_dict)
        self.job: Job | None = None
        self.accepted = False
        self.burial: Burial | None = None
        self.started = time.monotonic()
        self._open[self] = None

    @property
    def args(self) -> tuple[Any, ...]:
        """What the tracer takes."""
        request = self.request
        return (
            *(request.type, self.id, request.request_dict, request.body),
            *(request.content_type, request.content_encoding),
        )

    @property
    def lane(self) -> Lane:
        """The lane of the list that it came from."""
        return lane_of(self.lease.priority) if self.lease is not None else Lane.NORMAL

    @property
    def tenant(self) -> str:
        """Whose it is: the id of an API key, or ""."""
        return owner_of(self.request.request_dict)

    @property
    def redelivered(self) -> bool:
        """Whether another worker had the message before and did not end it."""
        return bool(self.request.delivery_info.get("redelivered"))

    @property
    def is_plain(self) -> bool:
        """Whether storing the result is all that Celery would do when the task succeeds.

        With nothing but default settings, and nobody listening, that is; see `heard_by_signals`.
        """
        embed = self.request.embed
        return not (
            embed.get("chord")
            or embed.get("callbacks")
            or embed.get("errbacks")
            or embed.get("chain")
        )

    @property
    def texts(self) -> int:
        """How many it has; 0 once it has ended."""
        return len(self.job.texts) if self.job is not None else 0

    @property
    def wants_result(self) -> bool:
        """Whether the outcome is to be stored."""
        return not self.request.ignore_result

    def meta(self) -> dict[str, Any]:
        """What Celery adds to a stored outcome of this message."""
        request_dict = self.request.request_dict
        extra = {}
        if request_dict.get("group"):
            extra["group_id"] = request_dict["group"]
        if request_dict.get("parent_id"):
            extra["parent_id"] = request_dict["parent_id"]
        return extra

    def accept(self) -> None:
        """Celery: the task runs now."""
        if self.accepted or self not in self._open:
            return
        self.accepted = True
        self.started = time.monotonic()
        self.request.on_accepted(os.getpid(), self.started)
        # Told that it runs, Celery may have ended it at once.
        if any(self.limits) and self in self._open:
            self._timers = self._owner.watch(self, self.limits)

    def succeed(self, now: float, *, settled: bool) -> bool:
        """Celery: the task has succeeded, at this monotonic time. Whether it was open.

        Its outcome is stored and, where `settled`, its lease has ended in the same step.
        """
        self.accept()
        texts = self.texts
        if not self.close():
            return False
        request = self.request
        # What `on_success` does, without noting the id: that lets Celery's tracer pass over what
        # it has run already, and storing an outcome a second time does nothing here.
        state.task_ready(request)
        if settled and self.lease is not None:
            request.acknowledged = True
        else:
            request.acknowledge()
        if request.is_watched:
            shown = f"<vectors of {texts} texts>"
            request.send_event("task-succeeded", result=shown, runtime=now - self.started)
        return True

    def end(self, answer: tuple[int, Any, float]) -> bool:
        """Celery: the task is over; `answer` as its tracer gives it. Whether it was open."""
        self.accept()
        if not self.close():
            return False
        if self.burial is not None and self.tag:
            leases.bury(self.tag, *self.burial)
        self.request.on_success(answer)
        return True

    def revoke(self) -> None:
        """Celery: it never ran. Announces it, stores REVOKED and sends `task_revoked`."""
        if self.close() and not self.request.revoked():
            # Celery has forgotten meanwhile that it was.
            self.request.reject(requeue=True)

    def put_back(self) -> None:
        """Its outcome could not be stored: somebody else is to run it."""
        if self.close():
            self.request.reject(requeue=True)

    def terminate(self, signal: Any = None) -> None:
        """Celery: `revoke(terminate=True)`, or a cold shutdown."""
        self._owner.abort(self)

    def close(self) -> bool:
        """Whether it was open; Celery hears no more of it."""
        if self._open.pop(self, self) is not None:
            return False
        for timer in self._timers:
            timer.cancel()
        # The job holds its ticket: apart, both are freed at once, without garbage collection.
        self.job = None
        return True
