"""The pool's view of a running job of `embed`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from celery.worker import state

from worker.contract.lanes import Lane, lane_of
from worker.contract.messages import deadline_of, owner_of, submission_time
from worker.engine import Job
from worker.pool.request import EmbedRequest, end_expired, end_unrun
from worker.transport import Lease, leases

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext


logger = logging.getLogger(__name__)


class Limits(NamedTuple):
    """Celery's time limits in seconds, counted from the moment that the task runs."""

    hard: float | None
    soft: float | None


class Burial(NamedTuple):
    """The reason for a dead letter, and the key of its list."""

    reason: str
    key: str


class Owner(Protocol):
    """The pool's methods for a running job. All on the loop's thread."""

    def abort(self, in_flight: InFlightJob) -> None:
        """End the job early, even if it is running."""

    def watch(self, in_flight: InFlightJob, limits: Limits) -> list[Any]:
        """Start timers for the limits of a job that runs now."""


class InFlightJob:
    """The pool's view of a request of `embed`.

    It is open until its end is reported to Celery, once. Celery holds it weakly as the request's
    result and calls `terminate` on it. All methods belong to the loop's thread; other threads read
    only attributes that never change.
    """

    __slots__ = (
        "__weakref__",
        "_open",
        "_owner",
        "_timers",
        "accepted",
        "burial",
        "deadline",
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
        open_jobs: dict[InFlightJob, None],
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
        self._open = open_jobs
        self._timers: Sequence[Any] = ()
        #: Detached from its channel: this job ends it, even if the connection is lost.
        self.lease: Lease | None = leases.detach(request.message.delivery_tag)
        #: The tag of its lease, or '' on a transport of kombu's own.
        self.tag = self.lease.tag if self.lease is not None else ""
        #: The span that submitted it, if its trace is recorded; see `spans`.
        self.trace: SpanContext | None = None
        #: Seconds since the epoch by its producer's clock; None if the message does not say.
        self.submitted_at = submission_time(self.request.request_dict)
        #: Deadline in seconds since the epoch by Redis' clock, or None.
        self.deadline = deadline_of(self.request.request_dict)
        self.job: Job | None = None
        self.accepted = False
        self.burial: Burial | None = None
        self.started = time.monotonic()
        self._open[self] = None

    @property
    def args(self) -> tuple[Any, ...]:
        """Arguments of the tracer."""
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
        """The id of the job's API key, or ""."""
        return owner_of(self.request.request_dict)

    @property
    def redelivered(self) -> bool:
        """Whether another worker had the message before and did not end it."""
        return bool(self.request.delivery_info.get("redelivered"))

    @property
    def is_plain(self) -> bool:
        """Whether storing the result is all that Celery would do when the task succeeds.

        This assumes default settings and no receivers of signals, see `heard_by_signals`.
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
        """The number of its texts; 0 once it has ended."""
        return len(self.job.texts) if self.job is not None else 0

    @property
    def wants_result(self) -> bool:
        """Whether the outcome is to be stored."""
        return not self.request.ignore_result

    def meta(self) -> dict[str, Any]:
        """Fields that Celery adds to a stored outcome of this message."""
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
        try:
            self.request.on_accepted(os.getpid(), self.started)
        except Exception:
            # Of a signal's receiver, for example. This job and the others of the call still run.
            logger.exception("Celery could not be told that job %s runs", self.id)
        # `on_accepted` may have ended it at once.
        if any(self.limits) and self in self._open:
            self._timers = self._owner.watch(self, self.limits)

    def succeed(self, now: float, *, settled: bool) -> bool:
        """Celery: the task has succeeded, at monotonic time `now`. Return whether it was open.

        Its outcome is stored. If `settled`, its lease has ended in the same step.
        """
        self.accept()
        texts = self.texts
        if not self.close():
            return False
        request = self.request
        # As `on_success`, but without noting the id. Celery's tracer skips noted ids; here storing
        # an outcome a second time has no effect.
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
        """Celery: the task has ended with its tracer's `answer`. Return whether it was open."""
        self.accept()
        if not self.close():
            return False
        if self.burial is not None and self.tag:
            leases.dead_letter(self.tag, *self.burial)
        try:
            self.request.on_success(answer)
        finally:
            # The outcome is stored, so the lease ends even after an exception. Acts only once.
            self.request.acknowledge()
        return True

    def revoke(self) -> None:
        """Celery: it never ran. Announces it, stores REVOKED and sends `task_revoked`."""
        if self.close():
            end_unrun(self.request)

    def expire(self) -> None:
        """Celery: it did not run before its deadline. Announces it and stores REVOKED."""
        if self.close():
            end_expired(self.request)

    def discard(self) -> None:
        """End this delivery: the job has ended elsewhere before."""
        if self.close():
            state.task_ready(self.request)
            self.request.acknowledge()

    def put_back(self) -> None:
        """Requeue the message: its outcome could not be stored."""
        if self.close():
            self.request.reject(requeue=True)

    def terminate(self, signal: Any = None) -> None:
        """Celery: `revoke(terminate=True)`, or a cold shutdown."""
        self._owner.abort(self)

    def close(self) -> bool:
        """Close the job and cancel its timers. Return whether it was open."""
        if self._open.pop(self, self) is not None:
            return False
        for timer in self._timers:
            timer.cancel()
        # The engine's job refers to this one. Without the cycle, both are freed at once.
        self.job = None
        return True
