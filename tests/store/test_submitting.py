"""Messages on a broker of their own, and lost messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.store.stand import QUEUE, ledger, new_job, success
from worker.contract import keys, messages
from worker.contract.jobs import DEFAULT_OPTIONS, Status
from worker.contract.lanes import lists_of
from worker.store import lost_jobs, outbox
from worker.store.jobs import Deduplication, JobStore
from worker.store.openai_batch import OpenAIBatch
from worker.store.openai_batches import OpenAIBatchStore
from worker.store.outbox import MessageOutbox

SHARED = Deduplication(fingerprint="body", shared=True)
KEYED = Deduplication("key", "body")


@pytest.fixture
def broker(redis_url: str) -> Iterator[redis.Redis]:
    """A server for messages alone: another database."""
    with redis.Redis.from_url(redis_url.removesuffix("/0") + "/1") as client:
        yield client


@pytest.fixture
def apart(redis_client: redis.Redis, broker: redis.Redis) -> JobStore:
    """A store with messages on a server of their own."""
    return JobStore(redis_client, QUEUE, result_ttl=60, broker=broker)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sweeps check jobs and messages of any age."""
    monkeypatch.setattr(lost_jobs, "_SEEN_WITHIN", 0)
    monkeypatch.setattr(outbox, "_RESEND_AFTER", -1.0)


def status_of(jobs: JobStore, job_id: str) -> Status:
    record = jobs.read(job_id)
    assert record is not None
    return record.status


def died_before_sending(jobs: JobStore, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    """Submit a job in a process that dies once its record is written."""

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(MessageOutbox, "send", die)
        with pytest.raises(SystemExit):
            jobs.submit(new_job("one", message=b"the message"), **options)  # type: ignore[arg-type]


def test_the_message_is_with_the_broker_and_the_record_with_the_results(
    apart: JobStore, redis_client: redis.Redis, broker: redis.Redis
) -> None:
    assert apart.submit(new_job("one", message=b"the message")).verdict == "accepted"
    assert broker.lrange(QUEUE, 0, -1) == [b"the message"]
    assert not broker.exists(keys.job("one"))
    assert status_of(apart, "one") is Status.QUEUED
    assert not redis_client.exists(QUEUE, keys.outbox(QUEUE))
    assert apart.depth().queued == 1


@pytest.mark.parametrize("once", [SHARED, KEYED])
def test_a_replay_sends_the_message_that_a_dead_process_did_not(
    apart: JobStore, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch, once: Deduplication
) -> None:
    died_before_sending(apart, monkeypatch, deduplicate=once)
    assert broker.llen(QUEUE) == 0
    for _ in range(2):
        replayed = apart.submit(new_job("two", message=b"another message"), deduplicate=once)
        assert (replayed.verdict, replayed.job_id) == ("replayed", "one")
        assert broker.lrange(QUEUE, 0, -1) == [b"the message"]


def test_a_worker_sends_the_message_that_a_dead_process_did_not(
    apart: JobStore,
    broker: redis.Redis,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    at_once: None,
) -> None:
    died_before_sending(apart, monkeypatch)
    apart.sweep()
    assert broker.lrange(QUEUE, 0, -1) == [b"the message"]
    assert status_of(apart, "one") is Status.QUEUED
    assert not redis_client.exists(keys.outbox(QUEUE))


def test_a_worker_sends_for_the_coordinator_of_a_batch_that_a_dead_process_did_not(
    apart: JobStore, broker: redis.Redis, redis_client: redis.Redis, at_once: None
) -> None:
    class Dying:
        def pipeline(self) -> None:
            raise SystemExit

    broken: Any = Dying()
    batch = OpenAIBatch("batch_1", input_file_id="file-1")
    with pytest.raises(SystemExit):
        OpenAIBatchStore(redis_client, broken, QUEUE).create(batch)
    apart.sweep()
    apart.sweep()
    assert broker.llen(keys.batch_queue(QUEUE)) == 1
    assert not redis_client.exists(keys.outbox(QUEUE))


def test_a_message_that_is_on_its_way_is_left_to_its_process(
    apart: JobStore, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    died_before_sending(apart, monkeypatch)
    apart.sweep()
    assert broker.llen(QUEUE) == 0


def test_a_job_whose_message_the_broker_refuses_was_never_there(
    apart: JobStore, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise redis.ConnectionError("away")

    monkeypatch.setattr(MessageOutbox, "send", away)
    with pytest.raises(redis.ConnectionError):
        apart.submit(new_job("one", owner="me"), deduplicate=KEYED)
    assert apart.read("one") is None
    assert apart.page("me", limit=10) == ([], None)
    assert not any(ledger(redis_client).values())
    assert not redis_client.exists(keys.outbox(QUEUE), keys.open_jobs(QUEUE))


@pytest.mark.parametrize("separate", [False, True])
def test_purged_jobs_become_cancelled(
    redis_client: redis.Redis, broker: redis.Redis, separate: bool, at_once: None
) -> None:
    server = broker if separate else redis_client
    jobs = JobStore(redis_client, QUEUE, result_ttl=60, broker=broker if separate else None)
    for number in range(5):
        jobs.submit(new_job(f"{number}"))
    jobs.complete([success("3")])
    jobs.sweep()
    assert status_of(jobs, "0") is Status.QUEUED, "its message waits"
    server.delete(*lists_of(QUEUE))
    server.hset(keys.LEASED, "tag", "message")
    jobs.sweep()
    assert status_of(jobs, "0") is Status.QUEUED, "a worker may have its message"
    server.delete(keys.LEASED)
    jobs.sweep()
    found = [status_of(jobs, f"{number}") for number in range(5)]
    assert found == [Status.SUCCEEDED if n == 3 else Status.CANCELLED for n in range(5)]
    held = ledger(redis_client)
    assert held["tokens"] == held["expected"] == 0
    assert not redis_client.exists(keys.open_jobs(QUEUE))


@pytest.mark.parametrize("separate", [False, True])
def test_purged_jobs_become_cancelled_while_other_messages_are_leased(
    redis_client: redis.Redis,
    broker: redis.Redis,
    separate: bool,
    at_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lost_jobs, "_LEASED_WITHIN", 0)
    server = broker if separate else redis_client
    jobs = JobStore(redis_client, QUEUE, result_ttl=60, broker=broker if separate else None)
    texts = ['a text "correlation_id": "purged"']
    for job_id in ("leased", "purged"):
        message = messages.envelope(job_id, texts, DEFAULT_OPTIONS, QUEUE)
        jobs.submit(new_job(job_id, message=message))
        if job_id == "leased":
            server.hset(keys.LEASED, "tag", b"[" + message + b',"","embedq"]')
    for number in range(500):
        other = messages.of_task("theirs", f"other {number}", [], "theirs")
        server.hset(keys.LEASED, f"other {number}", b"[" + other + b',"","theirs"]')
    server.delete(*lists_of(QUEUE))
    jobs.sweep()
    assert status_of(jobs, "purged") is Status.QUEUED, "it may have been on its way"
    jobs.sweep()
    assert status_of(jobs, "purged") is Status.CANCELLED
    assert status_of(jobs, "leased") is Status.QUEUED
    jobs.sweep()
    assert status_of(jobs, "leased") is Status.QUEUED


def test_counters_stay_right_while_jobs_wait_on_a_broker_of_its_own(
    apart: JobStore, redis_client: redis.Redis, at_once: None
) -> None:
    for number in range(3):
        apart.submit(new_job(f"{number}", tokens=10))
    apart.sweep()
    assert apart.queued_tokens() == 30
    apart.complete([success(f"{number}") for number in range(3)])
    apart.sweep()
    assert redis_client.hget(keys.ledger(QUEUE), "tokens") in (None, b"0")


@pytest.mark.parametrize("once", [SHARED, KEYED])
def test_nobody_joins_a_job_whose_message_was_purged(
    jobs: JobStore, redis_client: redis.Redis, once: Deduplication
) -> None:
    jobs.submit(new_job("one"), deduplicate=once)
    redis_client.delete(QUEUE)
    # As if it had been accepted a while ago.
    redis_client.zincrby(keys.open_jobs(QUEUE), -60, "one")
    again = jobs.submit(new_job("two"), deduplicate=once)
    assert status_of(jobs, "one") is Status.CANCELLED
    assert again.job_id == ("two" if once.shared else "one")


def test_a_job_that_its_caller_sends_is_not_missed_meanwhile(
    jobs: JobStore, redis_client: redis.Redis, at_once: None
) -> None:
    jobs.submit(new_job("one", message=None))
    jobs.sweep()
    assert status_of(jobs, "one") is Status.QUEUED
    redis_client.zadd(keys.open_jobs(QUEUE), {"one": 1.0})
    jobs.sweep()
    assert status_of(jobs, "one") is Status.CANCELLED


def test_a_sweep_forgets_what_a_worker_of_an_older_version_completed(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    jobs.submit(new_job("one", owner="me"))
    job = keys.job("one")
    # The state that its script leaves.
    redis_client.hset(job, mapping={"status": "succeeded", "finished": "1.0", "tokens": ""})
    redis_client.hincrby(keys.ledger(QUEUE), "tokens", -100)
    redis_client.hincrby(keys.ledger(QUEUE), "expected", -5000)
    jobs.sweep()
    assert not redis_client.exists(keys.open_jobs(QUEUE))
    assert redis_client.hget(keys.ledger(QUEUE), "size") in (None, b"0")
    assert not redis_client.hexists(keys.ledger(QUEUE), "size:me")


def test_an_empty_queue_resets_what_older_versions_left_on_the_counters(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    left = {"tokens": 70, "expected": -3, "share:0:me": 70, "kept": 5}
    redis_client.hset(keys.ledger(QUEUE), mapping=left)
    jobs.sweep()
    assert redis_client.hgetall(keys.ledger(QUEUE)) == {b"kept": b"5"}
