"""The lane of an accepted job, and a tenant's share of a lane."""

from __future__ import annotations

import pytest
import redis

from tests.store.stand import QUEUE, new_job, shares, success
from worker.contract.lanes import PRIORITY_STEPS, Lane, lane_of, list_of, lists_of
from worker.store.jobs import JobStore, QueueCapacity


def lengths(client: redis.Redis) -> list[int]:
    """Messages of each lane."""
    return [client.llen(list_of(QUEUE, lane.step)) for lane in Lane]


def accept(
    jobs: JobStore, job_id: str, lane: Lane, *, owner: str = "me", tokens: int = 100
) -> Lane:
    """The lane in which a job waits, if its owner may have 250 tokens in each."""
    job = new_job(job_id, owner=owner, lane=lane, tokens=tokens)
    acceptance = jobs.submit(job, QueueCapacity(lane_share=250))
    assert acceptance.verdict == "accepted"
    return acceptance.lane


@pytest.mark.parametrize("lane", Lane)
def test_a_job_waits_in_its_lane(jobs: JobStore, redis_client: redis.Redis, lane: Lane) -> None:
    assert jobs.submit(new_job(lane=lane, message=b"{}")).lane is lane
    assert lengths(redis_client)[lane] == sum(lengths(redis_client)) == 1
    assert jobs.depth().queued == 1


def test_every_priority_of_a_stock_producer_has_a_lane() -> None:
    assert [lane_of(step) for step in PRIORITY_STEPS] == [
        Lane.INTERACTIVE,
        Lane.NORMAL,
        Lane.NORMAL,
        Lane.BULK,
        Lane.BULK,
    ]
    assert lists_of(QUEUE)[1] == QUEUE
    assert all(lane_of(lane.step) is lane for lane in Lane)


def test_what_an_owner_has_beyond_its_share_waits_in_the_next_lane(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    found = [accept(jobs, f"{n}", Lane.INTERACTIVE) for n in range(7)]
    assert found == [Lane.INTERACTIVE] * 2 + [Lane.NORMAL] * 3 + [Lane.BULK] * 2
    assert lengths(redis_client) == [2, 3, 2]
    assert shares(redis_client) == {"0:me": 200, "1:me": 300, "2:me": 200}


def test_an_owners_flood_leaves_the_lanes_of_others_alone(jobs: JobStore) -> None:
    for number in range(20):
        accept(jobs, f"{number}", Lane.NORMAL)
    assert accept(jobs, "other", Lane.NORMAL, owner="you") is Lane.NORMAL
    assert accept(jobs, "asked", Lane.INTERACTIVE) is Lane.INTERACTIVE


def test_a_large_job_is_never_interactive(jobs: JobStore) -> None:
    assert accept(jobs, "large", Lane.INTERACTIVE, tokens=1000) is Lane.NORMAL
    assert accept(jobs, "anybodys", Lane.INTERACTIVE, owner="", tokens=1000) is Lane.NORMAL


def test_where_owners_are_not_told_apart_nobody_has_a_share(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    found = {accept(jobs, f"{n}", Lane.NORMAL, owner="") for n in range(10)}
    assert found == {Lane.NORMAL}
    assert shares(redis_client) == {}


def test_a_share_is_free_again_when_its_jobs_have_ended(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    for number in range(3):
        accept(jobs, f"{number}", Lane.NORMAL)
    assert accept(jobs, "beyond", Lane.NORMAL) is Lane.BULK
    jobs.complete([success("0"), success("1")])
    jobs.cancel("2")
    assert shares(redis_client) == {"2:me": 100}
    assert accept(jobs, "again", Lane.NORMAL) is Lane.NORMAL


def test_a_purged_queue_leaves_no_shares(
    jobs: JobStore, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.store.lost_jobs._SEEN_WITHIN", 0)
    accept(jobs, "one", Lane.BULK)
    jobs.sweep()
    assert shares(redis_client) == {"2:me": 100}
    redis_client.delete(*lists_of(QUEUE))
    jobs.sweep()
    assert shares(redis_client) == {}
    # Its later completion leaves no share either.
    jobs.complete([success("one")])
    assert shares(redis_client) == {}
