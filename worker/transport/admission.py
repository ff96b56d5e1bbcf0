"""How much this process wants to have waiting; decides what is fetched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: Tokens of text are about this many bytes in a message.
BYTES_PER_TOKEN = 4


@dataclass(slots=True)
class Admission:
    """Room for more work, in tokens.

    The event loop asks before each fetch. Whoever makes room wakes it: `hub.call_soon(…)`.
    """

    #: How many more tokens may wait, from the event loop's thread and without blocking; ≤ 0
    #: fetches nothing. None leaves it to kombu's prefetch count.
    room: Callable[[], int] | None = None
    #: Messages of one fetch. More only makes the loop's pauses longer.
    max_messages: int = 1024
    #: Bytes of one fetch, plus one message.
    max_bytes: int = 16 * 1024 * 1024

    def bounds(self) -> tuple[int, int] | None:
        """Messages and bytes of text to fetch now; None where it is kombu's to say."""
        if self.room is None:
            return None
        tokens = self.room()
        if tokens <= 0:
            return 0, 0
        return self.max_messages, min(tokens * BYTES_PER_TOKEN, self.max_bytes)


#: What this process wants to fetch.
admission = Admission()
