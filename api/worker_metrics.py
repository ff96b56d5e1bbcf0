"""What workers count of themselves, for Prometheus: labelled `worker`, by their node names."""

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

#: Label values are short by nature; a longer one is not what it seems to be.
_LONGEST_LABEL = 128
#: Facts of a model that `embedq_worker_info` shows.
_SHOWN_FACTS = ("device", "backend", "dtype", "path")

_FAMILIES: dict[str, Callable[..., Family]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def families(presences: Mapping[bytes, bytes]) -> Iterator[Family]:
    """Every figure of every worker, from their presences: JSON by node name. Pure.

    A worker that fell silent keeps its last figures until its record is removed; when it was heard
    of last is a figure, too. What a worker of another version says otherwise is left out.
    """
    read = (_Worker.read(node, raw) for node, raw in sorted(presences.items()))
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
    for figure in METRICS.values():
        yield _family(figure, found)


class _Worker:
    """One worker's own words, as far as they are understood."""

    def __init__(self, node: str, said: Mapping[str, Any]) -> None:
        self.node = node
        self.at = float(said["at"])
        self.models: list[Mapping[str, Any]] = [dict(model) for model in said["models"]]
        self.figures: MetricValues = dict(said.get("figures") or {})

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


def _family(figure: Metric, workers: Iterable[_Worker]) -> Family:
    labels = ["worker", *figure.labels]
    family = _FAMILIES[figure.kind](f"embedq_{figure.name}", _plain(figure.meaning), labels=labels)
    for worker in workers:
        value = worker.figures.get(figure.name)
        if value is None:
            continue
        try:
            for values, sample in _samples(figure, value):
                _add(family, [worker.node, *values], sample)
        except (TypeError, ValueError, KeyError) as error:
            reason = type(error).__name__
            logger.warning("%s of %r is not understood: %s", figure.name, worker.node, reason)
    return family


def _samples(figure: Metric, value: Any) -> Iterator[tuple[list[str], Any]]:
    """Label values and what is to be shown under them."""
    if not figure.labels:
        yield [], value
        return
    for *labels, number in value:
        if len(labels) != len(figure.labels):
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
