"""Native jobs over REST: submitted, read, listed, cancelled, their vectors in every form."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import orjson
import pytest
from celery import states

from tests.api_stand import MODEL, ApiStand, api_stand, problem
from worker.contract import keys
from worker.contract.app import make_app
from worker.contract.outcomes import TextError

#: Celery's own backend calls functions that redis-py has deprecated.
by_celery = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

VECTORS = np.array([[1, 0, 0, 0], [0.1, -0.2, 0.3, 1 / 3]], dtype=np.float32)


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as stand:
        yield stand


def test_a_submitted_job_is_answered_with_where_and_when_to_look(api: ApiStand) -> None:
    response = api.submit(["a", "b"])
    assert response.status_code == 202
    job = response.get_json()
    assert response.headers["Location"] == f"/jobs/{job['id']}" == job["links"]["self"]
    assert int(response.headers["Retry-After"]) >= 1
    assert job["status"] == "queued"
    assert job["model"] == MODEL.name
    assert job["progress"] == {"done": 0, "total": 2}
    assert job["usage"] is job["error"] is job["started_at"] is job["finished_at"] is None
    age = datetime.now(UTC) - datetime.fromisoformat(job["created_at"])
    assert timedelta() <= age < timedelta(seconds=10)
    assert api.client.get(job["links"]["self"]).get_json() == job


def test_the_message_carries_texts_and_options_and_shows_no_text_in_its_headers(
    api: ApiStand,
) -> None:
    job_id = api.submitted("secret", prompt_name="query", dimensions=2)
    (message,) = api.messages()
    args, kwargs, _ = orjson.loads(message["body"])
    assert args == [["secret"]]
    assert kwargs == {"prompt_name": "query", "dimensions": 2}
    assert message["headers"]["id"] == job_id
    assert "secret" not in str(message["headers"])


def test_a_job_that_succeeded_has_times_progress_and_usage(api: ApiStand) -> None:
    job_id = api.submitted(["a", "b"])
    api.succeed(job_id, VECTORS, tokens=12)
    job = api.client.get(f"/jobs/{job_id}").get_json()
    assert job["status"] == "succeeded"
    assert job["progress"] == {"done": 2, "total": 2}
    assert job["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert "result" not in job


@pytest.mark.parametrize("stored", ["float", "base64"])
def test_vectors_are_read_in_every_form_whichever_is_stored(api: ApiStand, stored: str) -> None:
    job_id = api.submitted(["a", "b"], encoding_format=stored)
    api.succeed(job_id, VECTORS, encoding_format=stored)
    path = f"/jobs/{job_id}/result"

    floats = api.client.get(path).get_json()
    assert floats["model"] == MODEL.name
    assert floats["dimensions"] == 4
    np.testing.assert_array_equal(np.array(floats["embeddings"], np.float32), VECTORS)

    blob = api.client.get(path + "?encoding_format=base64").get_json()["embeddings"]
    assert blob["dtype"] == "<f4"
    decoded = np.frombuffer(base64.b64decode(blob["data"]), "<f4").reshape(blob["shape"])
    np.testing.assert_array_equal(decoded, VECTORS)

    npy = api.client.get(path, headers={"Accept": "application/x-npy"})
    assert npy.content_type == "application/x-npy"
    matrix = np.load(io.BytesIO(npy.data), allow_pickle=False)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, VECTORS)


@pytest.mark.parametrize("stored", ["float", "base64"])
def test_a_failed_text_is_null_among_floats_and_zeros_in_a_matrix(
    api: ApiStand, stored: str
) -> None:
    job_id = api.submitted(["a", "b"])
    vectors = VECTORS.copy()
    vectors[0] = 0
    failed = (TextError(0, "invalid_text", "no"),)
    api.succeed(job_id, vectors, encoding_format=stored, errors=failed)
    path = f"/jobs/{job_id}/result"

    floats = api.client.get(path).get_json()
    assert floats["embeddings"][0] is None
    assert floats["embeddings"][1] is not None
    assert floats["errors"] == [{"index": 0, "code": "invalid_text", "message": "no"}]
    npy = api.client.get(path, headers={"Accept": "application/x-npy"})
    np.testing.assert_array_equal(np.load(io.BytesIO(npy.data)), vectors)


@by_celery
def test_a_result_written_by_a_stock_celery_backend_is_read_as_well(api: ApiStand) -> None:
    app = make_app(api.settings)
    result = {
        "model": "tiny",
        "dimensions": 4,
        "embeddings": VECTORS.tolist(),
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
        "truncated": [],
        "errors": [],
    }
    app.backend.store_result("by-celery", result, states.SUCCESS)
    app.close()
    job = api.client.get("/jobs/by-celery").get_json()
    assert job["status"] == "succeeded"
    assert job["progress"] == {"done": 2, "total": 2}
    answer = api.client.get("/jobs/by-celery/result").get_json()
    np.testing.assert_array_equal(np.array(answer["embeddings"], np.float32), VECTORS)


@by_celery
def test_the_result_of_another_task_is_no_job(api: ApiStand) -> None:
    app = make_app(api.settings)
    app.backend.store_result("other", {"secret": 1}, states.SUCCESS)
    app.close()
    assert problem(api.client.get("/jobs/other"))["code"] == "not_found"
    assert problem(api.client.get("/jobs/other/result"))["code"] == "not_found"


def test_an_unknown_job_is_404_everywhere(api: ApiStand) -> None:
    for path in (
        "/jobs/x",
        "/jobs/x?wait=1",
        "/jobs/x/result",
        "/jobs/x/events",
        "/jobs/" + 999 * "x",
    ):
        assert problem(api.client.get(path))["code"] == "not_found"
    assert problem(api.client.delete("/jobs/x"))["code"] == "not_found"
    assert problem(api.client.post("/jobs/x/cancel"))["code"] == "not_found"


def test_a_result_is_409_until_the_job_ends(api: ApiStand) -> None:
    response = api.client.get(f"/jobs/{api.submitted()}/result")
    assert response.status_code == 409
    assert problem(response)["code"] == "not_ended"


def test_a_failed_job_tells_its_own_code(api: ApiStand) -> None:
    job_id = api.submitted()
    api.fail(job_id, "text_too_long", "text 0 has 999 tokens")
    job = api.client.get(f"/jobs/{job_id}").get_json()
    assert job["status"] == "failed"
    assert job["error"] == {"code": "text_too_long", "message": "text 0 has 999 tokens"}
    response = api.client.get(f"/jobs/{job_id}/result")
    assert response.status_code == 409
    assert problem(response)["code"] == "text_too_long"


def test_what_no_form_of_a_result_satisfies_is_406(api: ApiStand) -> None:
    job_id = api.submitted()
    api.succeed(job_id, VECTORS[:1])
    response = api.client.get(f"/jobs/{job_id}/result", headers={"Accept": "text/html"})
    assert response.status_code == 406
    assert problem(response)["code"] == "not_acceptable"


@pytest.mark.parametrize("way", ["delete", "post"])
def test_cancelling_ends_a_job_once_and_for_all(api: ApiStand, way: str) -> None:
    job_id = api.submitted()
    path = f"/jobs/{job_id}" + ("/cancel" if way == "post" else "")
    for _ in range(2):
        # openai's client sends a content type with an empty body.
        response = getattr(api.client, way)(path, content_type="application/json")
        assert response.status_code == 200
        assert response.get_json()["status"] == "cancelled"
    api.succeed(job_id, VECTORS[:1])
    assert api.client.get(f"/jobs/{job_id}").get_json()["status"] == "cancelled"
    assert problem(api.client.get(f"/jobs/{job_id}/result"))["code"] == "cancelled"
    assert api.ledger()["tokens"] == 0


def test_an_ended_job_stays_as_it_is_when_cancelled(api: ApiStand) -> None:
    job_id = api.submitted()
    api.succeed(job_id, VECTORS[:1])
    assert api.client.delete(f"/jobs/{job_id}").get_json()["status"] == "succeeded"
    assert api.client.get(f"/jobs/{job_id}/result").status_code == 200


def test_workers_are_told_of_a_cancelled_job(api: ApiStand) -> None:
    listener = api.redis.pubsub()
    listener.psubscribe("*celery.pidbox")
    assert listener.get_message(timeout=5)
    job_id = api.submitted()
    api.client.delete(f"/jobs/{job_id}")
    message = listener.get_message(timeout=10)
    listener.close()
    assert message is not None
    assert job_id in str(message["data"])
    assert "revoke" in str(message["data"])


def test_a_listing_is_read_page_by_page_newest_first(api: ApiStand) -> None:
    ids = [api.submitted() for _ in range(5)]
    seen: list[str] = []
    after = ""
    for expect_more in (True, True, False):
        page = api.client.get(f"/jobs?limit=2{after}").get_json()
        seen += [job["id"] for job in page["data"]]
        assert page["has_more"] is expect_more
        after = f"&after={seen[-1]}"
    assert seen == ids[::-1]


def test_a_listing_shows_only_the_status_asked_for(api: ApiStand) -> None:
    first, second, third = (api.submitted() for _ in range(3))
    api.succeed(second, VECTORS[:1])
    api.client.delete(f"/jobs/{third}")

    def listed(status: str) -> list[str]:
        page = api.client.get(f"/jobs?status={status}").get_json()
        return [job["id"] for job in page["data"]]

    assert listed("queued") == [first]
    assert listed("succeeded") == [second]
    assert listed("cancelled") == [third]
    assert listed("failed") == []


def test_a_job_past_its_time_is_gone_from_everywhere(api: ApiStand) -> None:
    job_id = api.submitted()
    api.succeed(job_id, VECTORS[:1])
    assert 0 < api.redis.ttl(keys.job(job_id)) <= api.settings.result_ttl
    api.redis.delete(keys.job(job_id), keys.result(job_id))
    assert problem(api.client.get(f"/jobs/{job_id}"))["code"] == "not_found"
    assert api.client.get("/jobs").get_json() == {"data": [], "has_more": False, "next": None}


def test_two_servers_for_messages_and_results_get_one_part_each(redis_url: str) -> None:
    other = redis_url.removesuffix("/0") + "/1"
    with api_stand(redis_url, result_backend=other) as api:
        job_id = api.submitted()
        assert api.redis.exists(keys.job(job_id))
        assert not api.messages()
        assert api.backend.store.broker.llen(api.settings.queue) == 1


def test_a_job_whose_message_cannot_be_sent_was_never_there(redis_url: str) -> None:
    nobody = "redis://127.0.0.1:1/0"
    with api_stand(redis_url, broker_url=nobody) as api:
        response = api.submit(headers={"Idempotency-Key": "k"})
        assert problem(response)["code"] == "redis_unavailable"
        assert api.client.get("/jobs").get_json()["data"] == []
        assert not any(api.ledger().values())


FOREIGN = [
    None,
    3,
    "text",
    [],
    {"secret": 1},
    {"embeddings": None},
    {"embeddings": "ab"},
    {"embeddings": {}},
    {"embeddings": [None]},
    {"embeddings": [[1], [1, 2]]},
    {"embeddings": [["a"]]},
    {"embeddings": {"dtype": "<f4", "shape": [2, 2], "data": "!"}},
    {"embeddings": {"dtype": "O", "shape": 5, "data": ""}},
]


@pytest.mark.parametrize("result", FOREIGN, ids=str)
@pytest.mark.parametrize("submitted", [True, False])
def test_a_stored_result_of_another_task_is_no_result_here(
    api: ApiStand, result: object, submitted: bool
) -> None:
    job_id = api.submitted() if submitted else "foreign"
    meta = {"status": "SUCCESS", "result": result, "task_id": job_id}
    api.redis.set(keys.result(job_id), orjson.dumps(meta))
    read = api.client.get(f"/jobs/{job_id}?wait=1")
    assert read.status_code in ((200,) if submitted else (200, 404))
    for headers in ({}, {"Accept": "application/x-npy"}):
        answer = api.client.get(f"/jobs/{job_id}/result", headers=headers)
        assert answer.status_code == 404
        assert problem(answer)["code"] == "not_found"
