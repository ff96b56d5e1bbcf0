"""One request of `embedq.embed` in the hands of the pool."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from celery import signals
from celery.worker import state
from celery.worker.request import Request

from worker.contract.messages import shown_args
from worker.engine import Job
from worker.transport import Lease, lease_of

#: Signals that Celery's tracer sends around a task. With nobody listening it need not run.
_TRACER_SIGNALS = (
    signals.task_prerun,
    signals.task_postrun,
    signals.task_success,
)


class EmbedRequest(Request):
    """A request whose texts show neither in events, nor in logs, nor in `inspect`."""

    @property
    def argsrepr(self) -> str:
        value = self._args[0] if self._args else (self._kwargs or {}).get("input")
        return shown_args(len(value) if isinstance(value, list) else 1)

    @property
    def kwargsrepr(self) -> str:
        return "{}"

    def info(self, safe: bool = False) -> dict[str, Any]:
        # Even where somebody asks for the arguments themselves.
        info: dict[str, Any] = super().info(safe=True)
        return info


class Ticket:
    """What the pool keeps of a request until it has ended.

    Celery holds it weakly as the request's result and calls `terminate` on it.
    """

    __slots__ = (
        "__weakref__",
        "_accept",
        "_on_terminate",
        "_succeed",
        "accepted",
        "args",
        "id",
        "job",
        "lease",
        "request",
        "started",
        "target",
        "time_out",
        "timers",
    )

    def __init__(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        callback: Callable[..., Any],
        accept_callback: Callable[..., Any],
        timeout_callback: Callable[..., Any],
        on_terminate: Callable[[Ticket], None],
    ) -> None:
        # Celery offers the request itself only behind its bound method.
        self.request: EmbedRequest = callback.__self__  # type: ignore[attr-defined]
        self.id: str = args[1]
        self.target = target
        self.args = args
        self._succeed = callback
        self._accept = accept_callback
        self.time_out = timeout_callback
        self._on_terminate = on_terminate
        self.lease: Lease | None = lease_of(self.request.message)
        self.job: Job | None = None
        self.accepted = False
        self.started = time.monotonic()
        self.timers: list[Any] = []

    @property
    def tag(self) -> str:
        """The name of its lease, or '' on the stock transport."""
        return self.lease.tag if self.lease is not None else ""

    @property
    def redelivered(self) -> bool:
        """Whether another worker had the message before and did not end it."""
        return bool(self.request.delivery_info.get("redelivered"))

    @property
    def embed(self) -> Mapping[str, Any]:
        """Callbacks, errbacks, chain and chord of the message."""
        embed: Mapping[str, Any] = self.request._payload[2] or {}
        return embed

    def is_plain(self, conf: Any) -> bool:
        """Whether storing the result is all that Celery would do when the task succeeds."""
        embed = self.embed
        return (
            not (
                embed.get("chord")
                or embed.get("callbacks")
                or embed.get("errbacks")
                or embed.get("chain")
            )
            and not any(signal.receivers for signal in _TRACER_SIGNALS)
            and not (conf.result_extended or conf.task_track_started)
        )

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

    def overdue(self) -> bool:
        """Whether it was revoked or has expired, so that it should not start any more."""
        expires = self.request.expires
        if expires and datetime.now(UTC if expires.tzinfo else None) > expires:
            return True
        return self.id in state.revoked

    # On the thread of the loop, as Celery expects of its callbacks.

    def accept(self) -> None:
        """Celery: the task runs now."""
        if not self.accepted:
            self.accepted = True
            self.started = time.monotonic()
            self._accept(os.getpid(), self.started)

    def end(self, answer: tuple[int, Any, float]) -> None:
        """Celery: the task is over; `answer` as its tracer gives it."""
        for timer in self.timers:
            timer.cancel()
        self.accept()
        self._succeed(answer)

    def terminate(self, signal: Any = None) -> None:
        """Celery: `revoke(terminate=True)` while it runs."""
        self._on_terminate(self)
