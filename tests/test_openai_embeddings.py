"""OpenAI's embeddings API; the test plays the worker's part."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from werkzeug.test import TestResponse

from tests.api_stand import MODEL, ApiStand, api_stand
from tests.processes import eventually
from worker.contract import keys
from worker.contract.outcomes import TextError

VECTORS: NDArray[np.float32] = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)


class Asked:
    """Requests under way, each on a thread, and their jobs."""

    def __init__(self, api: ApiStand, threads: ThreadPoolExecutor) -> None:
        self._api = api
        self._threads = threads

    def __call__(
        self, input: Any = "a text", *, headers: Any = None, **members: Any
    ) -> Future[TestResponse]:
        body = {"model": MODEL.name, "input": input, **members}
        client = self._api.app.test_client()
        return self._threads.submit(client.post, "/v1/embeddings", json=body, headers=headers)

    def job(self, number: int = 0) -> str:
        """The id of the `number`th queued job."""
        eventually(lambda: len(self._api.messages()) > number)
        job_id: str = self._api.messages()[number]["headers"]["id"]
        return job_id


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as stand:
        yield stand


@pytest.fixture
def ask(api: ApiStand) -> Iterator[Asked]:
    with ThreadPoolExecutor(8) as threads:
        yield Asked(api, threads)
        api.backend.waiting.release()


def error_of(response: TestResponse) -> dict[str, Any]:
    """Return the error inside an answer after a check of its form."""
    assert response.content_type == "application/json", response.data
    body = response.get_json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_vectors_come_in_the_order_of_the_input(api: ApiStand, ask: Asked) -> None:
    answer = ask(["one", "two"])
    api.succeed(ask.job(), VECTORS, encoding_format="base64", tokens=9)
    response = answer.result(10)
    assert response.status_code == 200, response.data
    body = response.get_json()
    assert body["object"] == "list"
    assert [one["index"] for one in body["data"]] == [0, 1]
    assert {one["object"] for one in body["data"]} == {"embedding"}
    np.testing.assert_array_equal(
        np.asarray([one["embedding"] for one in body["data"]], np.float32), VECTORS
    )
    assert body["model"] == MODEL.name
    assert body["usage"] == {"prompt_tokens": 9, "total_tokens": 9}


def test_base64_is_little_endian_float32_one_per_text(api: ApiStand, ask: Asked) -> None:
    answer = ask(["one", "two"], encoding_format="base64")
    api.succeed(ask.job(), VECTORS, encoding_format="base64")
    data = answer.result(10).get_json()["data"]
    rows = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in data]
    np.testing.assert_array_equal(np.stack(rows), VECTORS)


def test_a_text_that_fails_fails_the_request_and_is_named(api: ApiStand, ask: Asked) -> None:
    answer = ask(["one", "two"])
    failed = TextError(1, "text_too_long", "300 tokens; the model takes 256")
    api.succeed(ask.job(), VECTORS, encoding_format="base64", errors=(failed,))
    response = answer.result(10)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == ("input[1]", "text_too_long")
    assert error["type"] == "invalid_request_error"
    assert "256" in error["message"]


def test_a_result_is_dropped_once_its_caller_has_it(api: ApiStand, ask: Asked) -> None:
    answer = ask()
    job_id = ask.job()
    api.succeed(job_id, VECTORS[:1], encoding_format="base64")
    assert answer.result(10).status_code == 200
    # It stays for a moment, for a repeat of the `leave` call.
    assert 0 < api.redis.ttl(keys.job(job_id)) <= 10
    assert 0 < api.redis.ttl(keys.result(job_id)) <= 10
    assert not api.redis.keys("*shared*")
    assert api.client.get("/jobs").get_json()["data"] == []
    assert not any(api.ledger().values())


def test_equal_requests_under_way_share_a_job(api: ApiStand, ask: Asked) -> None:
    answers = [ask("a text"), ask(["a text"], encoding_format="base64", user="me")]
    job_id = ask.job()
    eventually(lambda: api.redis.hget(keys.job(job_id), "callers") == b"2")
    assert len(api.messages()) == 1
    api.succeed(job_id, VECTORS[:1], encoding_format="base64")
    assert [answer.result(10).status_code for answer in answers] == [200, 200]
    assert 0 < api.redis.ttl(keys.job(job_id)) <= 10


def test_an_equal_request_after_the_end_is_another_job(api: ApiStand, ask: Asked) -> None:
    for number in range(2):
        answer = ask("a text")
        api.succeed(ask.job(number), VECTORS[:1], encoding_format="base64")
        assert answer.result(10).status_code == 200


def test_a_caller_whose_time_is_over_is_told_to_come_back_and_costs_nothing(
    api: ApiStand, ask: Asked
) -> None:
    response = ask(headers={"X-Stainless-Read-Timeout": "0.4"}).result(10)
    assert response.status_code == 503
    assert error_of(response)["code"] == "not_in_time"
    assert 1 <= int(response.headers["Retry-After"]) <= 120
    job = api.store.read(ask.job())
    assert job is not None
    assert job.status == "cancelled"
    assert api.messages()[0]["headers"]["embedq_deadline"] is not None


def test_a_caller_who_goes_leaves_the_job_to_those_who_share_it(api: ApiStand, ask: Asked) -> None:
    stays = ask()
    job_id = ask.job()
    assert ask(headers={"X-Stainless-Read-Timeout": "0.4"}).result(10).status_code == 503
    api.succeed(job_id, VECTORS[:1], encoding_format="base64")
    assert stays.result(10).status_code == 200


def test_one_who_joined_goes_on_when_the_first_ones_time_ends_the_job(
    api: ApiStand, ask: Asked
) -> None:
    out_of_time = ask()
    first = ask.job()
    joined = ask()
    eventually(lambda: api.redis.hget(keys.job(first), "callers") == b"2")
    api.expire(first)
    assert error_of(out_of_time.result(10))["code"] == "not_in_time"
    api.succeed(ask.job(1), VECTORS[:1], encoding_format="base64")
    assert joined.result(10).status_code == 200


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("invalid_text", 400, "invalid_request_error"),
        ("poisoned", 400, "invalid_request_error"),
        ("internal_error", 500, "server_error"),
    ],
)
def test_a_job_that_fails_is_an_error_that_says_whether_to_try_again(
    api: ApiStand, ask: Asked, code: str, status: int, kind: str
) -> None:
    answer = ask()
    api.fail(ask.job(), code, "input[0]: broken")
    response = answer.result(10)
    assert response.status_code == status
    error = error_of(response)
    assert (error["type"], error["code"], error["param"]) == (kind, code, "input[0]")


def test_a_cancelled_request_is_not_tried_again(api: ApiStand, ask: Asked) -> None:
    answer = ask()
    api.client.delete(f"/jobs/{ask.job()}")
    response = answer.result(10)
    assert response.status_code == 400
    assert error_of(response)["code"] == "cancelled"


def test_a_request_that_redis_loses_is_one_to_try_again(api: ApiStand, ask: Asked) -> None:
    answer = ask()
    job_id = ask.job()
    api.redis.delete(keys.job(job_id))
    api.redis.publish(keys.EVENTS, json.dumps({"ended": [job_id]}))
    response = answer.result(10)
    assert response.status_code == 503
    assert error_of(response)["code"] == "redis_unavailable"


def test_when_the_process_ends_the_job_waits_for_its_client_to_come_back(
    api: ApiStand, ask: Asked
) -> None:
    answer = ask()
    job_id = ask.job()
    api.backend.waiting.release()
    assert answer.result(10).status_code == 503
    api.backend.waiting.released = False
    again = ask()
    eventually(lambda: api.redis.hget(keys.job(job_id), "callers") == b"2")
    api.succeed(job_id, VECTORS[:1], encoding_format="base64")
    assert again.result(10).status_code == 200
    assert len(api.messages()) == 1


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ([], 400, None, "invalid_request"),
        ({"input": "a"}, 400, "model", "invalid_request"),
        ({"model": "tiny"}, 400, "input", "invalid_request"),
        ({"model": "tiny", "input": []}, 400, "input", "invalid_request"),
        ({"model": "tiny", "input": ["a", None]}, 400, "input[1]", "invalid_request"),
        ({"model": "tiny", "input": [[1, 2]]}, 400, "input", "token_ids_not_supported"),
        ({"model": "tiny", "input": "a", "dimensions": 3}, 400, "dimensions", "invalid_dimensions"),
        ({"model": "tiny", "input": "a", "input_type": "x"}, 400, "prompt_name", "invalid_prompt"),
        ({"model": "gpt", "input": "a"}, 404, "model", "model_not_found"),
    ],
)
def test_a_request_that_is_not_valid_is_refused_by_param(
    api: ApiStand, body: Any, status: int, param: str | None, code: str
) -> None:
    response = api.client.post("/v1/embeddings", json=body)
    assert response.status_code == status
    error = error_of(response)
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"
    assert not api.messages()


def test_langchain_is_told_its_switch_where_no_token_table_is_configured(api: ApiStand) -> None:
    body = {"model": "tiny", "input": [[15339, 1917], ""], "encoding_format": "base64"}
    error = error_of(api.client.post("/v1/embeddings", json=body))
    assert "check_embedding_ctx_length=False" in error["message"]


@pytest.mark.parametrize(
    ("ask_wrongly", "status"),
    [
        (lambda client: client.get("/v1/nothing"), 404),
        (lambda client: client.get("/v1/embeddings"), 405),
        (lambda client: client.post("/v1/embeddings", data=b"{", content_type="text/plain"), 415),
        (
            lambda client: client.post(
                "/v1/embeddings", data=b"{", content_type="application/json"
            ),
            400,
        ),
        (lambda client: client.post("/v1/embeddings", json={"input": "a" * 9 * 2**20}), 413),
    ],
)
def test_every_error_under_v1_is_in_openais_shape(
    api: ApiStand, ask_wrongly: Callable[[Any], TestResponse], status: int
) -> None:
    response = ask_wrongly(api.client)
    assert response.status_code == status
    assert error_of(response)["type"] == "invalid_request_error"
    assert response.headers["x-request-id"]


def test_without_a_worker_it_is_a_503_that_says_when_to_come_back(api: ApiStand) -> None:
    api.redis.flushall()
    response = api.client.post("/v1/embeddings", json={"model": "tiny", "input": "a"})
    assert response.status_code == 503
    error = error_of(response)
    assert (error["type"], error["code"]) == ("server_error", "no_worker")
    assert 1 <= int(response.headers["Retry-After"]) <= 120


def test_a_bug_is_a_500_in_openais_shape(api: ApiStand, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("inner life")

    monkeypatch.setattr(api.backend.liveness, "workers", broken)
    response = api.client.get("/v1/models")
    assert response.status_code == 500
    assert error_of(response)["type"] == "server_error"
    assert b"inner life" not in response.data


def test_answers_say_which_request_and_model_and_how_long(api: ApiStand, ask: Asked) -> None:
    answer = ask(headers={"X-Request-Id": "mine-1"})
    api.succeed(ask.job(), VECTORS[:1], encoding_format="base64")
    headers = answer.result(10).headers
    assert headers["x-request-id"] == "mine-1"
    assert headers["openai-model"] == MODEL.name
    assert int(headers["openai-processing-ms"]) >= 0
    unsafe = api.client.get("/v1/models", headers={"X-Request-Id": "a b"})
    assert unsafe.headers["x-request-id"].startswith("req_")
