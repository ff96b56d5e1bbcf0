"""Measure contestants in turns; rates, ratios and percentiles of their figures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.report import progress

Contestant = Callable[[], object]


@dataclass(frozen=True)
class Race:
    """Seconds of each contestant, one for each round."""

    seconds: Mapping[str, Sequence[float]]
    baseline: str

    def rate(self, name: str, count: int) -> float:
        """Return the median rate of the rounds, items a second; each turn has `count` items."""
        return count / statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str = "") -> float:
        """Return the speed relative to `to` or the baseline: the median of the rounds' ratios."""
        pairs = zip(self.seconds[name], self.seconds[to or self.baseline], strict=True)
        return statistics.median(base / own for own, base in pairs)


def race(contestants: Mapping[str, Contestant], rounds: int) -> Race:
    """Let contestants take turns, `rounds` times; the first is the baseline.

    A contestant that measures itself returns its seconds as a float. Other calls are timed here.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name, contestant in contestants.items():
            progress(f"round {number} of {rounds}: {name}")
            began = time.perf_counter()
            own = contestant()
            took = own if isinstance(own, float) else time.perf_counter() - began
            seconds[name].append(took)
    progress("")
    return Race(seconds, next(iter(contestants)))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = max(-(-len(ordered) * percent // 100), 1)
    return ordered[int(rank) - 1]
