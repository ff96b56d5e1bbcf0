"""The unmodified `openai` client against a real worker: its vectors are the library's."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import openai
import orjson
import pytest
from numpy.typing import NDArray

from tests.conftest import Service
from tests.processes import eventually
from worker.contract import keys
from worker.contract.models import ModelSpec
from worker.contract.settings import DEFAULT_MODEL_NAME
from worker.encoder.reference import Reference

TEXTS = ["a photo of a cat", "ein Foto einer Katze", "", "word " * 400, "naïve 🙂 \n\t"]


@pytest.fixture(scope="module")
def expected() -> NDArray[np.float32]:
    return Reference(ModelSpec(DEFAULT_MODEL_NAME), device="cpu").encode_alone(TEXTS)


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=60) as found:
        yield found


def assert_close(data: Sequence[Any], expected: NDArray[np.float32]) -> None:
    assert [one.index for one in data] == list(range(len(expected)))
    vectors = np.asarray([one.embedding for one in data], np.float32)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


def test_vectors_are_the_librarys_in_either_form(
    client: openai.OpenAI, expected: NDArray[np.float32]
) -> None:
    answer = client.embeddings.create(model=DEFAULT_MODEL_NAME, input=TEXTS)
    assert_close(answer.data, expected)
    assert answer.model == DEFAULT_MODEL_NAME
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)
    floats = client.embeddings.create(
        model=DEFAULT_MODEL_NAME, input=TEXTS, encoding_format="float", dimensions=384
    )
    assert_close(floats.data, expected)


def test_one_text_is_taken_bare_and_extra_fields_go_through(
    client: openai.OpenAI, expected: NDArray[np.float32]
) -> None:
    extra = {"truncate": True, "normalize": True, "prompt_name": None, "unknown": 1}
    answer = client.embeddings.create(
        model=DEFAULT_MODEL_NAME, input=TEXTS[0], user="me", extra_body=extra
    )
    assert_close(answer.data, expected[:1])


def test_errors_arrive_as_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="text-embedding-3-small", input="x")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.embeddings.create(model=DEFAULT_MODEL_NAME, input="x", dimensions=7)
    assert (wrong.value.code, wrong.value.param) == ("invalid_dimensions", "dimensions")
    with pytest.raises(openai.BadRequestError) as long:
        client.embeddings.create(
            model=DEFAULT_MODEL_NAME,
            input=["short", "word " * 400],
            extra_body={"truncate": False},
        )
    assert (long.value.code, long.value.param) == ("text_too_long", "input[1]")
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model=DEFAULT_MODEL_NAME, input=[[15339, 1917]])


def test_models_are_listed_and_read(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [DEFAULT_MODEL_NAME]
    assert client.models.retrieve(DEFAULT_MODEL_NAME).owned_by == "embedq"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/other")


def test_a_request_out_of_time_costs_no_forward_pass(
    service: Service, client: openai.OpenAI
) -> None:
    began = time.time()
    eventually(lambda: presence(service)["at"] > began, 20)
    before = presence(service)["texts"]
    service.worker.signal(signal.SIGSTOP)
    try:
        with pytest.raises(openai.InternalServerError) as late:
            client.with_options(max_retries=0).embeddings.create(
                model=DEFAULT_MODEL_NAME,
                input=["late"] * 100,
                extra_headers={"X-Stainless-Read-Timeout": "1"},
            )
    finally:
        service.worker.signal(signal.SIGCONT)
    assert (late.value.status_code, late.value.code) == (503, "not_in_time")
    # Behind it in the queue: once its vectors are there, the other job has been dropped.
    client.embeddings.create(model=DEFAULT_MODEL_NAME, input="after")
    after = eventually(lambda: max(presence(service)["texts"] - before, 0), 20)
    assert after == 1


def presence(service: Service) -> dict[str, Any]:
    """The worker's heartbeat."""
    with service.valkey.client() as found:
        (said,) = found.hvals(keys.workers("embedq"))
    told: dict[str, Any] = orjson.loads(said)
    return told
