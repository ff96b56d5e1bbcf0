"""The queue of the writer: completed and progressed jobs, batch by batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from worker.engine.job import Job

#: Batches that may wait to be written before the device waits, too.
MOST_BATCHES = 8


class News(NamedTuple):
    """The jobs of a batch: those that ended with it, and those that go on.

    Some may be cancelled, now or before the writer gets there; it passes them over.
    """

    ended: Sequence[Job]
    going: Sequence[Job]


class Outbox:
    """The hand-over to the writer. Its lock is the engine's; the caller of any method holds it.

    `producers` threads put news in; `take` ends once each of them has called `leave`.
    """

    def __init__(self, lock: threading.Lock, producers: int, emptied: Callable[[], None]) -> None:
        """`emptied` is called when the writer takes news and when it has written them."""
        self._filled = threading.Condition(lock)
        self._emptied = threading.Condition(lock)
        self._call_emptied = emptied
        self._news: deque[News] = deque()
        self._producers = producers
        #: Whether the writer is writing the news that it took last.
        self._telling = False

    @property
    def full(self) -> bool:
        """Whether the device should wait for the writer."""
        return len(self._news) >= MOST_BATCHES

    @property
    def told(self) -> bool:
        """Whether the writer has written all news."""
        return not (self._news or self._telling)

    def put(self, ended: Sequence[Job], going: Sequence[Job] = ()) -> None:
        """Tell the writer. Never waits, so that the tokenizer goes on while the device waits."""
        if ended or going:
            self._news.append(News(ended, going))
            self._filled.notify()

    def wait_until_emptied(self, seconds: float) -> None:
        """Wait until the writer takes or has written the news, at most so many seconds."""
        self._emptied.wait(seconds)

    def wake(self) -> None:
        """Wake the threads that wait for the writer."""
        self._emptied.notify_all()
        self._call_emptied()

    def leave(self) -> None:
        """A producer ends."""
        self._producers -= 1
        self._filled.notify()

    def take(self) -> deque[News]:
        """Wait for news and take all there are; empty once every producer has left.

        The caller has written the news that it took before.
        """
        self._telling = False
        self.wake()
        while not self._news and self._producers:
            self._filled.wait()
        news, self._news = self._news, deque()
        self._telling = bool(news)
        self.wake()
        return news
