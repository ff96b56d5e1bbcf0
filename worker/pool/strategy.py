"""Turn a message of `embed` into a request, and pass it to the pool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from celery import signals
from celery.app import trace
from celery.utils.imports import symbol_by_name
from celery.worker import state
from celery.worker.request import create_request_cls
from celery.worker.strategy import default
from celery.worker.strategy import logger as celery_logger

from worker.pool.in_flight import Limits
from worker.pool.pool import TaskPool
from worker.pool.request import EmbedRequest, Where

#: Takes a message, its decoded body, functions to acknowledge and reject it, and callbacks for its
#: request.
Receiver = Callable[..., Any]


def strategy(task: Any, app: Any, consumer: Any, **options: Any) -> Receiver:
    """Celery's strategy for `embed`, without the steps that a plain message does not need.

    Celery requests a strategy when it connects, and passes every message to it on the loop's
    thread. Celery's own strategy handles messages with an eta or an expiry, revoked and
    rate-limited ones, and all of them while the signal `task_received` has receivers.
    """
    general: Receiver = default(task, app, consumer, **options)
    pool = consumer.pool
    if not isinstance(pool, TaskPool):
        return general
    is_logged = celery_logger.isEnabledFor(logging.INFO)
    where = Where(
        *(app, task, consumer.hostname, consumer.event_dispatcher),
        *(consumer.connection_errors, app.uses_utc_timezone()),
    )
    request_class = create_request_cls(
        symbol_by_name(task.Request), task, pool, where.hostname, where.eventer, app=app
    )
    run = trace.fast_trace_task if app.use_fast_trace_task else trace.trace_task_ret
    buckets = consumer.task_buckets
    usual_limits = Limits(task.time_limit, task.soft_time_limit)

    def receive(
        message: Any, body: Any, ack: Any, reject: Any, callbacks: Collection[Any], **_: Any
    ) -> Any:
        headers = message.headers
        if (
            body is not None
            or not _is_plain(headers)
            or not isinstance(message.payload, list)
            or signals.task_received.receivers
            or (buckets[task.name] and not consumer.disable_rate_limits)
        ):
            return general(message, body, ack, reject, callbacks)
        request: EmbedRequest = request_class(message, where=where, on_ack=ack, on_reject=reject)
        if is_logged:
            seen = request.received()
            celery_logger.info(trace.LOG_RECEIVED, seen, extra={"data": seen})
        if request.is_watched:
            request.announce()
        state.task_reserved(request)
        for callback in callbacks:
            callback(request)
        hard, soft = request.time_limits
        pool.take(request, run, Limits(hard or usual_limits.hard, soft or usual_limits.soft))
        return None

    return receive


def _is_plain(headers: Mapping[str, Any]) -> bool:
    """Whether the message runs unconditionally when its turn comes."""
    return not (
        headers.get("eta") is not None
        or headers.get("expires") is not None
        or headers.get("stamped_headers")
        or not isinstance(headers.get("id"), str)
        or headers["id"] in state.revoked
    )
