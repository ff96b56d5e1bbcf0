"""Long listings, on a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api_stand import ApiStand, api_stand
from worker.store.jobs import JobRequest


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


def commands_of(api: ApiStand, path: str) -> int:
    """Commands that Redis runs for one request."""
    api.client.get(path)
    before = api.redis.info("stats")["total_commands_processed"]
    assert api.client.get(path).status_code == 200
    # One of them read the first number.
    return int(api.redis.info("stats")["total_commands_processed"]) - before - 1


LISTS = {
    "/jobs?status=failed&limit=1": ("embedq:jobs:", "embedq:job:"),
    "/jobs?limit=100": ("embedq:jobs:", "embedq:job:"),
    "/v1/files?purpose=batch_output&limit=1": ("embedq:files:", "embedq:file:"),
    "/v1/files": ("embedq:files:", "embedq:file:"),
    "/v1/batches?limit=1": ("embedq:batches:", "embedq:batch:"),
}
#: Commands that a page may cost: two a record and one a step, of up to 200, or for files 1,000.
MOST_COMMANDS = {path: 1_050 if path == "/v1/files" else 450 for path in LISTS}


@pytest.mark.parametrize("path", LISTS)
def test_a_page_costs_a_bounded_number_of_commands_however_much_is_listed(
    api: ApiStand, path: str
) -> None:
    listing, prefix = LISTS[path]
    made = {
        "status": "queued",
        "name": "n",
        "bytes": 1,
        "purpose": "batch",
        "owner": "",
        "lines": 1,
    }
    made |= {"created": 1, "expires": 9e9, "queue": "another's" if "batches" in path else "embedq"}
    costs = []
    for count in (10, 10_000):
        with api.redis.pipeline() as pipe:
            for number in range(count):
                pipe.zadd(listing, {f"{number}": number})
                pipe.hset(f"{prefix}{number}", mapping=made)
            pipe.execute()
        costs.append(commands_of(api, path))
    assert max(costs) <= MOST_COMMANDS[path], costs


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
    assert pages > 1


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
    api.store.submit(JobRequest("theirs", total=1, tokens=1, result_bytes=1, owner="somebody"))
    assert api.client.get("/jobs").get_json()["data"] == []
    assert api.client.get("/jobs/theirs").status_code == 404
