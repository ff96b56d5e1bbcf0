"""The cost of a script depends on its arguments, not on the size of the deployment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import redis

from tests.store.stand import QUEUE, new_job, success
from worker.contract import keys
from worker.contract.lanes import Lane
from worker.store.jobs import Deduplication, JobStore, QueueCapacity
from worker.store.quotas import Quotas

CAPACITY = QueueCapacity(
    tokens=10**9,
    bytes=10**9,
    owner_tokens=10**9,
    owner_bytes=10**9,
    result_bytes=10**12,
    lane_share=10**9,
)
SHARED = Deduplication(fingerprint="body", shared=True)
KEYED = Deduplication("k", "b")

STEPS: dict[str, Callable[[JobStore], object]] = {
    "submit": lambda jobs: jobs.submit(new_job(owner="me"), CAPACITY, deduplicate=KEYED),
    "join": lambda jobs: [
        jobs.submit(new_job(name), CAPACITY, deduplicate=SHARED) for name in ("one", "two")
    ],
    "complete": lambda jobs: jobs.complete([success("0"), success("stranger")]),
    "cancel": lambda jobs: jobs.cancel("1"),
    "progress": lambda jobs: jobs.progress([("2", 1.0, 1, 2, 50)]),
    "release": lambda jobs: jobs.release("3", 60),
    "leave": lambda jobs: jobs.leave("4", "tenant4", "nobody"),
    "collect": lambda jobs: jobs.read_and_leave("5", "tenant5", "nobody"),
    "withdraw": lambda jobs: jobs.withdraw("6"),
    "quota": lambda jobs: Quotas(jobs.client, QUEUE).take(
        "tenant7", 5, requests_limit=10, tokens_limit=10
    ),
}


def fill(client: redis.Redis, jobs: JobStore, tenants: int) -> None:
    """Add tenants with a waiting job and a stored result each, and as many workers."""
    with client.pipeline(transaction=False) as pipe:
        for number in range(tenants):
            job, owner = f"{number}", f"tenant{number}"
            pipe.hset(
                keys.job(job),
                mapping={"status": "queued", "owner": owner, "tokens": 10, "bytes": 10, "size": 5,
                         "share": f"share:1:{owner}", "queue": QUEUE},
            )  # fmt: skip
            pipe.zadd(keys.open_jobs(QUEUE), {job: number})
            pipe.zadd(keys.jobs(QUEUE, owner), {job: number})
            pipe.zadd(keys.jobs(QUEUE, "me"), {f"earlier{number}": number})
            for lane in Lane:
                pipe.hset(keys.ledger(QUEUE), f"share:{lane.value}:{owner}", 10)
            pipe.hset(keys.ledger(QUEUE), f"size:{owner}", 5)
            pipe.hset(keys.workers(QUEUE), f"worker{number}", "{}")
            pipe.lpush(QUEUE, "m")
            pipe.hset(keys.LEASED, f"tag{number}", "m")
        pipe.execute()
    jobs.complete([success(f"done{number}") for number in range(min(tenants, 500))])


def commands(client: redis.Redis, step: Callable[[], object]) -> int:
    """The number of commands that the server runs for a step, those of scripts included."""

    def count() -> int:
        stats = client.info("commandstats")
        return sum(one["calls"] for name, one in stats.items() if name != "cmdstat_info")

    before = count()
    step()
    return count() - before


def costs(client: redis.Redis, tenants: int) -> dict[str, int]:
    """Commands of each step in a deployment of so many tenants."""
    client.flushall()
    jobs = JobStore(client, QUEUE, result_ttl=600)
    fill(client, jobs, tenants)
    found = {}
    for name, step in STEPS.items():
        # The first call loads the scripts and caches reads.
        step(jobs)
        client.delete(keys.idempotency(QUEUE, "me", "k"), keys.job("one"))
        found[name] = commands(client, partial(step, jobs))
    return found


def test_a_step_takes_as_many_commands_with_ten_tenants_as_with_ten_thousand(
    redis_client: redis.Redis,
) -> None:
    few, many = costs(redis_client, 10), costs(redis_client, 10_000)
    assert few == many
    assert max(few.values()) <= 120


def test_commands_that_read_whole_keys_read_none_that_grow_with_tenants(
    redis_client: redis.Redis, jobs: JobStore
) -> None:
    fill(redis_client, jobs, 100)
    redis_client.config_resetstat()
    for name, step in STEPS.items():
        # These read one record.
        if name not in ("collect", "cancel"):
            step(jobs)
    used = redis_client.info("commandstats")
    whole = {
        "cmdstat_hgetall",
        "cmdstat_hkeys",
        "cmdstat_hvals",
        "cmdstat_keys",
        "cmdstat_smembers",
    }
    assert not whole & set(used)


def test_a_sweep_looks_at_a_bounded_number_of_jobs(
    redis_client: redis.Redis, jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.store.lost_jobs.SWEPT", 100)
    fill(redis_client, jobs, 3_000)
    jobs.sweep()
    assert commands(redis_client, jobs.sweep) <= 120
