"""Daemon threads for calls that may block: tasks other than `embed`, and Celery's tracer."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

#: Exit status of a worker that cannot continue; its supervisor starts another.
EX_SOFTWARE = 70


class DaemonThreads:
    """Runs a function on one item after another, on threads that do not keep the process alive.

    `concurrent.futures` joins its threads when the interpreter ends, so a task that hangs would
    block a shutdown indefinitely. Any thread may call; the lock guards the queue and is not held
    while the function runs. An error of the function ends the worker.
    """

    def __init__(self, threads: int, name: str, function: Callable[[Any], None]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._to_run = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._waiting: deque[Any] = deque()
        self._running = 0
        self._closed = False
        for number in range(threads):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    @property
    def backlog(self) -> int:
        """The number of items that wait or run."""
        return len(self._waiting) + self._running

    def submit(self, thing: Any) -> None:
        """Run the function on an item when a thread is free."""
        with self._lock:
            self._waiting.append(thing)
            self._to_run.notify()

    def withdraw(self, thing: Any) -> bool:
        """Remove a waiting item. Return whether it was still waiting."""
        with self._lock:
            if thing not in self._waiting:
                return False
            self._waiting.remove(thing)
            return True

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds`; return whether every item ended."""
        deadline = time.monotonic() + seconds
        with self._lock:
            while self.backlog:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._done.wait(left)
            return True

    def close(self) -> None:
        """End the threads once the queue is empty."""
        with self._lock:
            self._closed = True
            self._to_run.notify_all()

    def _work(self) -> None:
        try:
            while True:
                with self._lock:
                    while not self._waiting:
                        if self._closed:
                            return
                        self._to_run.wait()
                    thing = self._waiting.popleft()
                    self._running += 1
                self._function(thing)
                with self._lock:
                    self._running -= 1
                    self._done.notify_all()
        except BaseException as error:
            logger.critical("A thread of the pool died, the worker stops", exc_info=error)
            logging.shutdown()
            os._exit(EX_SOFTWARE)
