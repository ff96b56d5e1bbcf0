"""The lane of a job that was submitted over REST."""

from __future__ import annotations

from collections.abc import Iterator

import orjson
import pytest

from api.submission import LANE_SHARE, submit
from tests.api_stand import MODEL, ApiStand, api_stand
from worker.contract import messages
from worker.contract.jobs import DEFAULT_OPTIONS
from worker.contract.lanes import Lane, list_of


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as stand:
        yield stand


def lengths(api: ApiStand) -> list[int]:
    """Messages of each lane."""
    return [api.redis.llen(list_of(api.settings.queue, lane.step)) for lane in Lane]  # type: ignore[misc]


def test_a_job_that_nobody_waits_for_is_in_the_normal_lane(api: ApiStand) -> None:
    api.submitted("a text")
    assert lengths(api) == [0, 1, 0]
    assert api.messages()[0]["properties"]["priority"] == 0


def test_a_job_that_its_caller_waits_for_is_interactive(api: ApiStand) -> None:
    assert api.submit("a text", query="?wait=1").status_code == 202
    assert lengths(api) == [1, 0, 0]
    assert api.messages()[0]["properties"]["priority"] == 0


def test_a_request_of_openais_api_is_interactive(api: ApiStand) -> None:
    body = {"model": MODEL.name, "input": "a text"}
    headers = {"X-Stainless-Read-Timeout": "1"}
    response = api.client.post("/v1/embeddings", json=body, headers=headers)
    assert response.status_code == 503
    assert lengths(api) == [1, 0, 0]


def test_a_large_job_is_not_interactive_although_somebody_waits(api: ApiStand) -> None:
    text = "word " * MODEL.max_tokens
    api.submit([text] * (LANE_SHARE * MODEL.batch_tokens), query="?wait=1")
    assert lengths(api) == [0, 1, 0]


def test_a_submission_may_name_its_lane_and_says_whose_it_is(api: ApiStand) -> None:
    with api.app.test_request_context("/"):
        for number in range(LANE_SHARE + 2):
            text = f"{number}" + " word" * MODEL.max_tokens
            texts = [text] * (MODEL.batch_tokens // MODEL.max_tokens + 1)
            submit(api.backend, texts, DEFAULT_OPTIONS, owner="a-key", lane=Lane.NORMAL)
        submit(api.backend, ["a text"], DEFAULT_OPTIONS, owner="other", lane=Lane.NORMAL)
        submit(api.backend, ["a text"], DEFAULT_OPTIONS, owner="a-key", lane=Lane.BULK)
    assert lengths(api)[0] == 0
    assert lengths(api)[2] >= 2
    found = [message["headers"] for message in api.messages()]
    assert {messages.owner_of(headers) for headers in found} == {"a-key", "other"}
    assert messages.owner_of(api.messages()[lengths(api)[1] - 1]["headers"]) == "other"
    assert messages.owner_of(orjson.loads(b'{"embedq_owner": 7}')) == ""
