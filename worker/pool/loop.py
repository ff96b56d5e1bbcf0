"""Calls from other threads onto the thread of Celery's event loop."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

logger = logging.getLogger(__name__)


class LoopCalls:
    """Calls that wait for the loop, in the order they were made.

    Any thread calls `call`; the loop's thread runs them. Once the loop has stopped, the pool runs
    the rest with `run`. The lock guards `_woken`.

    The loop is woken through a pipe, not by `Hub.call_soon`: a call that such a callback itself
    adds there, as Celery's acknowledgements do, would wait for the end of the next poll.
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._lock = threading.Lock()
        #: Whether there is a byte in the pipe, so that many calls wake the loop once.
        self._woken = False
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._readable, False)

    def attach(self, hub: Any) -> None:
        """Run on this hub from now on; a lost connection removes all readers of the hub."""
        hub.add_reader(self._readable, self._on_readable)

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Run `function(*args)` on the loop's thread soon."""
        self._calls.append((function, args))
        with self._lock:
            if self._woken:
                return
            self._woken = True
        os.write(self._writable, b"\0")

    def run(self) -> None:
        """Run the waiting calls. An exception is logged; the other calls still run."""
        while self._calls:
            function, args = self._calls.popleft()
            try:
                function(*args)
            except Exception:
                logger.exception("A callback of the worker's pool raised")

    def _on_readable(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._readable, 1)
        with self._lock:
            self._woken = False
        self.run()
