"""Which of the jobs of a dead worker it died of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.processes import ValkeyServer
from worker.contract import keys
from worker.contract.store import JobStore
from worker.pool.suspects import Suspects


@pytest.fixture
def suspects(redis_client: redis.Redis) -> Suspects:
    return Suspects(JobStore(redis_client, "embedq", result_ttl=60), max_attempts=3)


def test_a_job_is_refused_once_it_has_killed_as_often_as_is_allowed(suspects: Suspects) -> None:
    assert [suspects.deaths("poison") for _ in range(5)] == [0, 0, 0, 3, 4]
    assert suspects.deaths("another") == 0


def test_an_attempt_that_a_clean_shutdown_cut_short_does_not_count(suspects: Suspects) -> None:
    for _ in range(10):
        assert suspects.deaths("large") == 0
        suspects.clear(["large", "never counted"])


def test_an_attempt_is_taken_back_on_a_full_server(
    suspects: Suspects, redis_client: redis.Redis
) -> None:
    suspects.deaths("linked")
    redis_client.config_set("maxmemory", 1)
    try:
        suspects.clear(["linked"])
    finally:
        redis_client.config_set("maxmemory", 0)
    assert redis_client.get(keys.attempts("linked")) == b"0"


def test_the_count_is_kept_for_a_day(suspects: Suspects, redis_client: redis.Redis) -> None:
    suspects.deaths("poison")
    suspects.clear(["large"])
    for job_id in ("poison", "large"):
        assert 86_000 < redis_client.ttl(keys.attempts(job_id)) <= 86_400


def test_a_job_runs_while_redis_cannot_count(valkey_server: Callable[..., ValkeyServer]) -> None:
    server = valkey_server(persistent=False)
    with server.client() as client:
        suspects = Suspects(JobStore(client, "embedq", result_ttl=60), max_attempts=1)
        server.kill()
        assert [suspects.deaths("job") for _ in range(3)] == [0, 0, 0]
        suspects.clear(["job"])
