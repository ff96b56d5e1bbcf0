"""The jobs that may have killed a dead worker."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.processes import ValkeyServer
from worker.contract import keys
from worker.pool.poison_jobs import PoisonJobs
from worker.store.jobs import JobStore


def suspects_of(client: redis.Redis, max_attempts: int = 3) -> PoisonJobs:
    return PoisonJobs(JobStore(client, "embedq", result_ttl=60), max_attempts)


@pytest.fixture
def suspects(redis_client: redis.Redis) -> PoisonJobs:
    return suspects_of(redis_client)


def test_a_job_is_refused_once_it_has_killed_as_often_as_is_allowed(suspects: PoisonJobs) -> None:
    assert [suspects.begin("poison", tag) for tag in "abcde"] == [0, 0, 0, 3, 4]
    assert suspects.begin("another", "a") == 0


def test_one_delivery_counts_once_however_often_it_begins(suspects: PoisonJobs) -> None:
    assert [suspects.begin("stopped", "tag") for _ in range(9)] == [0] * 9
    suspects.clear([("stopped", "tag")] * 2)
    assert [suspects.begin("stopped", tag) for tag in "abcd"] == [0, 0, 0, 3]


def test_what_an_older_worker_counted_counts_on(
    suspects: PoisonJobs, redis_client: redis.Redis
) -> None:
    redis_client.set(keys.attempts("poison"), 2)
    redis_client.set(keys.attempts("taken back"), -1)
    assert [suspects.begin("poison", tag) for tag in "ab"] == [0, 3]
    assert [suspects.begin("taken back", tag) for tag in "abcd"] == [0, 0, 0, 3]


def test_without_leases_a_process_counts_once(redis_client: redis.Redis) -> None:
    processes = [suspects_of(redis_client) for _ in range(4)]
    crashes = [suspects.begin("poison", "") for suspects in processes for _ in range(2)]
    assert crashes == [0] * 6 + [3, 3]
    processes[0].clear([("poison", "")])
    assert processes[1].begin("poison", "") == 0


def test_an_attempt_that_a_clean_shutdown_cut_short_does_not_count(suspects: PoisonJobs) -> None:
    for attempt in range(10):
        assert suspects.begin("large", str(attempt)) == 0
        suspects.clear([("large", str(attempt)), ("never counted", "tag")])


def test_attempts_are_counted_and_taken_back_on_a_full_server(redis_client: redis.Redis) -> None:
    suspects = suspects_of(redis_client, max_attempts=1)
    redis_client.config_set("maxmemory", 1)
    try:
        assert [suspects.begin("poison", tag) for tag in "ab"] == [0, 1]
        suspects.clear([("poison", "a")])
        assert suspects.begin("poison", "b") == 0
    finally:
        redis_client.config_set("maxmemory", 0)


def test_attempts_are_kept_for_a_day(suspects: PoisonJobs, redis_client: redis.Redis) -> None:
    suspects.begin("poison", "tag")
    assert 86_000 < redis_client.ttl(keys.crashes("poison")) <= 86_400


def test_a_job_runs_while_redis_cannot_count(valkey_server: Callable[..., ValkeyServer]) -> None:
    server = valkey_server(persistent=False)
    with server.client() as client:
        suspects = suspects_of(client, max_attempts=1)
        server.kill()
        assert [suspects.begin("job", tag) for tag in "abc"] == [0, 0, 0]
        suspects.clear([("job", "a")])
