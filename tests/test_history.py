"""The last minutes: the samples that workers write, and the steps made of them."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from api.history import STEP, STEPS, history, quantile
from worker.contract import keys
from worker.metrics.registry import WAIT_SECONDS
from worker.store import queue_history
from worker.store.queue_history import KEPT, HistoryWriter, Sample, Work

NOW = 1_000_000.0


def engine(**counts: float) -> Any:
    zero = {"batches": 0, "texts": 0, "tokens": 0, "capacity": 0, "busy_seconds": 0.0}
    return SimpleNamespace(**(zero | counts))


def test_a_pulse_tells_what_was_done_since_the_last(redis_client: redis.Redis) -> None:
    beat = HistoryWriter(redis_client, "q", "w1")
    earlier = engine(batches=2, tokens=50, capacity=200)
    beat.write(earlier, now=10.0, queued_tokens=0, job_counts=[1, 5, 0])
    assert queue_history.read(redis_client, "q")[1] == []
    later = engine(batches=5, texts=9, tokens=80, capacity=500, busy_seconds=0.5)
    beat.write(later, now=12.5, queued_tokens=7, job_counts=[2, 5, 4])
    now, (sample,) = queue_history.read(redis_client, "q")
    assert sample.node == "w1"
    assert sample.work == Work(2.5, 3, 9, 30, 300, 0.5, 7, (1, 0, 4))
    assert abs(sample.at - now) < 60
    assert abs(now - time.time()) < 60


def test_a_pulse_that_could_not_be_written_is_in_the_next(redis_client: redis.Redis) -> None:
    beat = HistoryWriter(redis_client, "q", "w1")
    beat.write(engine(), now=0.0, queued_tokens=0)
    redis_client.set(keys.pulse("q"), "in the way")
    with pytest.raises(redis.ResponseError):
        beat.write(engine(tokens=10), now=2.0, queued_tokens=0)
    redis_client.delete(keys.pulse("q"))
    beat.write(engine(tokens=15), now=4.0, queued_tokens=0)
    _, (sample,) = queue_history.read(redis_client, "q")
    assert (sample.work.seconds, sample.work.tokens) == (4.0, 15)


def test_what_is_older_than_some_minutes_is_not_kept(redis_client: redis.Redis) -> None:
    key = keys.pulse("q")
    for number in range(500):
        redis_client.xadd(key, {"node": "old"}, id=f"{number + 1}-0")
    beat = HistoryWriter(redis_client, "q", "w1")
    for second in range(3):
        beat.write(engine(), now=float(second), queued_tokens=0)
    assert redis_client.xlen(key) < 250
    assert len(queue_history.read(redis_client, "q")[1]) == 2
    assert 0 < redis_client.ttl(key) <= 2 * KEPT


def sample(at: float, node: str = "w1", **work: Any) -> Sample:
    idle: Any = {
        "seconds": 2.0,
        "batches": 0,
        "texts": 0,
        "tokens": 0,
        "capacity": 0,
        "busy_seconds": 0.0,
        "queued_tokens": 0,
    }
    return Sample(at, node, Work(**(idle | work)))


def test_history_has_one_value_a_step_and_none_where_nobody_wrote() -> None:
    found = history([sample(NOW - 2 * STEP, tokens=10, texts=4, queued_tokens=5)], NOW)
    assert found.until == NOW + STEP
    for values in (found.queued_tokens, found.tokens_per_second, found.fill):
        assert len(values) == STEPS
    assert found.queued_tokens[-4:] == [None, 5, None, None]
    assert found.tokens_per_second[-4:] == [None, 5.0, None, None]
    assert found.texts_per_second[-3] == 2.0


def test_history_adds_up_workers_but_not_their_samples() -> None:
    both = [
        sample(NOW, "w1", tokens=10),
        sample(NOW + 2, "w1", tokens=30),
        sample(NOW, "w2", tokens=8),
    ]
    assert history(both, NOW + 2).tokens_per_second[-1] == 40 / 4 + 8 / 2


def test_history_tells_how_full_batches_were_and_how_long_they_took() -> None:
    busy = sample(NOW, batches=4, tokens=300, capacity=400, busy_seconds=0.2)
    found = history([busy, sample(NOW - STEP)], NOW)
    assert found.fill[-2:] == [None, 0.75]
    assert found.forward_seconds[-2:] == [None, 0.05]
    longer = sample(NOW, batches=1, tokens=900, capacity=400)
    assert history([longer], NOW).fill[-1] == 1.0


def counts(**jobs: int) -> tuple[int, ...]:
    """The number of jobs longer than one bound and up to the next, by the index of the upper."""
    found = [0] * (len(WAIT_SECONDS) + 1)
    for name, number in jobs.items():
        found[int(name.removeprefix("up_to_"))] = number
    return tuple(found)


def test_a_quantile_lies_between_the_bounds_of_its_jobs() -> None:
    assert quantile(counts(), 0.5) is None
    assert quantile(counts(up_to_0=4), 0.5) == WAIT_SECONDS[0] / 2
    middle = (WAIT_SECONDS[3] + WAIT_SECONDS[4]) / 2
    assert quantile(counts(up_to_0=1, up_to_4=4, up_to_9=1), 0.5) == pytest.approx(middle)
    assert quantile(counts(up_to_0=19, up_to_5=1), 0.95) == WAIT_SECONDS[0]
    slowest = f"up_to_{len(WAIT_SECONDS)}"
    assert quantile(counts(**{slowest: 3}), 0.5) == WAIT_SECONDS[-1]


def test_history_tells_how_long_jobs_took_on_all_workers() -> None:
    both = [
        sample(NOW, "w1", job_counts=counts(up_to_2=3)),
        sample(NOW, "w2", job_counts=counts(up_to_6=1)),
        sample(NOW, "another version", job_counts=(9, 9)),
    ]
    found = history(both, NOW)
    assert found.job_seconds_p50[-1] == quantile(counts(up_to_2=3, up_to_6=1), 0.5)
    assert found.job_seconds_p95[-1] == quantile(counts(up_to_2=3, up_to_6=1), 0.95)
    assert found.job_seconds_p50[-2] is None
