"""Dead letters as an operator handles them, on a real Valkey."""

from __future__ import annotations

import json

import orjson
import pytest
import redis
from click.testing import CliRunner, Result

from worker.cli import main
from worker.contract import keys
from worker.contract.jobs import DEFAULT_OPTIONS, Status
from worker.contract.messages import envelope
from worker.store.jobs import Completion, JobRequest, JobStore

QUEUE = "embedq"
SECRET = "a text that nobody should see in a list"


@pytest.fixture
def embedq(redis_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CELERY_BROKER_URL", redis_url)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["dead-letters", *arguments])

    return run


def bury(client: redis.Redis, job_id: str, text: str = SECRET) -> str:
    """Store a poisoned job like the worker does; returns its message."""
    store = JobStore(client, QUEUE, result_ttl=60)
    store.submit(JobRequest(job_id, total=1, tokens=3, result_bytes=10))
    failed = Completion(
        job_id, Status.FAILED, meta=b'{"status": "FAILURE"}', code="poisoned", message="it killed"
    )
    store.complete([failed])
    client.set(keys.attempts(job_id), 1)
    client.sadd(keys.crashes(job_id), "one", "two")
    message = envelope(job_id, [text], DEFAULT_OPTIONS, QUEUE).decode()
    entry = {
        "tag": "lease:0:x:1",
        "reason": "poisoned: it killed",
        "queue": QUEUE,
        "buried_at": "1700000000.5",
        "message": message,
    }
    client.lpush(keys.dead_letters(QUEUE), json.dumps(entry))
    return message


def test_a_list_names_job_time_task_and_reason_but_no_text(embedq, redis_client) -> None:
    bury(redis_client, "one")
    bury(redis_client, "two")
    result = embedq("list")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first.startswith("two  2023-11-14 22:13:20Z  embedq.embed  poisoned")
    assert second.startswith("one ")
    assert SECRET not in result.output


def test_an_empty_list_says_so(embedq) -> None:
    assert "no dead letters" in embedq("list").stderr


def test_showing_one_prints_its_message(embedq, redis_client) -> None:
    message = bury(redis_client, "one")
    assert orjson.loads(embedq("show", "one").stdout) == orjson.loads(message)


def test_a_requeued_job_ends_and_the_ledger_counts_it_once(embedq, redis_client) -> None:
    bury(redis_client, "one")
    embedq("requeue", "one")
    store = JobStore(redis_client, QUEUE, result_ttl=60)
    store.complete([Completion("one", Status.SUCCEEDED, meta=b'{"status": "SUCCESS"}', texts=1)])
    record = store.read("one")
    assert record is not None
    assert record.status is Status.SUCCEEDED
    assert redis_client.hmget(keys.ledger(QUEUE), "tokens", "expected") == [b"0", b"0"]


def test_a_requeued_job_waits_again_as_if_it_had_never_run(embedq, redis_client) -> None:
    message = bury(redis_client, "one")
    assert "1 queued again" in embedq("requeue", "one").stdout
    assert redis_client.lrange(QUEUE, 0, -1) == [message.encode()]
    assert not redis_client.exists(keys.result("one"), keys.attempts("one"), keys.crashes("one"))
    record = JobStore(redis_client, QUEUE, result_ttl=60).read("one")
    assert record is not None
    assert (record.status, record.code, record.finished_at) == (Status.QUEUED, None, None)
    assert redis_client.llen(keys.dead_letters(QUEUE)) == 0


def test_dropping_takes_the_named_letter_only(embedq, redis_client) -> None:
    bury(redis_client, "one")
    bury(redis_client, "two")
    assert "1 dropped" in embedq("drop", "one").stdout
    assert embedq("list").stdout.startswith("two ")


def test_all_letters_can_be_dropped_at_once(embedq, redis_client) -> None:
    bury(redis_client, "one")
    bury(redis_client, "two")
    assert "2 dropped" in embedq("drop", "--all").stdout


@pytest.mark.parametrize("arguments", [(), ("one", "--all")])
def test_what_to_drop_must_be_said_one_way(embedq, arguments) -> None:
    result = embedq("drop", *arguments)
    assert result.exit_code == 2
    assert "name the jobs, or give --all" in result.stderr


def test_an_unknown_job_is_an_error_that_names_it(embedq) -> None:
    result = embedq("show", "nobody")
    assert result.exit_code == 1
    assert "nobody" in result.stderr


def test_a_letter_that_was_no_message_can_be_listed_and_dropped(embedq, redis_client) -> None:
    entry = {"tag": "lease:0:x:9", "reason": "unreadable", "queue": QUEUE, "buried_at": "1.0"}
    redis_client.lpush(keys.dead_letters(QUEUE), json.dumps(entry | {"message": "{not json"}))
    assert "lease:0:x:9" in embedq("list").stdout
    assert "1 dropped" in embedq("drop", "lease:0:x:9").stdout
