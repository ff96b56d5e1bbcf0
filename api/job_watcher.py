"""Wakes waiting requests when their jobs end, with one subscription per process."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import orjson
import redis
from redis.client import PubSub

from worker.contract import keys
from worker.contract.backoff import Backoff

logger = logging.getLogger(__name__)

#: Seconds of silence after which the connection is tried; a second such silence ends it.
_SILENCE = 5.0
#: Seconds between two tries to subscribe while Redis is away.
_BACKOFF = Backoff(0.05, 1.0)


class JobWatch:
    """One wait for one job; made by `JobWatcher.watch`, used by the thread that made it.

    A wake-up means "read the job again": one too many is harmless, and one between two waits is
    not lost. The lock is a binary semaphore, free after a wake-up; an Event costs several locks.
    `wake` and `advance` are called under the watcher's lock, by one thread at a time.
    """

    def __init__(self, *, progress: bool) -> None:
        self._woken = threading.Lock()
        self._woken.acquire()
        self._progress = progress

    def wait(self, seconds: float) -> bool:
        """Block until the job has to be read again; False if `seconds` passed without a reason."""
        return self._woken.acquire(timeout=seconds)

    def wake(self) -> None:
        if self._woken.locked():
            self._woken.release()

    def advance(self) -> None:
        """Wake if this watch follows the progress; others wait for the end."""
        if self._progress:
            self.wake()


class JobWatcher:
    """Wakes watches by the notices on `keys.EVENTS`.

    One daemon thread (under gevent: a greenlet) owns the subscription. It starts with the first
    watch, so that it belongs to the serving process, not to its parent; `close` ends it. `_lock`
    guards `_watches`, which the waiting threads share, and is never held across I/O. After every
    subscription all waiters read their jobs again, since notices in between are lost.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._watches: dict[str, set[JobWatch]] = {}
        self._thread: threading.Thread | None = None
        #: Id of the process that started the thread; a forked child inherits only the id.
        self._listens_in: int | None = None
        self._closing = threading.Event()
        self._pubsub: PubSub | None = None
        #: Whether waits end early, because this process is about to.
        self.released = False

    @contextmanager
    def watch(self, job_id: str, *, progress: bool = False) -> Iterator[JobWatch]:
        """Register for a job's notices. Read the job's state inside, or its end may be missed."""
        watch = JobWatch(progress=progress)
        with self._lock:
            self._watches.setdefault(job_id, set()).add(watch)
        try:
            self._ensure_running()
            yield watch
        finally:
            with self._lock:
                watches = self._watches[job_id]
                watches.discard(watch)
                if not watches:
                    del self._watches[job_id]

    def count(self) -> int:
        """Number of waiting clients."""
        with self._lock:
            return sum(map(len, self._watches.values()))

    def release(self) -> None:
        """End all waits, now and later: requests answer with their jobs as they stand."""
        self.released = True
        self._wake_all()

    def close(self) -> None:
        """End the thread; waiting requests read their jobs once more."""
        self._closing.set()
        with self._lock:
            thread, pubsub = self._thread, self._pubsub
        if pubsub is not None:
            try:
                # Its confirmation wakes the thread.
                pubsub.unsubscribe()  # type: ignore[no-untyped-call]
            except redis.RedisError:
                logger.debug("Redis is away; the subscription ends by its own limit")
        if thread is not None and thread.is_alive():
            thread.join(2 * _SILENCE)

    def _ensure_running(self) -> None:
        """Start the thread if this process has not started it yet.

        `start` is called outside the lock because it waits until the thread runs. If the
        application was made before gevent patched the process, the lock is the system's and would
        stop all greenlets.
        """
        here = os.getpid()
        with self._lock:
            if self._listens_in == here:
                return
            self._listens_in = here
            if not self._closing.is_set():
                # Created in this process, so patched like the thread that waits on it.
                self._closing = threading.Event()
            thread = threading.Thread(target=self._run, name="embedq-waiting", daemon=True)
            self._thread = thread
        try:
            thread.start()
        except BaseException:
            with self._lock:
                self._listens_in = None
            raise

    # The methods below run on the thread.

    def _run(self) -> None:
        pauses = iter(_BACKOFF)
        try:
            while not self._closing.is_set():
                try:
                    with self._client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
                        pubsub.subscribe(keys.EVENTS)
                        with self._lock:
                            self._pubsub = pubsub
                        pauses = iter(_BACKOFF)
                        self._listen(pubsub)
                except redis.RedisError as error:
                    logger.warning("The subscription was lost: %s", type(error).__name__)
                    self._closing.wait(next(pauses))
        finally:
            # Wake all waits even if this thread dies; the next watch starts another thread.
            with self._lock:
                self._listens_in = None
            self._wake_all()

    def _listen(self, pubsub: PubSub) -> None:
        silent = False
        while pubsub.subscribed and not self._closing.is_set():
            message = pubsub.get_message(timeout=_SILENCE)
            if message is None:
                if silent:
                    raise redis.TimeoutError("the subscription does not answer a ping")
                pubsub.ping()
                silent = True
                continue
            silent = False
            if message["type"] == "subscribe":
                self._wake_all()
            elif message["type"] == "message":
                self._deliver(message["data"])

    def _deliver(self, data: bytes) -> None:
        try:
            notice = orjson.loads(data)
            ended = [str(job_id) for job_id in notice.get("ended", ())]
            advanced = [str(job_id) for job_id in notice.get("progress", ())]
        except (ValueError, TypeError, AttributeError):
            logger.warning("A notice of %d bytes on %s was not understood", len(data), keys.EVENTS)
            return
        with self._lock:
            for job_id in ended:
                for watch in self._watches.get(job_id, ()):
                    watch.wake()
            for job_id in advanced:
                for watch in self._watches.get(job_id, ()):
                    watch.advance()

    def _wake_all(self) -> None:
        with self._lock:
            for watches in self._watches.values():
                for watch in watches:
                    watch.wake()
