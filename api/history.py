"""The last minutes of a queue in equal steps, from the samples of its workers. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate

from pydantic import BaseModel, Field

from worker.metrics.registry import WAIT_SECONDS
from worker.store.queue_history import KEPT, Sample, Work

#: Seconds of one step: long enough for a few samples of each worker.
STEP = 5
STEPS = KEPT // STEP


class History(BaseModel):
    """One value a step, the oldest first; null if no worker wrote, or none encoded."""

    step: int = Field(description="Seconds of one step.")
    until: int = Field(
        description="End of the last step, which may lie ahead; seconds since the epoch."
    )
    queued_tokens: list[int | None]
    tokens_per_second: list[float | None]
    texts_per_second: list[float | None]
    fill: list[float | None] = Field(description="Tokens of the batches, of their budgets; 0 to 1.")
    forward_seconds: list[float | None] = Field(description="Mean of one forward pass.")
    job_seconds_p50: list[float | None] = Field(
        description="Median of the time from a job's submission to its outcome."
    )
    job_seconds_p95: list[float | None] = Field(description="What 95 % of the jobs took at most.")


def history(samples: Iterable[Sample], now: float) -> History:
    """The steps up to `now`, in seconds since the epoch by the clock of the samples."""
    last = int(now // STEP)
    by_step: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_step[int(sample.at // STEP)].append(sample)
    steps = [by_step.get(number, []) for number in range(last - STEPS + 1, last + 1)]
    times = [_job_counts([sample.work for sample in one]) for one in steps]
    return History(
        step=STEP,
        until=(last + 1) * STEP,
        queued_tokens=[one[-1].work.queued_tokens if one else None for one in steps],
        tokens_per_second=[_rate(one, "tokens") for one in steps],
        texts_per_second=[_rate(one, "texts") for one in steps],
        fill=[_fill([sample.work for sample in one]) for one in steps],
        forward_seconds=[_forward([sample.work for sample in one]) for one in steps],
        job_seconds_p50=[quantile(one, 0.5) for one in times],
        job_seconds_p95=[quantile(one, 0.95) for one in times],
    )


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The longest time of a share of the jobs, in seconds; None if no job ended.

    `counts` by `WAIT_SECONDS`. Times between two bounds are assumed to be evenly distributed, as in
    Prometheus's `histogram_quantile`; longer times count as the last bound.
    """
    wanted = share * sum(counts)
    if not wanted:
        return None
    index = next(at for at, total in enumerate(accumulate(counts)) if total >= wanted)
    if index == len(WAIT_SECONDS):
        return WAIT_SECONDS[-1]
    lower = WAIT_SECONDS[index - 1] if index else 0.0
    part = (wanted - sum(counts[:index])) / counts[index]
    return round(lower + part * (WAIT_SECONDS[index] - lower), 5)


def _rate(samples: Sequence[Sample], count: str) -> float | None:
    """The sum of the workers' rates, each over the seconds of its own samples."""
    if not samples:
        return None
    seconds: dict[str, float] = defaultdict(float)
    done: dict[str, int] = defaultdict(int)
    for sample in samples:
        seconds[sample.node] += sample.work.seconds
        done[sample.node] += getattr(sample.work, count)
    return round(sum(done[node] / seconds[node] for node in done if seconds[node] > 0), 2)


def _fill(works: Sequence[Work]) -> float | None:
    capacity = sum(work.capacity for work in works)
    # A text longer than the budget is a batch of its own.
    return round(min(sum(work.tokens for work in works) / capacity, 1.0), 4) if capacity else None


def _forward(works: Sequence[Work]) -> float | None:
    batches = sum(work.batches for work in works)
    return round(sum(work.busy_seconds for work in works) / batches, 5) if batches else None


def _job_counts(works: Sequence[Work]) -> list[int]:
    """Sum the workers' counts, except those of a version with other bounds."""
    size = len(WAIT_SECONDS) + 1
    known = [work.job_counts for work in works if len(work.job_counts) == size]
    return [sum(column) for column in zip(*known, strict=True)]
