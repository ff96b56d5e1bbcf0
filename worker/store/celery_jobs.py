"""The job store of a Celery application, and jobs that Celery itself sends."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from worker.contract.estimates import USUAL_MODEL
from worker.contract.jobs import DEFAULT_OPTIONS, JobOptions
from worker.contract.settings import is_redis
from worker.store import server
from worker.store.jobs import JobRequest, JobStore

logger = logging.getLogger(__name__)

_stores: weakref.WeakKeyDictionary[Celery, JobStore] = weakref.WeakKeyDictionary()


def store_of(app: Celery) -> JobStore | None:
    """The job store of an application, or None if its results are not on Redis."""
    store = _stores.get(app)
    if store is None:
        conf = app.conf
        url = conf.result_backend or ""
        if not is_redis(url):
            return None
        options = conf.result_backend_transport_options or {}
        client = server.connect(url, sentinel_master=options.get("master_name", "mymaster"))
        expires = conf.result_expires
        ttl = expires if isinstance(expires, int | float) else expires.total_seconds()
        store = _stores[app] = JobStore(
            client, conf.task_default_queue, result_ttl=int(ttl), broker=_broker_of(conf)
        )
    return store


def _broker_of(conf: Any) -> redis.Redis | None:
    """The server of the messages, None if it also has the results or is not Redis."""
    url = conf.broker_url or ""
    if not is_redis(url) or server.same_server(url, conf.result_backend):
        return None
    options = conf.broker_transport_options or {}
    return server.connect(url, sentinel_master=options.get("master_name", "mymaster"))


def queue_of(app: Celery) -> JobStore | None:
    """The store of an application, or None if it cannot send messages either."""
    return store_of(app) if is_redis(app.conf.broker_url or "") else None


@contextmanager
def as_sending() -> Iterator[None]:
    """Raise kombu's OperationalError if Redis cannot be reached, as sending a message would."""
    try:
        yield
    except redis.RedisError as error:
        raise OperationalError(str(error)) from error


def submit(
    app: Celery, job_id: str, texts: Sequence[Any], options: JobOptions = DEFAULT_OPTIONS
) -> bool:
    """Submit a job before Celery sends its message. Returns whether there is a record now.

    Raises kombu's OperationalError if Redis cannot be reached, as sending would.
    """
    store = store_of(app)
    if store is not None:
        with as_sending():
            store.submit(JobRequest.of(texts, options, USUAL_MODEL, job_id=job_id))
    return store is not None


def at(app: Celery, seconds: float) -> datetime:
    """The time after `seconds`, by Redis' clock: hosts' clocks differ.

    Raises OperationalError if Redis cannot be reached.
    """
    store = store_of(app)
    with as_sending():
        now = time.time() if store is None else store.clock.now()
    return datetime.fromtimestamp(now + seconds, UTC)


def purged(app: Celery, task_ids: Sequence[str]) -> None:
    """Cancel the jobs among tasks that are about to be purged. Raises redis.RedisError."""
    store = store_of(app)
    if store is None:
        return
    records = store.read_many(task_ids)
    jobs = [record.id for record in records if record is not None and not record.status.ended]
    if jobs:
        store.cancel(*jobs)


def withdraw(app: Celery, job_id: str) -> None:
    """Withdraw a job after a failure to send its message. If that fails too, its record expires."""
    store = store_of(app)
    if store is None:
        return
    try:
        store.withdraw(job_id)
    except redis.RedisError:
        logger.warning("The record of job %s, which was not sent, could not be removed", job_id)
