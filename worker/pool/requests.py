"""Requests of `embedq.embed`: what Celery makes of a message, without its texts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from celery import Celery, signals
from celery.exceptions import InvalidTaskError
from celery.worker import state
from celery.worker.request import Request

from worker.contract.messages import shown_args

#: Signals that Celery's tracer sends around a task. With nobody listening it need not run.
_TRACER_SIGNALS = (
    signals.task_prerun,
    signals.task_postrun,
    signals.task_success,
)
#: As the headers of most messages have them.
_NO_LIMITS = [None, None]
_LISTS = (list, tuple)


class Where(NamedTuple):
    """What all requests of one consumer have in common."""

    app: Celery
    task: Any
    hostname: str
    eventer: Any
    connection_errors: tuple[type[Exception], ...]
    utc: bool


class EmbedRequest(Request):
    """A request whose texts show neither in events, nor in logs, nor in `inspect`.

    Raises InvalidTaskError for a message of the wrong form, before anybody works with it.
    """

    def __init__(self, message: Any, *, where: Where | None = None, **options: Any) -> None:
        """As Celery's, or with `where`, `on_ack` and `on_reject` for what has no eta nor expiry."""
        if where is None:
            super().__init__(message, **options)
        else:
            self._fill(message, where, **options)
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

    def _fill(self, message: Any, where: Where, on_ack: Any, on_reject: Any) -> None:
        """What Celery's constructor makes of such a message, in half the time."""
        headers, properties = message.headers, message.properties or {}
        delivery_info = message.delivery_info or {}
        self._message = message
        self._body, self._decoded = message.body, False
        self._content_type = message.content_type
        self._content_encoding = message.content_encoding
        self._Request__payload = payload = message.payload
        self._app, self._task, self._hostname, self._eventer = where[:4]
        self._connection_errors, self._utc = where[4:]
        self._on_ack, self._on_reject = on_ack, on_reject
        self._eta = self._expires = None
        self.id, self._type = headers["id"], headers["task"]
        self.name = headers.get("shadow") or self._type
        self._root_id, self._parent_id = headers.get("root_id"), headers.get("parent_id")
        if limits := headers.get("timelimit"):
            self.time_limits = limits
        ignore_result = headers.get("ignore_result")
        self._ignore_result = where.task.ignore_result if ignore_result is None else ignore_result
        self._delivery_info = {
            "exchange": delivery_info.get("exchange"),
            "routing_key": delivery_info.get("routing_key"),
            "priority": properties.get("priority"),
            "redelivered": delivery_info.get("redelivered", False),
        }
        self._args, self._kwargs, _ = payload
        self._request_dict = {
            **headers,
            "properties": properties,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "hostname": self._hostname,
            "delivery_info": self._delivery_info,
            "args": self._args,
            "kwargs": self._kwargs,
        }

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


def end_unrun(request: Request) -> None:
    """Celery: it was revoked or has expired. Stores REVOKED, announces it and ends its lease.

    It is put back where Celery has forgotten meanwhile that it was, and where that could not be
    stored, which raises: its lease, renewed for as long as this worker lives, must not outlast it.
    """
    try:
        ended = request.revoked()
    except Exception:
        request.reject(requeue=True)
        raise
    if not ended:
        request.reject(requeue=True)


def overdue(request: Request) -> bool:
    """Whether it was revoked or has expired, so that it should not start any more."""
    expires = request.expires
    if expires and datetime.now(UTC if expires.tzinfo else None) > expires:
        return True
    return request.id in state.revoked
