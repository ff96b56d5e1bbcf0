"""Counts that cost next to nothing to keep: each written by one thread, read by any."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from worker.metrics.registry import METRICS


class Histogram:
    """How often a value was up to each bound of a figure.

    No lock: one thread observes. A reader on another may see a value counted and not yet summed.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, name: str) -> None:
        self._bounds = METRICS[name].bounds
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def figure(self) -> dict[str, Any]:
        """As it travels, see `metrics.registry`."""
        return {"bounds": self._bounds, "counts": list(self._counts), "sum": self._sum}


def tallied(counts: dict[tuple[str, ...], int]) -> list[list[str | int]]:
    """A figure with labels, as it travels; whoever counts may go on meanwhile."""
    # A copy is one step of the interpreter; walking along is many, and another thread adds labels.
    return [[*labels, count] for labels, count in dict.copy(counts).items()]
