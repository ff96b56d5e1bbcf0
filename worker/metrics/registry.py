"""The metrics of a worker: name, type, labels and meaning of each, and their heartbeat format.

A metric is one entry here and the line that counts it, with its name: `Recorder.count("texts", …)`.

A worker puts them into its heartbeat, under `figures`, by the names below. A counter or gauge is a
number, or `[[label, …, number], …]` if it has labels; a histogram is `{"bounds": [upper bound,
…], "counts": [values up to each bound and above the last, …], "sum": their sum}`. The API renders
them for Prometheus, labelled with the worker's node name. An API that is older than a worker leaves
out unknown metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["counter", "gauge", "histogram"]

#: Seconds: from one short text on a GPU to a call that hangs.
WORK_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
#: Seconds: from an idle worker to a deep queue.
WAIT_SECONDS = (
    *(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    *(2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0),
)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)
#: Shares of a token budget; one text longer than the budget fills it more than once.
FILL = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; `labels` come after the worker's name, `bounds` are those of a histogram."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    def zero(self) -> Any:
        """The transferred value of an unused metric."""
        if self.kind == "histogram":
            return {"bounds": self.bounds, "counts": [0] * (len(self.bounds) + 1), "sum": 0.0}
        return [] if self.labels else 0


_ALL = (
    Metric(
        "jobs_ended",
        "counter",
        "Jobs that ended here, by `outcome`: `succeeded`, `failed` (with the error's `code`), "
        "`cancelled`, `expired`.",
        ("outcome", "code"),
    ),
    Metric(
        "job_seconds",
        "histogram",
        "Seconds from a job's submission to its stored outcome, by the clocks of both ends.",
        bounds=WAIT_SECONDS,
    ),
    Metric(
        "queue_seconds",
        "histogram",
        "Seconds from a job's submission to its first batch, by the clocks of both ends.",
        bounds=WAIT_SECONDS,
    ),
    Metric(
        "tokenise_seconds",
        "histogram",
        "Seconds of one call of the tokenizer, over texts of many jobs.",
        bounds=WORK_SECONDS,
    ),
    Metric(
        "forward_seconds",
        "histogram",
        "Seconds of one batch on the device, splits included.",
        bounds=WORK_SECONDS,
    ),
    Metric(
        "write_seconds",
        "histogram",
        "Seconds of one script that stores the outcomes of many jobs.",
        bounds=WORK_SECONDS,
    ),
    Metric("batch_texts", "histogram", "Texts of one batch.", bounds=TEXTS),
    Metric("batch_tokens", "histogram", "Tokens of one batch, without padding.", bounds=TOKENS),
    Metric(
        "batch_fill",
        "histogram",
        "Tokens of one batch as a share of the token budget.",
        bounds=FILL,
    ),
    Metric(
        "batch_budget_tokens",
        "gauge",
        "Token budget of one batch as it is now, by `model`; it shrinks when memory runs out.",
        ("model",),
    ),
    Metric(
        "batch_splits",
        "counter",
        "Batches that were halved, by `reason`: `out_of_memory`, or `error` where one raised.",
        ("reason",),
    ),
    Metric("texts_repeated", "counter", "Texts that took the vector of another in their batch."),
    Metric(
        "cache_texts",
        "counter",
        "Texts at the cache, by `event`: `hit`, `miss`, `unasked` (Redis was slow or away, and for "
        "a while after), `kept`, `dropped` (not kept: too many at once, or Redis was away).",
        ("event",),
    ),
    Metric(
        "cache_seconds",
        "histogram",
        "Seconds of one look-up in the cache, over texts of many jobs.",
        bounds=WORK_SECONDS,
    ),
    Metric("padding_tokens", "counter", "Positions of batches that held padding, not tokens."),
    Metric("texts", "counter", "Texts that were in a batch."),
    Metric("tokens", "counter", "Tokens that were in a batch, without padding."),
    Metric("texts_truncated", "counter", "Texts cut at the model's limit."),
    Metric(
        "texts_failed",
        "counter",
        "Texts without a vector, by `code`; their neighbours have theirs.",
        ("code",),
    ),
    Metric("device_busy_seconds", "counter", "Seconds that the device spent on batches."),
    Metric("waiting_tokens", "gauge", "Tokens fetched and in no batch yet."),
    Metric("leases_held", "gauge", "Messages that the worker holds now."),
    Metric(
        "leases",
        "counter",
        "What became of leases, by `event`: `fetched`, then `settled` or `acked` (ended), "
        "`released` or `requeued` (given back), `deferred` (given back later), `buried` (dead "
        "letter), `lost` (ran out); "
        "`restored`: those of dead workers that this one put back.",
        ("event",),
    ),
)

#: Every metric by its name, without the prefix `embedq_`.
METRICS: Final[Mapping[str, Metric]] = {metric.name: metric for metric in _ALL}

#: The values of metrics by name, in the heartbeat's format.
MetricValues = Mapping[str, Any]
