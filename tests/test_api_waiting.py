"""Waiting for a job: woken by its end, without polling; never left asleep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from werkzeug.test import TestResponse

from api.job_watcher import JobWatch
from tests.api_stand import ApiStand, api_stand, problem
from tests.processes import ValkeyServer, eventually
from worker.contract import keys

#: A write that is acknowledged right before a SIGKILL survives it.
SYNCED = ("--appendfsync", "always")
VECTOR = np.array([[0.5, 0.5, 0.5, 0.5]], dtype=np.float32)


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as stand:
        yield stand


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def get(api: ApiStand, path: str) -> TestResponse:
    """Request with a separate client: Flask's test client belongs to one thread."""
    return api.app.test_client().get(path)


def waiting(api: ApiStand, count: int) -> None:
    """Wait for so many waiting requests and one subscription."""
    eventually(lambda: api.backend.waiting.count() == count)
    eventually(lambda: api.redis.pubsub_numsub(keys.EVENTS)[0][1] == 1)


def subscribe(api: ApiStand) -> None:
    """Wait for the subscription, so that no request reads again because it is new."""
    with api.backend.waiting.watch("nobody") as watch:
        eventually(lambda: api.redis.pubsub_numsub(keys.EVENTS)[0][1] == 1)
        # Arrives after all messages of the new subscription.
        api.redis.publish(keys.EVENTS, b'{"ended": ["nobody"]}')
        assert watch.wait(10)


def test_a_waiting_get_returns_when_the_job_ends(
    api: ApiStand, background: ThreadPoolExecutor
) -> None:
    job_id = api.submitted()
    answer = background.submit(get, api, f"/jobs/{job_id}?wait=20")
    waiting(api, 1)
    began = time.monotonic()
    api.succeed(job_id, VECTOR)
    assert answer.result(5).get_json()["status"] == "succeeded"
    assert time.monotonic() - began < 2
    assert api.backend.waiting.count() == 0


def test_a_waiting_get_returns_the_unended_job_when_its_time_is_over(api: ApiStand) -> None:
    job_id = api.submitted()
    began = time.monotonic()
    job = api.client.get(f"/jobs/{job_id}?wait=1").get_json()
    assert 0.9 < time.monotonic() - began < 3
    assert job["status"] == "queued"


def test_a_cancelled_job_wakes_who_waits_for_it(
    api: ApiStand, background: ThreadPoolExecutor
) -> None:
    job_id = api.submitted()
    answer = background.submit(get, api, f"/jobs/{job_id}?wait=20")
    waiting(api, 1)
    api.client.delete(f"/jobs/{job_id}")
    assert answer.result(5).get_json()["status"] == "cancelled"


def test_who_waits_asks_redis_nothing_meanwhile(
    api: ApiStand, background: ThreadPoolExecutor
) -> None:
    subscribe(api)
    ids = [api.submitted() for _ in range(20)]
    api.redis.config_resetstat()
    answers = [background.submit(get, api, f"/jobs/{job_id}?wait=20") for job_id in ids]
    waiting(api, 20)
    eventually(lambda: _reads(api) >= 20)
    before = _reads(api)
    # Steps of other jobs, and of these, cause no read.
    api.store.progress([(job_id, time.time(), 0, 1, 0) for job_id in [*ids, "other"]])
    other = api.submitted()
    api.succeed(other, VECTOR)
    api.succeed(ids[0], VECTOR)
    answers[0].result(5)
    # The job that ended, the one submitted here, and perhaps the workers for it.
    assert _reads(api) - before <= 3
    for job_id in ids[1:]:
        api.succeed(job_id, VECTOR)
    for answer in answers:
        assert answer.result(5).get_json()["status"] == "succeeded"


def test_one_process_subscribes_once_however_many_wait(
    api: ApiStand, background: ThreadPoolExecutor
) -> None:
    job_id = api.submitted()
    answers = [background.submit(get, api, f"/jobs/{job_id}?wait=20") for _ in range(10)]
    waiting(api, 10)
    clients: Any = api.redis.client_list(_type="pubsub")
    assert len(clients) == 1
    api.succeed(job_id, VECTOR)
    assert {answer.result(5).status_code for answer in answers} == {200}


def test_an_end_between_reading_and_sleeping_is_not_missed(
    api: ApiStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe(api)
    job_id = api.submitted()
    read = api.backend.store.read

    def read_then_end(one: str) -> Any:
        record = read(one)
        api.succeed(job_id, VECTOR)
        return record

    monkeypatch.setattr(api.backend.store, "read", read_then_end)
    began = time.monotonic()
    assert api.client.get(f"/jobs/{job_id}?wait=20").get_json()["status"] == "succeeded"
    assert time.monotonic() - began < 5


def test_an_end_after_a_wait_has_run_out_wakes_the_next_one() -> None:
    watch = JobWatch(progress=False)
    assert not watch.wait(0)
    for _ in range(2):
        watch.wake()
    assert watch.wait(0)
    assert not watch.wait(0)


def test_an_end_while_the_subscription_is_down_is_seen_after_it(
    api: ApiStand, background: ThreadPoolExecutor
) -> None:
    job_id = api.submitted()
    answer = background.submit(get, api, f"/jobs/{job_id}?wait=20")
    waiting(api, 1)
    _end_unnoticed(api, job_id)
    api.redis.client_kill_filter(_type="pubsub")
    assert answer.result(5).get_json()["status"] == "succeeded"


def test_waiting_goes_on_over_a_restart_of_redis(
    valkey_server: Callable[..., ValkeyServer], background: ThreadPoolExecutor
) -> None:
    server = valkey_server(*SYNCED)
    with api_stand(server.url) as api:
        job_id = api.submitted()
        subscribe(api)
        api.redis.config_resetstat()
        answer = background.submit(get, api, f"/jobs/{job_id}?wait=25")
        eventually(lambda: _reads(api) == 1)
        server.kill()
        refused = get(api, f"/jobs/{job_id}")
        assert refused.status_code == 503
        assert not answer.done()
        server.start()
        # Either the subscription is back before the job ends, or its restart wakes the request.
        api.succeed(job_id, VECTOR)
        assert answer.result(15).get_json()["status"] == "succeeded"
        assert get(api, f"/jobs/{job_id}/result").status_code == 200


def test_closing_wakes_who_waits_and_ends_the_thread(
    api: ApiStand, background: ThreadPoolExecutor
) -> None:
    subscribe(api)
    with api.backend.waiting.watch("a job") as watch:
        woken = background.submit(watch.wait, 10)
        api.backend.waiting.close()
        assert woken.result(5)
    assert "embedq-waiting" not in {thread.name for thread in threading.enumerate()}


def test_nonsense_on_the_channel_does_not_end_the_subscription(
    api: ApiStand, background: ThreadPoolExecutor
) -> None:
    job_id = api.submitted()
    answer = background.submit(get, api, f"/jobs/{job_id}?wait=20")
    waiting(api, 1)
    for notice in (b"no json", b"[]", b'{"ended": 3}', b'{"progress": 5}', b'{"ended": [[]]}'):
        api.redis.publish(keys.EVENTS, notice)
    api.succeed(job_id, VECTOR)
    assert answer.result(5).get_json()["status"] == "succeeded"


def test_a_waited_submission_brings_its_result(
    api: ApiStand, background: ThreadPoolExecutor
) -> None:
    response = _waited_submission(api, background, headers={"Prefer": "respond-async, wait=20"})
    assert response.status_code == 200
    assert response.headers["Preference-Applied"] == "wait=20"
    body = response.get_json()
    assert body["status"] == "succeeded"
    assert body["result"]["embeddings"] == VECTOR.tolist()
    assert response.headers["Location"] == f"/jobs/{body['id']}"


def test_a_waited_result_is_kept_for_a_minute_and_leaves_the_ledger(
    api: ApiStand, background: ThreadPoolExecutor
) -> None:
    response = _waited_submission(api, background, query="?wait=20")
    assert "Preference-Applied" not in response.headers
    job_id = response.get_json()["id"]
    response.close()
    assert 0 < api.redis.ttl(keys.job(job_id)) <= 60
    assert 0 < api.redis.ttl(keys.result(job_id)) <= 60
    assert sum(api.ledger().values()) == 0
    assert api.client.get(f"/jobs/{job_id}/result").status_code == 200


def test_a_waited_submission_that_fails_says_why_without_a_result(
    api: ApiStand, background: ThreadPoolExecutor
) -> None:
    response = _waited_submission(
        api, background, end=lambda job_id: api.fail(job_id, "invalid_text", "no"), query="?wait=20"
    )
    assert response.status_code == 200
    assert response.get_json()["error"] == {"code": "invalid_text", "message": "no"}
    assert response.get_json()["result"] is None


def test_a_waited_submission_whose_time_is_over_is_202(api: ApiStand) -> None:
    response = api.submit(headers={"Prefer": "wait=1"})
    assert response.status_code == 202
    assert response.headers["Preference-Applied"] == "wait=1"
    assert response.headers["Retry-After"]


def test_a_submission_keeps_its_id_when_redis_falls_away_while_it_waits(
    valkey_server: Callable[..., ValkeyServer], background: ThreadPoolExecutor
) -> None:
    server = valkey_server(*SYNCED)
    with api_stand(server.url) as api:
        answer = background.submit(api.submit, query="?wait=2")
        eventually(api.messages)
        server.kill()
        response = answer.result(10)
        assert response.status_code == 202
        server.start()
        assert get(api, response.headers["Location"]).get_json()["status"] == "queued"


@pytest.mark.parametrize("value", ["-1", "61", "1.5", "x", "", "9" * 5000, "٣"])
def test_a_wait_that_is_no_number_of_seconds_is_refused_by_name(api: ApiStand, value: str) -> None:
    response = api.client.get("/jobs/x", query_string={"wait": value})
    assert response.status_code == 422
    assert problem(response)["field"] == "wait"


def test_a_preference_that_is_no_number_of_seconds_is_refused_by_name(api: ApiStand) -> None:
    response = api.submit(headers={"Prefer": "wait=61"})
    assert response.status_code == 422
    assert problem(response)["field"] == "Prefer"
    assert not api.messages()


def test_a_server_of_one_request_at_a_time_is_not_blocked_for_long(api: ApiStand) -> None:
    job_id = api.submitted()
    api.succeed(job_id, VECTOR)
    blocking = api.client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=60"})
    assert blocking.headers["Preference-Applied"] == "wait=25"
    threaded = api.client.get(
        f"/jobs/{job_id}",
        headers={"Prefer": "wait=60"},
        environ_overrides={"wsgi.multithread": True},
    )
    assert threaded.headers["Preference-Applied"] == "wait=60"


def _waited_submission(
    api: ApiStand,
    background: ThreadPoolExecutor,
    *,
    end: Callable[[str], None] | None = None,
    **options: Any,
) -> TestResponse:
    """Submit and wait; another thread completes the job once it is queued."""
    answer: Future[TestResponse] = background.submit(api.submit, **options)
    (message,) = eventually(api.messages)
    job_id = message["headers"]["id"]
    if end is None:
        api.succeed(job_id, VECTOR)
    else:
        end(job_id)
    return answer.result(5)


def _reads(api: ApiStand) -> int:
    """Records read so far since the server was started or reset."""
    stats: Any = api.redis.info("commandstats")
    return int(stats.get("cmdstat_hgetall", {"calls": 0})["calls"])


def _end_unnoticed(api: ApiStand, job_id: str) -> None:
    """Complete a job without a notice on the channel, like a notice without a subscriber."""
    api.redis.hset(keys.job(job_id), mapping={"status": "succeeded", "finished": time.time()})
