"""The hand-over between two stages: a queue with lanes and a capacity, and the thread that takes.

The engine's lock guards everything here. The caller of any method holds it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from worker.contract.lanes import Lane
from worker.engine.isolation import Isolation
from worker.watchdog import Busy

#: Seconds between two heartbeats of an idle thread.
_IDLE_SECONDS = 5.0
#: Times that a lane with waiting items is skipped in favour of a more urgent one.
_MOST_PASSES = 8
#: Bytes of text that use as much capacity as one token.
_BYTES_PER_TOKEN = 4
_UNLIMITED: Final = 2**62

Item = TypeVar("Item")
Found = TypeVar("Found")


def _nothing() -> None:
    pass


class Capacity:
    """Tokens and bytes in use, by lane, and a limit of each for every lane.

    A lane has its own limit, so that its jobs never wait for those of another lane to end. The
    user of a capacity changes `tokens` and `size`.
    """

    def __init__(self, *, tokens: int = _UNLIMITED, size: int = _UNLIMITED) -> None:
        """`size`: bytes."""
        self._limits = tokens, size
        self.tokens = dict.fromkeys(Lane, 0)
        self.size = dict.fromkeys(Lane, 0)

    def left(self, lane: Lane) -> int:
        """Remaining tokens of a lane, or remaining bytes as tokens if these are fewer."""
        tokens, size = self._limits
        return min(tokens - self.tokens[lane], (size - self.size[lane]) // _BYTES_PER_TOKEN)

    def clear(self) -> None:
        """Reset the use to zero."""
        self.tokens, self.size = dict.fromkeys(Lane, 0), dict.fromkeys(Lane, 0)


class Stage:
    """The point at which a thread waits for work, and rests while a job is isolated."""

    def __init__(
        self,
        name: str,
        changed: threading.Condition,
        isolation: Isolation,
        *,
        rests: bool = True,
        uses_redis: bool = False,
    ) -> None:
        """`changed`: notified if there may be work. `rests`: takes no work during isolation."""
        self.busy = Busy(f"embedq-{name}", uses_redis=uses_redis)
        self.changed = changed
        self._isolation = isolation
        self._rests = rests
        self._closed = False

    def close(self) -> None:
        """End `wait` once there is no work left."""
        self._closed = True
        self.changed.notify_all()

    def wait(self, find: Callable[[], Found | None]) -> Found | None:
        """Wait until `find` returns work; None once closed. The thread's previous work is done."""
        self.busy.leave()
        self._isolation.rested()
        while True:
            if not (self._rests and self._isolation.active) and (found := find()):
                self.busy.enter()
                return found
            if self._closed:
                return None
            self.changed.wait(_IDLE_SECONDS)
            self.busy.beat()


class StageQueue(Stage, Generic[Item]):
    """Items that wait for one stage, in order within each lane.

    One thread at a time runs the stage: its own, or one that has called `claim`.
    """

    def __init__(
        self,
        name: str,
        lock: threading.Lock,
        isolation: Isolation,
        *,
        capacity: Capacity | None = None,
        relieved: Callable[[], None] = _nothing,
        rests: bool = True,
        uses_redis: bool = False,
    ) -> None:
        """`relieved`: called if a queue that was full has capacity again."""
        changed = threading.Condition(lock)
        super().__init__(name, changed, isolation, rests=rests, uses_redis=uses_redis)
        self._capacity = capacity or Capacity()
        self._relieved = relieved
        self._lanes: dict[Lane, deque[Item]] = {lane: deque() for lane in Lane}
        #: Times that each lane was skipped since its last turn.
        self._passes = dict.fromkeys(Lane, 0)
        self._claimed = False

    def put(
        self,
        items: Iterable[Item],
        lane: Lane = Lane.NORMAL,
        *,
        tokens: int = 0,
        size: int = 0,
        wake: bool = True,
    ) -> None:
        """Add items of `tokens` and `size` bytes in all; never block. A closed queue drops them."""
        if self._closed:
            return
        self._lanes[lane].extend(items)
        self._capacity.tokens[lane] += tokens
        self._capacity.size[lane] += size
        if wake:
            self.wake()

    def close(self, *, drop: bool = True) -> None:
        """End `take` once the queue is empty. `drop`: empty it now."""
        if drop:
            for items in self._lanes.values():
                items.clear()
        super().close()

    def wake(self) -> None:
        """Wake the stage's thread."""
        self.changed.notify()

    @property
    def waiting(self) -> bool:
        """Whether there are items."""
        return any(self._lanes.values())

    @property
    def full(self) -> bool:
        """Whether an earlier stage should pause. Only the normal lane of a queue counts."""
        return self._capacity.left(Lane.NORMAL) <= 0

    def take(self, select: Callable[[deque[Item]], list[Found]]) -> list[Found]:
        """Wait for items and select some of one lane; return [] once the queue is closed and empty.

        `select` removes and returns the first items of a lane, or [] if it discards all of them.
        """
        return self.wait(lambda: self._next(select)) or []

    def claim(self, select: Callable[[deque[Item]], list[Found]]) -> list[Found]:
        """Select items for the calling thread if the stage is idle. Never waits.

        Unless it returns [], the stage's own thread pauses until the caller calls `release`.
        """
        found = [] if self.busy.since is not None else self._next(select)
        self._claimed = self._claimed or bool(found)
        return found

    def release(self) -> None:
        """The thread that called `claim` has finished."""
        self._claimed = False
        if self.waiting:
            self.wake()

    def _next(self, select: Callable[[deque[Item]], list[Found]]) -> list[Found]:
        if self._claimed:
            return []
        waiting = [lane for lane, items in self._lanes.items() if items]
        if len(waiting) > 1:
            # The most urgent lane, but first one that was skipped too often.
            waiting.sort(key=lambda lane: (self._passes[lane] < _MOST_PASSES, lane))
        for lane in waiting:
            if found := select(self._lanes[lane]):
                for other in waiting:
                    self._passes[other] += 1
                self._passes[lane] = 0
                self._empty()
                return found
        return []

    def _empty(self) -> None:
        """Free the capacity of all items once the queue is empty."""
        if self.waiting:
            return
        was_full = self.full
        self._capacity.clear()
        if was_full:
            self._relieved()


def everything(items: deque[Item]) -> list[Item]:
    """Select all items of a lane."""
    found = list(items)
    items.clear()
    return found
