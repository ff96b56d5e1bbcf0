"""The ledger of a queue does not keep what vanished without an end."""

from __future__ import annotations

import redis

from worker.contract import keys
from worker.contract.store import JobStore, NewJob

QUEUE = "embedq"


def accepted(client: redis.Redis) -> JobStore:
    store = JobStore(client, QUEUE, result_ttl=60)
    store.accept(NewJob("one", total=1, tokens=300, result_bytes=4000), b"{}")
    return store


def test_a_purged_queue_leaves_nothing_on_the_ledger(redis_client: redis.Redis) -> None:
    store = accepted(redis_client)
    redis_client.delete(QUEUE)
    store.reconcile()
    assert not redis_client.hmget(keys.ledger(QUEUE), "tokens", "expected")[0]
    assert (
        store.accept(
            NewJob("two", total=1, tokens=10, result_bytes=1), b"{}", max_tokens=100
        ).verdict
        == "accepted"
    )


def test_jobs_that_wait_or_run_stay_on_the_ledger(redis_client: redis.Redis) -> None:
    store = accepted(redis_client)
    store.reconcile()
    assert redis_client.hget(keys.ledger(QUEUE), "tokens") == b"300"
    redis_client.delete(QUEUE)
    redis_client.hset(keys.LEASED, "a tag", "a message")
    store.reconcile()
    assert redis_client.hget(keys.ledger(QUEUE), "tokens") == b"300"
