"""Requests of `embedq.embed`: Celery's view of a message, without its texts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple

from celery import Celery, signals
from celery.exceptions import InvalidTaskError
from celery.worker import state
from celery.worker.request import Request

from worker.contract.messages import OWNER, shown_args
from worker.store.clock import Clock

#: Signals that Celery's tracer sends around a task. Without receivers it need not run.
_TRACER_SIGNALS = (
    signals.task_prerun,
    signals.task_postrun,
    signals.task_success,
)
#: As the headers of most messages have them.
_NO_LIMITS = [None, None]
_LISTS = (list, tuple)
#: Headers that become parts of keys or of a stored result.
_NAMES = ("id", "group", "parent_id", "root_id", OWNER)
#: Seconds. A timer cannot order NaN and infinity, and a clock cannot hold larger values.
_LONGEST_LIMIT = 1e9


class Where(NamedTuple):
    """The values that all requests of one consumer share."""

    app: Celery
    task: Any
    hostname: str
    eventer: Any
    connection_errors: tuple[type[Exception], ...]
    utc: bool


class EmbedRequest(Request):
    """A request that shows its texts neither in events, nor in logs, nor in `inspect`.

    Raises InvalidTaskError for a message of the wrong form, before any use of it.
    """

    #: Redis' clock; the pool sets it before the first message.
    clock: ClassVar[Clock | None] = None
    _expires: Any

    def __init__(self, message: Any, *, where: Where | None = None, **options: Any) -> None:
        """As Celery's; or with `where`, `on_ack` and `on_reject` if it has no eta or expiry."""
        if where is None:
            super().__init__(message, **options)
            if self._expires and self.clock is not None:
                # Celery compares it with the host's clock, which may differ.
                ahead = time.time() - self.clock.estimate()
                self._expires += timedelta(seconds=ahead)
        else:
            self._fill(message, where, **options)
        #: Callbacks, errbacks, chain and chord of the message. Celery's own way there is slow.
        self.embed: Mapping[str, Any] = checked(self)
        value = self._args[0] if self._args else self._kwargs.get("input")
        self._argsrepr = shown_args(len(value) if isinstance(value, list) else 1)
        self._kwargsrepr = "{}"
        # Read by Celery's own log of failures.
        self._request_dict["argsrepr"] = self._argsrepr
        self._request_dict["kwargsrepr"] = self._kwargsrepr

    def _fill(self, message: Any, where: Where, on_ack: Any, on_reject: Any) -> None:
        """Do the work of Celery's constructor for such a message, in half the time."""
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
        """Celery's log fields of a request without an eta."""
        return {
            "id": self.id,
            "name": self.name,
            "args": self._argsrepr,
            "kwargs": self._kwargsrepr,
            "eta": None,
        }

    def announce(self) -> None:
        """Send the event `task-received` of a request without an eta."""
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
        """As Celery, but quickly skip events that its dispatcher omits, usually all of them."""
        if self.is_watched:
            super().send_event(type, **fields)

    @property
    def is_watched(self) -> bool:
        """Whether the dispatcher may send events of tasks."""
        groups = self._eventer.groups if self._eventer else None
        return not groups or "task" in groups

    def info(self, safe: bool = False) -> dict[str, Any]:
        # Even if the arguments themselves are requested.
        info: dict[str, Any] = super().info(safe=True)
        return info


def checked(request: Request) -> Mapping[str, Any]:
    """Check a message; return its callbacks, errbacks, chain and chord.

    Raises InvalidTaskError. Celery accepts more forms, and then neither runs such a task nor stores
    its failure.
    """
    body = request.body
    # Of protocol 1 it is decoded already.
    args, kwargs, embed = body if isinstance(body, tuple) else request.message.payload
    headers = request.request_dict
    if not isinstance(request.id, str):
        raise InvalidTaskError("the id is no string")
    if any(name in headers and not _is_name(headers[name]) for name in _NAMES):
        raise InvalidTaskError(f"a header is no text: {', '.join(_NAMES)}")
    if not (isinstance(args, _LISTS) and isinstance(kwargs, dict)):
        raise InvalidTaskError("args or kwargs have the wrong type")
    if not (embed is None or (isinstance(embed, dict) and _has_signatures(embed))):
        raise InvalidTaskError("callbacks, errbacks, chain or chord have the wrong type")
    if request.time_limits != _NO_LIMITS and not _are_limits(request.time_limits):
        raise InvalidTaskError("the time limits are no numbers of seconds")
    return embed or {}


def _is_name(value: Any) -> bool:
    """Whether it is None, or text that can be part of a key or of a result."""
    if value is None:
        return True
    if not isinstance(value, str):
        return False
    # A lone surrogate has no UTF-8 form.
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def _has_signatures(embed: Mapping[str, Any]) -> bool:
    """Whether the follow-ups of a job are signatures as Celery writes them."""
    for name in ("callbacks", "errbacks", "chain"):
        links = embed.get(name)
        if links and not (isinstance(links, _LISTS) and all(map(_is_signature, links))):
            return False
    chord = embed.get("chord")
    return not chord or _is_signature(chord)


def _is_signature(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("task"), str)
        and isinstance(value.get("args") or [], _LISTS)
        and isinstance(value.get("kwargs") or {}, dict)
        and isinstance(value.get("options") or {}, dict)
    )


def _are_limits(limits: Any) -> bool:
    """Whether both are None or seconds that a timer can count."""
    return (
        isinstance(limits, _LISTS)
        and len(limits) == 2
        and all(
            limit is None or (isinstance(limit, int | float) and 0 <= limit < _LONGEST_LIMIT)
            for limit in limits
        )
    )


def heard_by_signals() -> bool:
    """Whether the signals of Celery's tracer have receivers."""
    return any(signal.receivers for signal in _TRACER_SIGNALS)


def end_unrun(request: Request) -> None:
    """Celery: it was revoked or has expired. Stores REVOKED, announces it and ends its lease.

    The message is requeued if Celery no longer has it as revoked, or if REVOKED could not be
    stored, which raises. Otherwise this worker would renew the lease for as long as it lives.
    """
    try:
        ended = request.revoked()
    except Exception:
        request.reject(requeue=True)
        raise
    if not ended:
        request.reject(requeue=True)


def end_expired(request: Request) -> None:
    """The same for a job past a deadline that Celery does not know."""
    try:
        request._announce_revoked("expired", False, None, True)  # noqa: SLF001
    except Exception:
        request.reject(requeue=True)
        raise


def overdue(request: Request) -> bool:
    """Whether it was revoked or has expired, and so must not start."""
    expires = request.expires
    if expires and datetime.now(UTC if expires.tzinfo else None) > expires:
        return True
    return request.id in state.revoked
