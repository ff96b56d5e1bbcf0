"""How much this process wants to have waiting; decides what is fetched, and says what came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worker.contract.lanes import Lane

#: Tokens of text are about this many bytes in a message.
BYTES_PER_TOKEN = 4


@dataclass(slots=True)
class Backpressure:
    """Room for more work, in tokens.

    The event loop asks before each fetch. Whoever makes room wakes it: `hub.call_soon(…)`.
    """

    #: How many more tokens may wait in a lane, from the event loop's thread and without blocking;
    #: ≤ 0 fetches nothing of it. None leaves it to kombu's prefetch count.
    room: Callable[[Lane], int] | None = None
    #: Messages of one fetch. More only makes the loop's pauses longer.
    max_messages: int = 1024
    #: Bytes of one fetch, plus one message.
    max_bytes: int = 16 * 1024 * 1024
    #: Whether more messages follow at once: whoever is handed one may let it wait for those until
    #: `handed_over` is called, some milliseconds later. Both are the event loop's.
    more_follow: bool = False
    handed_over: Callable[[], None] | None = None

    def bounds(self, lane: Lane) -> tuple[int, int]:
        """Messages and bytes of text to fetch of a lane now, where it is ours to say."""
        tokens = self.room(lane) if self.room is not None else 0
        if tokens <= 0:
            return 0, 0
        return self.max_messages, min(tokens * BYTES_PER_TOKEN, self.max_bytes)


#: What this process wants to fetch.
admission = Backpressure()
