"""All metrics of this worker, put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.contract.models import ModelInfo
from worker.engine import Engine
from worker.metrics.registry import METRICS, MetricValues
from worker.pool.job_metrics import JobMetrics
from worker.transport import leases


def worker_metrics(engine: Engine, jobs: JobMetrics) -> MetricValues:
    """Values of all metrics, by the names of `metrics.registry`. Any thread."""
    stats = leases.stats()
    held = stats.pop("live")
    out_of_memory = engine.memory_splits
    return {
        **{name: metric.zero() for name, metric in METRICS.items()},
        **jobs.values(),
        **engine.counts.values(),
        "texts": engine.totals.texts,
        "tokens": engine.totals.tokens,
        "padding_tokens": engine.padding,
        "texts_repeated": engine.totals.repeats,
        "device_busy_seconds": engine.totals.busy_seconds,
        "waiting_tokens": engine.waiting_tokens,
        "batch_budget_tokens": list(engine.budgets.items()),
        "batch_splits": [
            ("out_of_memory", out_of_memory),
            ("error", max(engine.splits - out_of_memory, 0)),
        ],
        "leases_held": held,
        "leases": list(stats.items()),
    }


def stats_of(engine: Engine, infos: Mapping[str, ModelInfo]) -> dict[str, Any]:
    """The engine and its models, as `celery inspect stats` shows them. Any thread."""
    return {
        "models": {
            name: f"{model.backend} {model.dtype} on {model.device}, path {model.path}"
            for name, model in infos.items()
        },
        "packed": {name: model.packed for name, model in infos.items()},
        "batch_tokens": engine.budgets,
        "batches": engine.totals.batches,
        "texts": engine.totals.texts,
        "tokens": engine.totals.tokens,
        "splits": engine.splits,
        "waiting_tokens": engine.waiting_tokens,
        "tokens_per_second": round(engine.tokens_per_second(), 1),
        "leases": leases.stats(),
    }
