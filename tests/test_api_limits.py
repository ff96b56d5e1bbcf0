"""Refusals for lack of capacity or workers, their Retry-After, and deduplicated jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import orjson
import pytest
from werkzeug.test import TestResponse

from api.errors import seconds_to_encode
from tests.api_stand import MODEL, ApiStand, api_stand, problem
from tests.processes import ValkeyServer, eventually
from worker.contract import keys
from worker.store.worker_registry import SILENCE, live_workers

VECTOR = np.zeros((1, 4), dtype=np.float32)


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as stand:
        yield stand


def refused(response: TestResponse, code: str) -> int:
    """The Retry-After of an answer that is a 503 with `code`."""
    assert response.status_code == 503
    assert problem(response)["code"] == code
    seconds = int(response.headers["Retry-After"])
    assert 1 <= seconds <= 120
    return seconds


def test_a_full_queue_says_when_there_is_room_at_the_measured_rate(redis_url: str) -> None:
    with api_stand(redis_url, max_queued_tokens=1000) as api:
        api.worker(rate=50.0)
        texts = ["x" * 4 * 98] * 10  # 98 tokens and two special ones each
        first = api.submitted(texts)
        assert refused(api.submit(texts[:5]), "queue_full") == 10
        assert len(api.messages()) == 1
        api.succeed(first, VECTOR)
        assert api.submit(texts[:5]).status_code == 202


def test_a_job_larger_than_the_bound_is_taken_when_nothing_else_waits(redis_url: str) -> None:
    with api_stand(redis_url, max_queued_tokens=10) as api:
        assert api.submit(["x" * 400] * 10).status_code == 202


def test_waiting_messages_are_bounded_in_bytes_however_few_tokens_they_count(
    redis_url: str,
) -> None:
    with api_stand(redis_url, max_queued_bytes=2_000_000) as api:
        large = ["x" * 500_000]
        jobs = [api.submitted(large) for _ in range(3)]
        assert api.ledger()["tokens"] < 3_000
        refused(api.submit(large), "queue_full")
        api.succeed(jobs[0], np.zeros((1, 4), dtype=np.float32))
        api.submitted(large)
        api.client.delete(f"/jobs/{jobs[1]}")
        api.submitted(large)
        refused(api.submit(large), "queue_full")


def test_waiting_messages_may_hold_a_quarter_of_the_memory_that_the_server_may(
    valkey_server: Callable[..., ValkeyServer],
) -> None:
    server = valkey_server("--maxmemory", "200mb", "--maxmemory-policy", "noeviction")
    with api_stand(server.url) as api:
        assert api.backend.room.messages() == 50 * 2**20


def test_waiting_messages_are_bounded_on_a_server_without_a_bound(api: ApiStand) -> None:
    assert api.backend.room.messages() == 2**30


def test_full_results_refuse_until_they_expire(redis_url: str) -> None:
    with api_stand(redis_url, max_result_bytes=2_000, result_ttl=60) as api:
        job_id = api.submitted()
        api.succeed(job_id, np.zeros((100, 4), dtype=np.float32))
        refused(api.submit(), "results_full")
        ledger = keys.ledger(api.settings.queue)
        kept = next(name for name in api.ledger() if name.startswith("kept:"))
        size: Any = api.redis.hget(ledger, kept)
        # As if it had been stored a while ago.
        past = int(kept.partition(":")[2]) - 3
        api.redis.hdel(ledger, kept)
        api.redis.hset(ledger, mapping={f"kept:{past}": size, "kept_from": past})
        assert api.submit().status_code == 202


def test_results_may_hold_half_of_the_memory_that_the_server_may(
    valkey_server: Callable[..., ValkeyServer],
) -> None:
    server = valkey_server("--maxmemory", "200mb", "--maxmemory-policy", "noeviction")
    with api_stand(server.url) as api:
        assert api.backend.room.results() == 100 * 2**20
        api.redis.hset(keys.ledger(api.settings.queue), "expected", 100 * 2**20)
        refused(api.submit(), "results_full")


def test_a_server_without_a_bound_bounds_no_results(api: ApiStand) -> None:
    assert api.backend.room.results() == 0


def test_without_a_live_worker_jobs_are_refused(redis_url: str) -> None:
    with api_stand(redis_url) as api:
        api.worker(silent=SILENCE + 1)
        refused(api.submit(), "no_worker")
        assert not api.messages()
        assert b'embedq_jobs_refused_total{reason="no_worker"} 1.0' in (
            api.client.get("/metrics").data
        )


def test_jobs_are_accepted_without_a_live_worker_if_so_set(redis_url: str) -> None:
    with api_stand(redis_url, accept_without_workers=True) as api:
        api.redis.delete(keys.workers(api.settings.queue))
        assert api.client.get("/readyz").get_json() == {
            "status": "ready",
            "workers": 0,
            "models": [],
        }
        job_id = api.submitted(["a", "b"], model="some model", dimensions=7)
        (message,) = api.messages()
        assert message["headers"]["id"] == job_id
        job = api.client.get(f"/jobs/{job_id}").get_json()
        assert (job["status"], job["model"]) == ("queued", "some model")
        api.worker()
        eventually(lambda: api.submit(model="some model").status_code == 422)
        assert problem(api.submit(model="some model"))["code"] == "model_not_found"


def test_a_worker_that_comes_is_seen_within_two_seconds(redis_url: str) -> None:
    with api_stand(redis_url) as api:
        api.redis.delete(keys.workers(api.settings.queue))
        refused(api.submit(), "no_worker")
        api.worker()
        deadline = time.monotonic() + 2
        while api.submit().status_code != 202:
            assert time.monotonic() < deadline


def test_who_lives_is_told_by_progress_and_the_first_model_is_the_default() -> None:
    small = replace(MODEL, name="small")

    def presence(at: float, *models: Any, rate: float) -> bytes:
        said = {"at": at, "models": [asdict(model) for model in models], "news": 1}
        return orjson.dumps(said | {"tokens_per_second": rate})

    found = live_workers(
        {
            b"b@host": presence(95.0, small, rate=10),
            b"a@host": presence(99.0, MODEL, small, rate=20),
            b"dead@host": presence(100 - SILENCE - 1, replace(MODEL, name="gone"), rate=1e6),
        },
        now=100.0,
    )
    assert found.count == 2
    assert list(found.models) == [MODEL.name, "small"]
    assert found.models["small"] == small
    assert found.tokens_per_second == 30


@pytest.mark.parametrize(
    ("tokens", "rate", "seconds"),
    [(0, 100, 1), (50, 100, 1), (1000, 100, 10), (1001, 100, 11), (10**9, 1, 120), (5, 0, 1)],
)
def test_the_time_to_come_back_is_whole_seconds_within_two_minutes(
    tokens: int, rate: float, seconds: int
) -> None:
    assert seconds_to_encode(tokens, rate) == seconds


def test_a_key_and_a_body_are_one_job_in_every_process(redis_url: str) -> None:
    key = {"Idempotency-Key": "order 7"}
    with api_stand(redis_url) as one, api_stand(redis_url) as other:
        first = one.submit(["a"], headers=key)
        # The same job in another spelling.
        again = other.submit("a", headers=key, truncate=True)
        assert again.status_code == 202
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.get_json() == first.get_json()
        assert len(one.messages()) == 1
        assert "Idempotent-Replayed" not in first.headers


def test_a_key_with_another_body_is_refused(api: ApiStand) -> None:
    key = {"Idempotency-Key": "k"}
    api.submit("a", headers=key)
    for response in (api.submit("b", headers=key), api.submit("a", normalize=False, headers=key)):
        assert response.status_code == 422
        assert problem(response)["code"] == "idempotency_conflict"
    assert len(api.messages()) == 1


def test_a_replayed_job_that_ended_is_answered_to_who_waits(api: ApiStand) -> None:
    key = {"Idempotency-Key": "k"}
    job_id = api.submit("a", headers=key).get_json()["id"]
    api.succeed(job_id, VECTOR)
    replay = api.submit("a", headers=key, query="?wait=5")
    assert replay.status_code == 200
    assert replay.get_json()["result"]["embeddings"] == VECTOR.tolist()


def test_an_acceptance_is_replayed_even_where_the_queue_is_full(redis_url: str) -> None:
    with api_stand(redis_url, max_queued_tokens=10) as api:
        key = {"Idempotency-Key": "k"}
        first = api.submit("x" * 100, headers=key).get_json()["id"]
        refused(api.submit("x" * 100), "queue_full")
        assert api.submit("x" * 100, headers=key).get_json()["id"] == first


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_has_a_bounded_length(api: ApiStand, key: str) -> None:
    response = api.submit(headers={"Idempotency-Key": key})
    assert response.status_code == 422
    assert problem(response)["field"] == "Idempotency-Key"


def test_an_acceptance_asked_for_twice_queues_once(api: ApiStand) -> None:
    """The client repeats the script when its connection breaks before the answer."""
    send = api.backend.store._trips.call

    def twice(*commands: Any) -> Any:
        send(*commands)
        return send(*commands)

    api.backend.store._trips.call = twice  # type: ignore[method-assign]
    job_id = api.submitted()
    assert [message["headers"]["id"] for message in api.messages()] == [job_id]
    tokens = api.ledger()["tokens"]
    api.succeed(job_id, VECTOR)
    assert tokens > 0 == api.ledger()["tokens"]
