"""Metrics of workers for Prometheus, from their heartbeats; the label `worker` is the node name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import orjson
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Family

from worker.metrics.registry import METRICS, Metric, MetricValues

logger = logging.getLogger(__name__)

#: Characters of a label's value; longer ones are cut.
_LONGEST_LABEL = 128
#: Facts of a model that `embedq_worker_info` shows.
_SHOWN_FACTS = ("device", "backend", "dtype", "path")

_FAMILIES: dict[str, Callable[..., Family]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def families(heartbeats: Mapping[bytes, bytes]) -> Iterator[Family]:
    """Every metric of every worker, from their heartbeats: JSON by node name. Pure.

    A worker that fell silent keeps its last values until its record is removed; the time of its
    last progress is a metric, too. Unknown metrics and forms of other versions are left out.
    """
    read = (_Worker.read(node, raw) for node, raw in sorted(heartbeats.items()))
    found = [worker for worker in read if worker is not None]
    yield _info(found)
    progress = GaugeMetricFamily(
        "embedq_worker_progress_timestamp_seconds",
        "When a worker last made progress, in seconds since the epoch.",
        labels=["worker"],
    )
    for worker in found:
        progress.add_metric([worker.node], worker.at)
    yield progress
    for metric in METRICS.values():
        yield _family(metric, found)


class _Worker:
    """The known parts of one worker's heartbeat."""

    def __init__(self, node: str, heartbeat: Mapping[str, Any]) -> None:
        self.node = node
        self.at = float(heartbeat["at"])
        self.models: list[Mapping[str, Any]] = [dict(model) for model in heartbeat["models"]]
        self.metrics: MetricValues = dict(heartbeat.get("figures") or {})

    @classmethod
    def read(cls, node: bytes, raw: bytes) -> _Worker | None:
        name = node.decode(errors="replace")
        try:
            return cls(name, orjson.loads(raw))
        except (ValueError, TypeError, KeyError) as error:
            logger.warning("Worker %r is not understood: %s", name, type(error).__name__)
            return None


def _info(workers: Iterable[_Worker]) -> Family:
    info = GaugeMetricFamily(
        "embedq_worker_info",
        "1 for each model that a worker serves.",
        labels=["worker", "model", *_SHOWN_FACTS],
    )
    for worker in workers:
        for model in worker.models:
            facts = [str(model.get(name, ""))[:_LONGEST_LABEL] for name in ("name", *_SHOWN_FACTS)]
            info.add_metric([worker.node, *facts], 1)
    return info


def _family(metric: Metric, workers: Iterable[_Worker]) -> Family:
    labels = ["worker", *metric.labels]
    family = _FAMILIES[metric.kind](f"embedq_{metric.name}", _plain(metric.meaning), labels=labels)
    for worker in workers:
        value = worker.metrics.get(metric.name)
        if value is None:
            continue
        try:
            for values, sample in _samples(metric, value):
                _add(family, [worker.node, *values], sample)
        except (TypeError, ValueError, KeyError) as error:
            reason = type(error).__name__
            logger.warning("%s of %r is not understood: %s", metric.name, worker.node, reason)
    return family


def _samples(metric: Metric, value: Any) -> Iterator[tuple[list[str], Any]]:
    """Label values, each with its sample."""
    if not metric.labels:
        yield [], value
        return
    for *labels, number in value:
        if len(labels) != len(metric.labels):
            raise ValueError(labels)
        yield [str(label)[:_LONGEST_LABEL] for label in labels], number


def _add(family: Family, labels: list[str], value: Any) -> None:
    if isinstance(family, HistogramMetricFamily):
        bounds = [*map(str, map(float, value["bounds"])), "+Inf"]
        buckets = list(zip(bounds, accumulate(map(int, value["counts"])), strict=True))
        family.add_metric(labels, buckets, sum_value=float(value["sum"]))
    elif isinstance(family, CounterMetricFamily | GaugeMetricFamily):
        family.add_metric(labels, float(value))


def _plain(meaning: str) -> str:
    """Prometheus shows help texts as they are."""
    return meaning.replace("`", "'")
