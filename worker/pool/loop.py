"""Calls from other threads onto the thread of Celery's event loop."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class LoopCalls:
    """Calls that wait for the loop, in the order they were made.

    Any thread calls `call`; the loop's thread runs them, woken by the hub. Once the loop has
    stopped, whoever stopped it runs the rest with `run`. A deque is the only state shared, its
    operations are atomic.
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._hub: Any = None

    def attach(self, hub: Any) -> None:
        """Use this hub from now on; after a reconnect it has forgotten what it was to call."""
        self._hub = hub
        hub.call_soon(self.run)

    def detach(self) -> None:
        """The loop turns no more."""
        self._hub = None

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Run `function(*args)` on the loop's thread soon."""
        self._calls.append((function, args))
        hub = self._hub
        if hub is not None and len(self._calls) == 1:
            hub.call_soon(self.run)

    def run(self) -> None:
        """Run what waits. A call that raises is logged; the others run all the same."""
        while self._calls:
            # Removed after it has run, so that `call` wakes the hub once for many.
            function, args = self._calls[0]
            try:
                function(*args)
            except Exception:
                logger.exception("A callback of the worker's pool raised")
            finally:
                self._calls.popleft()
