"""Stored outcomes: Celery reads ours, and we read Celery's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
import redis
from celery import Celery, states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from worker.contract import keys, results
from worker.contract.errors import JobFailed
from worker.contract.jobs import EncodingFormat
from worker.contract.outcomes import Outcome, TextError

#: Numbers that JSON writers often get wrong.
AWKWARD = np.array(
    [
        [0.1, 1 / 3, -0.0, 1e-45],
        [np.finfo(np.float32).max, np.finfo(np.float32).tiny, 16777217.0, -123456.789],
    ],
    dtype=np.float32,
)
ERROR = TextError(1, "invalid_text", "a int is not a string")


def outcome_of(vectors: results.Matrix, *errors: TextError) -> Outcome:
    return Outcome("tiny", vectors, 12, errors, [0])


def random_vectors(texts: int = 50, size: int = 384) -> results.Matrix:
    return np.random.default_rng(1).normal(size=(texts, size)).astype(np.float32)


@pytest.fixture
def celery_app(redis_url: str) -> Iterator[Celery]:
    app = Celery("users", broker=redis_url, backend=redis_url)
    app.conf.accept_content = ["json"]
    yield app
    app.close()


# -- the form of a result -------------------------------------------------------------------


def test_a_result_holds_what_the_contract_says() -> None:
    vectors = np.array([[1, 2], [0, 0]], dtype=np.float32)
    result = results.plain(results.payload(outcome_of(vectors, ERROR), "float"))
    assert result == {
        "model": "tiny",
        "dimensions": 2,
        "embeddings": [[1.0, 2.0], None],
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
        "truncated": [0],
        "errors": [{"index": 1, "code": "invalid_text", "message": "a int is not a string"}],
    }


def test_a_blob_is_the_rows_of_the_matrix_little_endian() -> None:
    vectors = random_vectors(3, 4)
    blob = results.payload(outcome_of(vectors), "base64")["embeddings"]
    assert (blob["dtype"], blob["shape"]) == ("<f4", [3, 4])
    data = np.frombuffer(base64.b64decode(blob["data"]), dtype=blob["dtype"])
    np.testing.assert_array_equal(data.reshape(blob["shape"]), vectors)


@pytest.mark.parametrize("layout", ["rows", "columns", "every other row", "big-endian"])
@pytest.mark.parametrize("form", ["float", "base64"])
def test_vectors_survive_however_they_lie_in_memory(form: EncodingFormat, layout: str) -> None:
    vectors = random_vectors(6, 4)
    laid_out = {
        "rows": vectors,
        "columns": np.asfortranarray(vectors),
        "every other row": np.repeat(vectors, 2, axis=0)[::2],
        "big-endian": vectors.astype(">f4"),
    }[layout]
    result = results.plain(results.payload(outcome_of(laid_out), form))
    np.testing.assert_array_equal(results.matrix(result["embeddings"])[0], vectors)


@pytest.mark.parametrize("vectors", [AWKWARD, random_vectors()], ids=["awkward", "random"])
@pytest.mark.parametrize("form", ["float", "base64"])
def test_every_number_comes_back_as_it_was(form: EncodingFormat, vectors: results.Matrix) -> None:
    meta = results.success_meta("one", results.payload(outcome_of(vectors), form), {})
    # orjson and the standard library read the same numbers.
    for result in (orjson.loads(meta)["result"], json.loads(meta)["result"]):
        found, missing = results.matrix(result["embeddings"])
        assert found.dtype == np.float32
        assert found.tobytes() == vectors.tobytes()
        assert missing == []


@pytest.mark.parametrize("failed", [[0], [1], [0, 2], [2]])
def test_failed_rows_are_null_in_floats_and_zero_in_a_blob(failed: list[int]) -> None:
    vectors = random_vectors(3, 4)
    vectors[failed] = 0
    errors = [TextError(row, "encode_failed", "no") for row in failed]
    outcome = outcome_of(vectors, *errors)
    floats = orjson.loads(results.success_meta("one", results.payload(outcome, "float"), {}))
    found, missing = results.matrix(floats["result"]["embeddings"])
    np.testing.assert_array_equal(found, vectors)
    assert missing == failed
    blob = results.payload(outcome, "base64")["embeddings"]
    np.testing.assert_array_equal(results.matrix(blob)[0], vectors)


# -- as Celery stores it --------------------------------------------------------------------


@pytest.mark.parametrize("form", ["float", "base64"])
def test_celery_reads_a_success_that_we_stored(
    celery_app: Celery, redis_client: redis.Redis, form: EncodingFormat
) -> None:
    vectors = random_vectors(3, 4)
    result = results.payload(outcome_of(vectors), form)
    extra = {"group_id": "a group", "parent_id": "a parent"}
    redis_client.set(keys.result("one"), results.success_meta("one", result, extra))
    found = AsyncResult("one", app=celery_app)
    assert found.state == states.SUCCESS
    assert found.successful()
    np.testing.assert_array_equal(results.matrix(found.get()["embeddings"])[0], vectors)
    assert found.date_done.tzinfo is not None
    meta = celery_app.backend.get_task_meta("one")
    assert (meta["group_id"], meta["parent_id"]) == ("a group", "a parent")


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
def test_celery_raises_a_failure_as_it_was_stored(celery_app: Celery) -> None:
    error = JobFailed("invalid_text", "input[0]: no")
    celery_app.backend.mark_as_failure("one", error, call_errbacks=False)
    found = AsyncResult("one", app=celery_app)
    assert found.state == states.FAILURE
    with pytest.raises(JobFailed) as caught:
        found.get()
    assert (caught.value.code, caught.value.message) == ("invalid_text", "input[0]: no")
    assert str(caught.value) == "invalid_text: input[0]: no"


def test_celery_raises_a_cancellation_that_we_stored(
    celery_app: Celery, redis_client: redis.Redis
) -> None:
    redis_client.set(keys.result("one"), results.revoked_meta("one"))
    found = AsyncResult("one", app=celery_app)
    assert found.state == states.REVOKED
    with pytest.raises(TaskRevokedError):
        found.get()


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
def test_we_store_what_celery_would(celery_app: Celery, redis_client: redis.Redis) -> None:
    extra = {"group_id": "a group", "parent_id": "a parent"}
    request = Context({"id": "one", "group": "a group", "parent_id": "a parent", "children": []})
    result = results.payload(outcome_of(random_vectors(2, 3)), "base64")
    celery_app.backend.mark_as_done("one", result, request=request)
    theirs = redis_client.get(keys.result("one"))
    assert _but_time(results.success_meta("one", result, extra)) == _but_time(theirs)
    assert list(orjson.loads(theirs))[:2] == ["status", "result"], "scripts look there for it"


def _but_time(meta: bytes | None) -> dict[str, Any]:
    assert meta is not None
    found: dict[str, Any] = orjson.loads(meta)
    assert found.pop("date_done").endswith("+00:00")
    return found


# -- read again -----------------------------------------------------------------------------


def test_a_result_is_cut_out_of_its_success_without_parsing_it() -> None:
    nasty = '","traceback":null,"children":[],"date_done":"'
    errors = TextError(1, nasty, nasty)
    result = results.payload(outcome_of(random_vectors(2, 3), errors), "float")
    text = results.success_text(results.success_meta(nasty, result, {"group_id": nasty}))
    assert text is not None
    assert orjson.loads(text) == json.loads(orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY))


@pytest.mark.parametrize(
    "meta",
    [
        b'{"status":"FAILURE","result":{"exc_type":"JobFailed","exc_message":["a","b"]}}',
        results.revoked_meta("one"),
        json.dumps({"status": "SUCCESS", "result": 1}).encode(),
        b'{"status":"SUCCESS","result":1}',
        b"",
    ],
)
def test_what_is_no_success_of_ours_is_left_to_a_parser(meta: bytes) -> None:
    assert results.success_text(meta) is None


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
def test_our_failures_are_read_as_they_were_stored(
    celery_app: Celery, redis_client: redis.Redis
) -> None:
    celery_app.backend.mark_as_failure("one", JobFailed("a_code", "words"), call_errbacks=False)
    found = results.failure_of(orjson.loads(redis_client.get(keys.result("one")))["result"])
    assert (found.code, found.message) == ("a_code", "words")


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"exc_type": "ValueError", "exc_message": ["somebody's text"]}, "with ValueError"),
        ({"exc_type": "JobFailed", "exc_message": "somebody's text"}, "with JobFailed"),
        ({}, "with an error"),
        (None, "the job failed"),
        ("somebody's text", "the job failed"),
        (["somebody's text"], "the job failed"),
    ],
)
def test_failures_of_others_say_their_type_and_nothing_of_a_text(stored: Any, words: str) -> None:
    found = results.failure_of(stored)
    assert found.code == "internal_error"
    assert words in found.message
    assert "somebody" not in found.message


@pytest.mark.parametrize("kind", ["TimeLimitExceeded", "SoftTimeLimitExceeded"])
def test_a_job_that_celery_stopped_for_its_time_says_so(kind: str) -> None:
    assert results.failure_of({"exc_type": kind, "exc_message": [3]}).code == "time_limit"


def test_a_short_failure_of_ours_is_read_all_the_same() -> None:
    assert results.failure_of({"exc_type": "JobFailed", "exc_message": []}).code == "internal_error"
    only_code = results.failure_of({"exc_type": "JobFailed", "exc_message": ["poisoned"]})
    assert only_code.code == "poisoned"
