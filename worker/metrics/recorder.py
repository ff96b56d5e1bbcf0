"""Counters and histograms of a worker, by their names in `registry`."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from worker.metrics.registry import METRICS, Metric, MetricValues


class Recorder:
    """Values of some metrics since the start. Every method may be called from any thread."""

    def __init__(self) -> None:
        # Reentrant: a signal handler of Celery may count on the thread that it interrupts.
        self._lock = threading.RLock()
        self._counters: dict[str, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[str, _Histogram] = {}

    def count(self, name: str, amount: float = 1, *labels: str) -> None:
        """Add to a counter. Raises KeyError if `name` is not a metric."""
        with self._lock:
            if name not in self._counters:
                self._counters[METRICS[name].name] = defaultdict(int)
            self._counters[name][labels] += amount

    def observe(self, name: str, *values: float) -> None:
        """Add values to a histogram. Raises KeyError if `name` is not a metric."""
        with self._lock:
            if name not in self._histograms:
                self._histograms[name] = _Histogram(METRICS[name])
            self._histograms[name].observe(values)

    def values(self) -> MetricValues:
        """The metrics that were counted so far, as they travel, see `registry`."""
        with self._lock:
            counters = {
                name: _travelling(METRICS[name], counts) for name, counts in self._counters.items()
            }
            return counters | {name: one.value() for name, one in self._histograms.items()}


class _Histogram:
    """The number of values up to each bound, and their sum. Its recorder's lock guards it."""

    def __init__(self, metric: Metric) -> None:
        self._bounds = metric.bounds
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, values: tuple[float, ...]) -> None:
        for value in values:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def value(self) -> dict[str, Any]:
        return {"bounds": self._bounds, "counts": list(self._counts), "sum": self._sum}


def _travelling(metric: Metric, counts: Mapping[tuple[str, ...], float]) -> Any:
    return [[*labels, count] for labels, count in counts.items()] if metric.labels else counts[()]
