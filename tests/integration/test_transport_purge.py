"""Purging a queue: every list of it; every job is reported before its message is removed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest
import redis

from worker.contract.lanes import PRIORITY_STEPS, lists_of
from worker.transport import Connection, leases
from worker.transport.lease_store import TAGS_A_CALL
from worker.transport.message import task_ids

OPTIONS = {"priority_steps": list(PRIORITY_STEPS)}
UNREADABLE = ["not json", "{}", "[" * 100_000, '{"headers": {"id": 7}}', '{"headers": []}']


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    leases.before_purge = None


def fill(client: redis.Redis, each: int, queue: str = "jobs") -> list[str]:
    """Add so many messages to every list of a queue, and unreadable ones; return the ids."""
    ids = []
    for key in lists_of(queue):
        own = [f"{key}-{number}" for number in range(each)]
        client.lpush(key, *(message(task_id) for task_id in own), *UNREADABLE)
        ids += own
    return ids


def message(task_id: str) -> str:
    return json.dumps(
        {
            "body": "7",
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"id": task_id, "task": "a-task"},
            "properties": {
                "body_encoding": "utf-8",
                "delivery_tag": "t",
                "delivery_info": {"exchange": "", "routing_key": "jobs"},
            },
        }
    )


def purge(url: str) -> int:
    with Connection(url, transport_options=OPTIONS) as connection:
        return int(connection.channel().queue_purge("jobs"))


@pytest.mark.parametrize("told", [True, False])
def test_a_purge_empties_every_list_of_its_queue_and_no_other(
    redis_url: str, redis_client: redis.Redis, told: bool
) -> None:
    ids, others = fill(redis_client, 3), fill(redis_client, 2, queue="other")
    calls: list[Sequence[str]] = []
    leases.before_purge = calls.append if told else None
    assert purge(redis_url) == len(ids) + len(lists_of("jobs")) * len(UNREADABLE)
    assert sorted(task_id for call in calls for task_id in call) == (sorted(ids) if told else [])
    assert not redis_client.exists("unacked", "unacked_index", *lists_of("jobs"))
    left = sum(map(redis_client.llen, lists_of("other")))
    assert left == len(others) + len(lists_of("other")) * len(UNREADABLE)
    assert purge(redis_url) == 0


def test_a_purge_tells_of_many_jobs_in_parts(redis_url: str, redis_client: redis.Redis) -> None:
    ids = [f"job-{number}" for number in range(2 * TAGS_A_CALL + 7)]
    redis_client.lpush("jobs", *map(message, ids))
    calls: list[Sequence[str]] = []
    leases.before_purge = calls.append
    assert purge(redis_url) == len(ids)
    assert [len(call) for call in calls] == [TAGS_A_CALL, TAGS_A_CALL, 7]
    assert [task_id for call in calls for task_id in call] == ids


def test_a_purge_whose_jobs_cannot_be_told_of_removes_nothing(
    redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.lpush("jobs", message("a"), message("b"))

    def fails(_: Sequence[str]) -> None:
        raise redis.ConnectionError("away")

    leases.before_purge = fails
    with pytest.raises(redis.ConnectionError, match="away"):
        purge(redis_url)
    assert [task_ids([raw]) for raw in redis_client.lrange("jobs", 0, -1)] == [["b"], ["a"]]
    assert not redis_client.exists("unacked", "unacked_index")
