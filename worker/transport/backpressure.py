"""The remaining capacity of this process, and a callback after deliveries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worker.contract.lanes import Lane

#: Bytes of a token of text in a message, about.
BYTES_PER_TOKEN = 4


@dataclass(slots=True)
class FetchCapacity:
    """Remaining intake of the pool, in tokens of each lane.

    Read before each fetch. A thread that increases it wakes the event loop: `hub.call_soon(…)`.
    """

    #: Tokens of a lane that may still be fetched; it must not block. ≤ 0 pauses the lane.
    #: None leaves the decision to kombu's prefetch count.
    tokens: Callable[[Lane], int] | None = None
    #: Messages of one fetch. More only makes the loop's pauses longer.
    max_messages: int = 1024
    #: Bytes of one fetch, plus one message.
    max_bytes: int = 16 * 1024 * 1024
    #: Whether more messages follow at once: a receiver may keep one until `delivered` is called,
    #: some milliseconds later. Both belong to the event loop's thread.
    more_follow: bool = False
    delivered: Callable[[], None] | None = None

    def bounds(self, lane: Lane) -> tuple[int, int]:
        """Messages and bytes of text to fetch of a lane now, by `tokens`."""
        tokens = self.tokens(lane) if self.tokens is not None else 0
        if tokens <= 0:
            return 0, 0
        return self.max_messages, min(tokens * BYTES_PER_TOKEN, self.max_bytes)


#: The capacity of this process.
capacity = FetchCapacity()
