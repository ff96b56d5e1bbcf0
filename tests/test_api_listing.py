"""Long listings, on a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api_stand import ApiStand, api_stand
from worker.contract.store import NewJob


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as stand:
        yield stand


def test_following_next_reads_every_job_once(api: ApiStand) -> None:
    ids = [api.submitted() for _ in range(5)]
    seen, path = [], "/jobs?limit=2"
    while path is not None:
        page = api.client.get(path).get_json()
        seen += [job["id"] for job in page["data"]]
        path = page["next"]
    assert seen == ids[::-1]


def test_a_rare_status_is_found_behind_thousands_of_others(api: ApiStand) -> None:
    rare = api.submitted()
    api.client.delete(f"/jobs/{rare}")
    with api.redis.pipeline() as pipe:
        for number in range(2_500):
            pipe.zadd("embedq:jobs:", {f"later-{number:04}": 9e9 + number})
            pipe.hset(f"embedq:job:later-{number:04}", mapping={"status": "queued"})
        pipe.execute()
    found, path, pages = [], "/jobs?status=cancelled&limit=100", 0
    while path is not None:
        page = api.client.get(path).get_json()
        found += [job["id"] for job in page["data"]]
        path, pages = page["next"], pages + 1
    assert found == [rare]
    assert pages == 2


def test_a_full_page_with_nothing_behind_it_is_the_last(api: ApiStand) -> None:
    for _ in range(2):
        api.submitted()
    page = api.client.get("/jobs?limit=2").get_json()
    assert len(page["data"]) == 2
    assert page["has_more"] is False
    assert page["next"] is None


def test_an_unknown_after_is_refused_instead_of_starting_over(api: ApiStand) -> None:
    api.submitted()
    answer = api.client.get("/jobs?after=nobody")
    assert answer.status_code == 422
    assert answer.get_json()["field"] == "after"


def test_a_page_can_begin_after_a_job_that_has_gone(api: ApiStand) -> None:
    first, second = api.submitted(), api.submitted()
    api.redis.delete(f"embedq:job:{second}")
    page = api.client.get(f"/jobs?after={second}").get_json()
    assert [job["id"] for job in page["data"]] == [first]


def test_jobs_of_another_owner_are_not_listed(api: ApiStand) -> None:
    api.store.accept(NewJob("theirs", total=1, tokens=1, result_bytes=1, owner="somebody"), None)
    assert api.client.get("/jobs").get_json()["data"] == []
    assert api.client.get("/jobs/theirs").status_code == 404
