"""Requests of `embedq.embed`: what Celery makes of a message, without its texts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from celery import signals
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
