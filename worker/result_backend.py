"""The result backend: every stored outcome of `embed` completes its job.

Celery's tracer, a revoked or expired request, a time limit and other pools all store outcomes
through the application's result backend. This one completes the job in the same step. It stores
outcomes of other tasks as Celery does.
"""

from __future__ import annotations

from typing import Any

import redis
from celery import Celery, states
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.exceptions import Reject

from worker.contract.jobs import TASK_NAME, Status
from worker.store.celery_jobs import store_of
from worker.store.jobs import Completion, JobStore
from worker.transport import EndedElsewhere, following


def open_backend(app: Celery, url: str) -> RedisBackend:
    """The result backend of an application; Celery calls it with the URL of the setting."""
    backend = SentinelJobBackend if url.startswith("sentinel://") else JobBackend
    return backend(app=app, url=url.removeprefix("redis+"))


class JobBackend(RedisBackend):
    """Celery's Redis backend, which also completes jobs."""

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **options: Any,
    ) -> Any:
        store = self._store(task_id, request)
        if store is None:
            return super()._store_result(task_id, result, state, traceback, request, **options)
        meta = self._get_result_meta(result, state, traceback, request) | {"task_id": task_id}
        encoded = self.encode(meta)
        stored = encoded if isinstance(encoded, bytes) else encoded.encode()
        if state in states.READY_STATES:
            _complete(store, Completion.of_celery(task_id, state, result, stored))
        else:
            store.note(task_id, stored)
        return result

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, **how: Any
    ) -> None:
        """Celery calls this when a task has succeeded."""
        super().mark_as_done(task_id, result, request, store_result, **how)
        if not store_result or getattr(request, "ignore_result", False):
            self._close(task_id, how.get("state", states.SUCCESS), result, request)

    def mark_as_failure(
        self, task_id: str, exc: Any, *args: Any, store_result: bool = True, **how: Any
    ) -> None:
        """Celery calls this when a task has failed."""
        super().mark_as_failure(task_id, exc, *args, store_result=store_result, **how)
        if not store_result:
            result = self.prepare_exception(exc)
            self._close(task_id, states.FAILURE, result, how.get("request"))

    def mark_as_revoked(
        self, task_id: str, *args: Any, request: Any = None, store_result: bool = True, **how: Any
    ) -> None:
        """Celery calls this when a task was revoked or has expired."""
        super().mark_as_revoked(task_id, *args, request=request, store_result=store_result, **how)
        if not store_result:
            self._close(task_id, states.REVOKED, None, request)

    def _close(self, task_id: str, state: str, result: Any, request: Any) -> None:
        """Complete a job with an ignored result."""
        store = self._store(task_id, request)
        if store is not None:
            _complete(store, Completion.of_celery(task_id, state, result))

    def _store(self, task_id: str, request: Any) -> JobStore | None:
        """The job store if the task is a job; without a request, if it has a record."""
        store = store_of(self.app)
        if store is None:
            return None
        if request is not None:
            ours = getattr(request, "task", None) == TASK_NAME
        else:
            ours = store.read(task_id) is not None
        return store if ours else None


class SentinelJobBackend(JobBackend, SentinelBackend):
    """The same backend behind Sentinel."""


def _complete(store: JobStore, completion: Completion) -> None:
    """Complete a job, and send the messages that its task has published.

    Raises EndedElsewhere if the job had ended before; then its messages are not sent again. Raises
    Reject, which requeues the job, if a full server has no room for these messages.
    """
    held = following.get()
    if held is None or held.stored or held.task_id != completion.id:
        store.complete([completion])
        return
    succeeded = completion.status is Status.SUCCEEDED
    completion = completion._replace(tag=held.lease.tag)
    try:
        known = store.complete([completion], follow=held.messages if succeeded else ())
    except redis.OutOfMemoryError as error:
        raise Reject(error, requeue=True) from error
    held.stored = True
    if known:
        raise EndedElsewhere
