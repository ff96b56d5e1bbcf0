"""Records of jobs that go through Celery itself: direct callers, links, other pools."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import redis
from celery import Celery, states
from kombu.exceptions import OperationalError

from worker.contract import estimates, server
from worker.contract.jobs import MOST_WINDOWS, Status
from worker.contract.results import failure_of, summary_of
from worker.contract.store import Ending, JobStore, NewJob

logger = logging.getLogger(__name__)

_stores: weakref.WeakKeyDictionary[Celery, JobStore] = weakref.WeakKeyDictionary()
_REDIS_SCHEMES = ("redis", "rediss", "sentinel", "socket", "unix")


def store_of(app: Celery) -> JobStore | None:
    """The records beside an application's results, or None where those are not on Redis."""
    store = _stores.get(app)
    if store is None:
        conf = app.conf
        url = conf.result_backend or ""
        if url.split("://")[0].removeprefix("redis+") not in _REDIS_SCHEMES:
            return None
        options = conf.result_backend_transport_options or {}
        client = server.connect(url, sentinel_master=options.get("master_name", "mymaster"))
        expires = conf.result_expires
        ttl = expires if isinstance(expires, int | float) else expires.total_seconds()
        store = _stores[app] = JobStore(client, conf.task_default_queue, result_ttl=int(ttl))
    return store


def open_record(app: Celery, job_id: str, texts: Sequence[Any], *, whole: bool = False) -> bool:
    """Write `queued` before the message is sent. Returns whether there is a record now.

    `whole`: texts past the model's limit are read to their end, and cost as much. Raises kombu's
    OperationalError where Redis cannot be reached, as sending would.
    """
    store = store_of(app)
    if store is None:
        return False
    job = NewJob(
        job_id,
        total=len(texts),
        tokens=estimates.tokens(texts, estimates.USUAL_LIMIT * (MOST_WINDOWS if whole else 1)),
        result_bytes=estimates.result_bytes(len(texts)),
    )
    try:
        store.accept(job, None)
    except redis.RedisError as error:
        raise OperationalError(str(error)) from error
    return True


def withdraw(app: Celery, job_id: str) -> None:
    """Forget a job whose message was not sent. Where that fails too, its record expires."""
    store = store_of(app)
    if store is None:
        return
    try:
        store.withdraw(job_id)
    except redis.RedisError:
        logger.warning("The record of job %s, which was not sent, could not be removed", job_id)


def close_record(app: Celery, job_id: str, state: str, value: Any) -> None:
    """End the record of a job whose outcome Celery has stored. `value` is its result or exception.

    Where that fails, the record is read with the outcome, which is there already.
    """
    store = store_of(app)
    if store is None:
        return
    try:
        store.finish([_ending(job_id, state, value)])
    except redis.RedisError as error:
        logger.warning("The record of job %s was not closed: %s", job_id, type(error).__name__)


def _ending(job_id: str, state: str, value: Any) -> Ending:
    if state == states.SUCCESS and (summary := summary_of(value)) is not None:
        tokens = summary.prompt_tokens or 0
        return Ending(job_id, Status.SUCCEEDED, texts=summary.texts, prompt_tokens=tokens)
    if state == states.FAILURE:
        stored = {"exc_type": type(value).__name__, "exc_message": getattr(value, "args", ())}
        failure = failure_of(stored)
        return Ending(job_id, Status.FAILED, code=failure.code, message=failure.message)
    return Ending(job_id, Status.of_celery(state))
