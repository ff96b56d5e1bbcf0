"""Metrics for Prometheus, prefix `embedq_`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import redis
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api import worker_metrics
from api.job_watcher import JobWatcher
from worker.store.jobs import Depth, JobStore
from worker.store.worker_registry import WorkerRegistry, live_workers

#: Seconds: from an answer out of memory to the longest wait.
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


#: Methods with their own series; all other methods, which may be any word, share one.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """Metrics of this process; state in Redis is read for each request.

    If `PROMETHEUS_MULTIPROC_DIR` is set, they include all processes that share it.
    """

    def __init__(
        self,
        store: JobStore,
        liveness: WorkerRegistry,
        waiting: JobWatcher,
    ) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "embedq_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "embedq_http_request_seconds",
            "Time to answer, time that the caller asked to wait included.",
            ["route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        #: By method, route and status: looking them up by labels costs more than counting.
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._accepted = Counter(
            "embedq_jobs_accepted", "Jobs accepted over REST.", registry=self._registry
        )
        self._joined = Counter(
            "embedq_jobs_joined",
            "Submissions that an earlier, equal job answers.",
            registry=self._registry,
        )
        self._texts = Counter(
            "embedq_texts_accepted", "Texts of jobs accepted over REST.", registry=self._registry
        )
        self._refused = Counter(
            "embedq_jobs_refused",
            "Jobs refused although valid.",
            ["reason"],
            registry=self._registry,
        )
        self._state = _State(store, liveness, waiting)
        self._registry.register(self._state)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; `route` is a pattern, not a path."""
        known = method if method in _METHODS else "other"
        series = self._series.get((known, route, status))
        if series is None:
            series = self._requests.labels(known, route, str(status)), self._seconds.labels(route)
            self._series[known, route, status] = series
        count, histogram = series
        count.inc()
        histogram.observe(seconds)

    def accepted(self, texts: int) -> None:
        """Count a job."""
        self._accepted.inc()
        self._texts.inc(texts)

    def joined(self) -> None:
        """Count a submission that made no job of its own."""
        self._joined.inc()

    def refused(self, reason: str) -> None:
        """Count a job that was rejected, the queue being full or without a worker."""
        self._refused.labels(reason).inc()

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format."""
        registry = self._registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            registry.register(self._state)
        return generate_latest(registry)


class _State(Collector):
    """Gauges that are read for each scrape."""

    def __init__(
        self,
        store: JobStore,
        liveness: WorkerRegistry,
        waiting: JobWatcher,
    ) -> None:
        self._store = store
        self._liveness = liveness
        self._waiting = waiting

    def describe(self) -> Iterator[Metric]:
        """Return no metrics, so that registering does not query Redis."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        waiting = self._waiting.count()
        yield _gauge("waiting_clients", "Clients of this process that wait for a job.", waiting)
        try:
            heartbeats, now = self._liveness.heartbeats()
            queued = self._store.queued_tokens()
            depth = self._store.depth()
        except redis.RedisError:
            yield _gauge("redis_up", "Whether Redis answers.", 0)
            return
        yield _gauge("redis_up", "Whether Redis answers.", 1)
        yield _gauge("queued_tokens", "Tokens of jobs that have not ended, estimated.", queued)
        yield _lanes(depth)
        yield _gauge("taken_jobs", "Messages that workers hold, of all queues.", depth.taken)
        yield _gauge("dead_letters", "Messages that no worker can run.", depth.dead_letters)
        workers = live_workers(heartbeats, now)
        yield _gauge("workers", "Workers with a loaded model that make progress.", workers.count)
        rate = workers.tokens_per_second
        yield _gauge("tokens_per_second", "Rate of all workers while they are busy.", rate)
        yield from worker_metrics.families(heartbeats)


def _lanes(depth: Depth) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "embedq_queued_jobs", "Messages that no worker has taken yet.", labels=["lane"]
    )
    for lane, jobs in depth.lanes.items():
        family.add_metric([lane.name.lower()], jobs)
    return family


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"embedq_{name}", documentation, value=value)
