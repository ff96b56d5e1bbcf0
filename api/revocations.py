"""Revoke cancelled jobs in the workers, without a wait in the request."""

from __future__ import annotations

import logging
import queue
import threading

import redis
from kombu.exceptions import KombuError

from worker.contract.app import make_app
from worker.contract.settings import Settings

logger = logging.getLogger(__name__)

#: Most waiting ids; further ones are dropped. A cancelled job already has its outcome, so the
#: broadcast only saves work.
_LONGEST_QUEUE = 10_000
#: Ids in one broadcast.
_AT_ONCE = 1_000


class Revocations:
    """Broadcasts `revoke` for cancelled jobs, best effort.

    One daemon thread owns the Celery application and its connection. It starts with the first
    cancellation and ends with `close`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ids: queue.Queue[str | None] = queue.Queue(_LONGEST_QUEUE)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def send(self, job_id: str) -> None:
        """Never blocks, never raises."""
        try:
            self._ids.put_nowait(job_id)
        except queue.Full:
            logger.warning(
                "Too many cancellations wait; a worker may encode %s for nothing", job_id
            )
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="embedq-revocations", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """End the thread when the queue is empty."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            self._ids.put(None)
            thread.join(5)

    def _run(self) -> None:
        # Made on this thread, so that it does not become the current application of others.
        app = make_app(self._settings)
        try:
            while ids := self._next():
                try:
                    app.control.revoke(ids, terminate=True)
                except (KombuError, redis.RedisError, OSError) as error:
                    logger.warning(
                        "%d cancellations did not reach the workers: %s",
                        len(ids),
                        type(error).__name__,
                    )
        finally:
            app.close()

    def _next(self) -> list[str]:
        """The waiting ids, at least one; an empty list when the queue is closed."""
        first = self._ids.get()
        ids = [] if first is None else [first]
        while ids and len(ids) < _AT_ONCE:
            try:
                following = self._ids.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._ids.put_nowait(None)
                break
            ids.append(following)
        return ids
