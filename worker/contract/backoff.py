"""Time between two tries of something that fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds to wait before each next try: `first`, then twice as many each time, up to `longest`.

    `iter(backoff)` begins anew, as after a success.
    """

    first: float
    longest: float

    def __iter__(self) -> Iterator[float]:
        seconds = self.first
        while True:
            yield seconds
            seconds = min(2 * seconds, self.longest)
