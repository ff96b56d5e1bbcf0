"""Metrics of workers, from the count to the line that Prometheus reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from tests.api_stand import ApiStand, api_stand
from tests.engine.stand import Start, texts
from tests.fakes import POISON, FakeEncoder, RecordingSink, job_of, model_info
from tests.processes import ROOT
from worker.contract import keys
from worker.contract.lanes import Lane, list_of
from worker.engine import Engine
from worker.metrics.recorder import Recorder
from worker.metrics.registry import METRICS, Metric
from worker.pool.job_metrics import CANCELLED, SUCCEEDED, JobMetrics, ended_by
from worker.pool.metrics import worker_metrics

#: (name, labels except the worker's) → value.
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class FakeInFlightJob:
    def __init__(self, submitted_at: float | None) -> None:
        self.submitted_at = submitted_at


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as stand:
        yield stand


def samples_of(api: ApiStand, worker: str) -> Samples:
    """The samples of one worker in `/metrics`."""
    found: Samples = {}
    for family in text_string_to_metric_families(api.client.get("/metrics").text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("worker", None) == worker:
                found[sample.name, tuple(sorted(labels.items()))] = sample.value
    return found


def say(api: ApiStand, node: str, **presence: Any) -> None:
    """Write a worker's heartbeat with these values."""
    said = {"at": 1000.0, "models": [], "tokens_per_second": 1.0, **presence}
    api.redis.hset(keys.workers(api.settings.queue), node, orjson.dumps(said))


def test_a_histogram_counts_a_value_up_to_its_bound() -> None:
    recorder = Recorder()
    recorder.observe("batch_texts", 1, 2, 3, 4)
    recorder.observe("batch_texts", 5000)
    value = recorder.values()["batch_texts"]
    counts = dict(zip([*value["bounds"], "more"], value["counts"], strict=True))
    assert {bound: count for bound, count in counts.items() if count} == {
        1: 1,
        2: 1,
        4: 2,
        "more": 1,
    }
    assert value["sum"] == 5010


def test_counters_travel_with_their_labels() -> None:
    recorder = Recorder()
    recorder.count("jobs_ended", 2, "failed", "poisoned")
    recorder.count("texts_truncated", 3)
    recorder.count("texts_truncated", 0)
    assert recorder.values() == {"jobs_ended": [["failed", "poisoned", 2]], "texts_truncated": 3}


def test_only_metrics_of_the_registry_are_counted() -> None:
    for count in (Recorder().count, Recorder().observe):
        with pytest.raises(KeyError):
            count("unheard_of", 1)


def test_any_thread_may_count_and_read() -> None:
    recorder = Recorder()

    def count() -> None:
        for number in range(5_000):
            recorder.count("texts_failed", 1, str(number))
            recorder.observe("batch_texts", 1)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    sizes = []
    while any(thread.is_alive() for thread in threads):
        sizes.append(len(recorder.values().get("texts_failed", ())))
    for thread in threads:
        thread.join()
    assert sizes == sorted(sizes)
    assert recorder.values()["texts_failed"] == [[str(number), 3] for number in range(5_000)]
    assert recorder.values()["batch_texts"]["counts"][0] == 15_000


def test_an_entry_and_a_line_that_counts_make_a_metric(
    api: ApiStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Metric("toys", "counter", "Toys by `colour`.", ("colour",))
    monkeypatch.setitem(METRICS, "toys", toy)  # type: ignore[arg-type]
    recorder = Recorder()
    recorder.count("toys", 2, "red")
    say(api, "w", figures=recorder.values())
    assert samples_of(api, "w")["embedq_toys_total", (("colour", "red"),)] == 2


def test_every_metric_has_a_line_that_counts_it() -> None:
    files = [*(ROOT / "worker" / "engine").glob("*.py"), *(ROOT / "worker" / "pool").glob("*.py")]
    source = "".join(file.read_text() for file in files)
    assert [name for name in METRICS if f'"{name}"' not in source] == []


def test_a_worker_shows_every_metric_from_its_start(
    start: Start, encoder: FakeEncoder, sink: RecordingSink, api: ApiStand
) -> None:
    values = worker_metrics(start(encoder), JobMetrics())
    assert values.keys() == METRICS.keys()
    say(api, "w", figures=values)
    found = samples_of(api, "w")
    assert found["embedq_job_seconds_count", ()] == found["embedq_texts_truncated_total", ()] == 0


def test_the_engine_counts_what_went_through_it(
    start: Start, encoder: FakeEncoder, sink: RecordingSink, api: ApiStand
) -> None:
    engine: Engine = start(encoder)
    long = " ".join(["long"] * 100)
    engine.submit(job_of([*texts(6), f"a {POISON}"], "mixed"))
    engine.submit(job_of([long], "long"))
    engine.submit(job_of(["fine", long], "strict", truncate=False))
    for job_id in ("mixed", "long", "strict"):
        sink.outcome(job_id)
    engine.close(5)
    say(api, "w", figures=worker_metrics(engine, JobMetrics()))
    found = samples_of(api, "w")
    assert found["embedq_texts_total", ()] == engine.totals.texts == 9
    assert found["embedq_batch_texts_sum", ()] == engine.totals.texts
    assert found["embedq_batch_tokens_sum", ()] == found["embedq_tokens_total", ()]
    for name in ("forward_seconds", "batch_fill", "batch_texts"):
        assert found[f"embedq_{name}_count", ()] == engine.totals.batches
    assert found["embedq_batch_fill_bucket", (("le", "+Inf"),)] == engine.totals.batches
    assert found["embedq_texts_truncated_total", ()] == 1
    assert found["embedq_texts_failed_total", (("code", "encode_failed"),)] == 1
    assert found["embedq_texts_failed_total", (("code", "text_too_long"),)] == 1
    assert found["embedq_batch_splits_total", (("reason", "error"),)] == engine.splits >= 1
    assert found["embedq_batch_splits_total", (("reason", "out_of_memory"),)] == 0
    assert found["embedq_tokenise_seconds_count", ()] == len(encoder.tokenised) - 1
    assert found["embedq_batch_budget_tokens", (("model", "fake"),)] == 32
    assert found["embedq_waiting_tokens", ()] == 0


def test_memory_that_runs_out_is_counted_apart(start: Start, sink: RecordingSink) -> None:
    encoder = FakeEncoder(model_info(batch_tokens=64))
    encoder.memory = 16
    engine = start(encoder)
    engine.submit(job_of(texts(16), "large", info=encoder.info))
    sink.outcome("large")
    assert engine.memory_splits == engine.splits >= 1


def test_jobs_are_counted_by_how_they_end(api: ApiStand) -> None:
    counts = JobMetrics()
    timed: Any = [FakeInFlightJob(0.0), FakeInFlightJob(None), FakeInFlightJob(9e12)]
    counts.started(timed)
    counts.ended(SUCCEEDED, timed)
    counts.ended(ended_by(KeyError("whatever")), timed[1:2])
    counts.dropped(CANCELLED)
    say(api, "w", figures=counts.values())
    found = samples_of(api, "w")

    def ended(outcome: str, code: str = "") -> float:
        return found["embedq_jobs_ended_total", (("code", code), ("outcome", outcome))]

    assert ended("succeeded") == 3
    assert ended("failed", "other") == 1
    assert ended("cancelled") == 1
    # One job has no time of submission; one comes from a clock that is ahead.
    assert found["embedq_queue_seconds_count", ()] == 2
    assert found["embedq_job_seconds_bucket", (("le", "0.0025"),)] == 1


def test_a_worker_of_another_version_takes_nothing_from_the_others(api: ApiStand) -> None:
    say(api, "good", figures={"texts": 7})
    say(api, "newer", figures={"texts": {"of": "another form"}, "unheard_of": 1, "tokens": 3})
    say(api, "odd", figures={"leases": [["fetched", "and", 3]], "job_seconds": {"counts": [1]}})
    api.redis.hset(keys.workers(api.settings.queue), "broken", b"{")
    assert samples_of(api, "good")["embedq_texts_total", ()] == 7
    newer = samples_of(api, "newer")
    assert newer["embedq_tokens_total", ()] == 3
    assert not any("unheard_of" in name for name, _ in newer)
    assert ("embedq_worker_progress_timestamp_seconds", ()) in samples_of(api, "odd")
    assert samples_of(api, "broken") == {}


def test_metrics_show_what_lies_in_the_queue(api: ApiStand, redis_client: redis.Redis) -> None:
    api.submitted()
    api.submitted()
    redis_client.lpush(list_of(api.settings.queue, Lane.BULK.step), "message")
    redis_client.hset(keys.LEASED, "tag", "message")
    redis_client.lpush(keys.dead_letters(api.settings.queue), "letter")
    text = api.client.get("/metrics").text
    assert '\nembedq_queued_jobs{lane="normal"} 2.0\n' in text
    assert '\nembedq_queued_jobs{lane="bulk"} 1.0\n' in text
    assert '\nembedq_queued_jobs{lane="interactive"} 0.0\n' in text
    assert "\nembedq_taken_jobs 1.0\n" in text
    assert "\nembedq_dead_letters 1.0\n" in text
