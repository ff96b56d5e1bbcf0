"""Counters and histograms of a worker, by their names in `registry`."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from typing import Any

from worker.metrics.registry import METRICS, MetricValues


class Recorder:
    """Values of metrics since the start. Every method may be called from any thread.

    `count` and `observe` raise KeyError for a name that is no counter or histogram.
    """

    def __init__(self) -> None:
        # Reentrant: a signal handler of Celery may count on the thread that it interrupts.
        self._lock = threading.RLock()
        self._counters: dict[str, dict[tuple[str, ...], float]] = {
            name: defaultdict(int) for name, one in METRICS.items() if one.kind == "counter"
        }
        self._histograms: dict[str, dict[str, Any]] = {
            name: one.zero() for name, one in METRICS.items() if one.kind == "histogram"
        }

    def count(self, name: str, amount: float = 1, *labels: str) -> None:
        """Add to a counter, of these values of its labels."""
        with self._lock:
            self._counters[name][labels] += amount

    def observe(self, name: str, *values: float) -> None:
        """Add values to a histogram."""
        with self._lock:
            histogram = self._histograms[name]
            for value in values:
                histogram["counts"][bisect_left(histogram["bounds"], value)] += 1
                histogram["sum"] += value

    def values(self) -> MetricValues:
        """The metrics that were counted so far, in the heartbeat's format; see `registry`."""
        with self._lock:
            found: dict[str, Any] = {
                name: [[*labels, count] for labels, count in counts.items()]
                if METRICS[name].labels
                else counts[()]
                for name, counts in self._counters.items()
                if counts
            }
            return found | {
                name: histogram | {"counts": list(histogram["counts"])}
                for name, histogram in self._histograms.items()
                if any(histogram["counts"])
            }
