"""A job has one outcome, with one set of follow-ups, despite stops, delays and refusals."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import requests
from celery.exceptions import TaskRevokedError

from tests.integration import users_app
from tests.integration.stand import ANSWER_S, Stand, embed_at, send, vectors
from tests.processes import Process, Processes, ValkeyServer, eventually, start_api, start_worker
from worker.contract import keys, messages
from worker.contract.jobs import DEFAULT_OPTIONS
from worker.store import celery_jobs
from worker.store.jobs import JobRequest, JobStore

LEASE_S = 3


@pytest.fixture
def stand(processes: Processes, redis_url: str, redis_client: redis.Redis) -> Iterator[Stand]:
    with embed_at(redis_url) as app:
        yield Stand(processes, app, redis_client)


def store_of(stand: Stand) -> JobStore:
    store = celery_jobs.store_of(stand.app)
    assert store is not None
    return store


def start(stand: Stand, **env: str) -> Process:
    return stand.start(EMBEDQ_LEASE_SECONDS=str(LEASE_S), **env)


def notes_of(stand: Stand, key: str) -> int:
    return sum(note[0] == key for note in stand.notes())


def test_a_job_cancelled_before_a_worker_starts_is_not_run_and_fires_no_links(stand: Stand) -> None:
    plain = send(["plain"])
    linked = send(["linked"], link=users_app.note_result.s("linked"))
    store = store_of(stand)
    assert store.cancel(plain.id, linked.id)
    worker = start(stand)
    after = send(["after"], link=users_app.note_result.s("after"))
    assert len(vectors(after.get(timeout=ANSWER_S))) == 1
    stand.noted("after", 1)
    eventually(stand.idle, ANSWER_S, message=worker.log)
    for job in (plain, linked):
        assert stand.record(job.id) == ("cancelled", None)
        with pytest.raises(TaskRevokedError):
            job.get(timeout=ANSWER_S)
    assert notes_of(stand, "linked") == 0
    assert not stand.client.exists(keys.cancelled("embedq"))
    assert worker.stop() == 0


def test_a_job_cancelled_while_its_worker_did_not_hear_keeps_that_outcome(stand: Stand) -> None:
    worker = start(stand)
    with stand.busy_device() as go_on:
        blocking = send(["first"])
        stand.wait_until_encoding()
        linked = send(["linked"], link=users_app.note_result.s("linked"))
        eventually(lambda: stand.messages() == (0, 2))
        # No broadcast follows: the state after a lost one.
        assert store_of(stand).cancel(linked.id)
        go_on()
    assert len(vectors(blocking.get(timeout=ANSWER_S))) == 1
    eventually(stand.idle, ANSWER_S, message=worker.log)
    assert stand.record(linked.id) == ("cancelled", None)
    assert notes_of(stand, "linked") == 0
    assert worker.stop() == 0


def test_a_worker_stopped_past_its_lease_fires_no_links_a_second_time(stand: Stand) -> None:
    first = start(stand)
    with stand.busy_device() as go_on:
        jobs = [send([f"{n}"], link=users_app.note_result.s(f"linked {n}")) for n in range(3)]
        stand.wait_until_encoding()
        eventually(lambda: stand.messages() == (0, 3))
        first.signal(signal.SIGSTOP)
        go_on()
    second = start(stand)
    for number, job in enumerate(jobs):
        assert len(vectors(job.get(timeout=2 * ANSWER_S))) == 1
        stand.noted(f"linked {number}", 1)
    eventually(stand.idle, ANSWER_S, message=second.log)
    first.signal(signal.SIGCONT)
    # Both take part again: the first one's old work is done.
    last = [send([f"last {n}"]) for n in range(20)]
    for job in last:
        assert len(vectors(job.get(timeout=ANSWER_S))) == 1
    assert second.stop() == 0
    assert first.stop() == 0
    assert [notes_of(stand, f"linked {n}") for n in range(3)] == [1, 1, 1]


def test_a_job_whose_result_cannot_be_stored_fails_alone(stand: Stand) -> None:
    worker = start(stand)
    with stand.busy_device() as go_on:
        jobs = [send([f"{number}"]) for number in range(6)]
        linked = send(["linked"], link=users_app.note_result.s("linked"))
        stand.wait_until_encoding()
        eventually(lambda: stand.messages() == (0, 7))
        for job in (jobs[3], linked):
            stand.client.hset(keys.result(job.id), "somebody", "else's")
        stand.client.delete(keys.job(jobs[4].id))
        stand.client.set(keys.job(jobs[4].id), "no record")
        go_on()
    for number, job in enumerate(jobs):
        if number not in (3, 4):
            assert len(vectors(job.get(timeout=ANSWER_S))) == 1
    eventually(stand.idle, ANSWER_S, message=worker.log)
    for job in (jobs[3], linked):
        assert stand.record(job.id) == ("failed", "internal_error")
    # There is no record to identify it by: its message is stored.
    assert stand.client.llen(keys.dead_letters("embedq")) == 1
    assert len(vectors(send(["later"]).get(timeout=ANSWER_S))) == 1
    assert worker.stop() == 0


def test_a_worker_whose_outcomes_are_all_refused_is_not_ready_and_loses_nothing(
    processes: Processes, valkey_server: Callable[..., ValkeyServer]
) -> None:
    server = valkey_server()
    with server.client() as client, embed_at(server.url) as app:
        stand = Stand(processes, app, client)
        worker = start(stand)
        api = start_api(processes, server.url)
        eventually(lambda: requests.get(api.url + "/readyz", timeout=5).ok, ANSWER_S)
        ledger = keys.ledger("embedq")
        client.set(ledger, "no counters")
        message_id = messages.new_id()
        message = messages.envelope(message_id, ["a text"], DEFAULT_OPTIONS, "embedq")
        client.lpush("embedq", message)
        eventually(lambda: "wait for Redis" in worker.log(), ANSWER_S, message=worker.log)
        # The heartbeat ends with the failing script, and so does readiness within half a minute.
        eventually(
            lambda: requests.get(api.url + "/readyz", timeout=5).status_code == 503,
            60,
            message=worker.log,
        )
        client.delete(ledger)
        eventually(lambda: stand.record(message_id)[0] == "succeeded", 60, message=worker.log)
        eventually(lambda: requests.get(api.url + "/readyz", timeout=5).ok, ANSWER_S)
        assert worker.stop() == 0


def test_an_entry_that_is_no_heartbeat_keeps_no_worker_from_starting(
    stand: Stand, redis_url: str
) -> None:
    entries = {
        "not json": "{",
        "a number": "3",
        "a list": "[]",
        "null": "null",
        "no time": "{}",
        "text for a time": '{"at": "yesterday"}',
        "bytes": b"\xff\xfe",
    }
    stand.client.hset(keys.workers("embedq"), mapping=entries)
    worker = start(stand)
    assert len(vectors(send(["a text"]).get(timeout=ANSWER_S))) == 1
    assert len(stand.client.hkeys(keys.workers("embedq"))) == 1, "the others are removed"
    assert worker.stop() == 0


def test_a_tasks_id_of_another_program_is_no_job_over_rest(
    stand: Stand, processes: Processes, redis_url: str
) -> None:
    worker = start(stand)
    api = start_api(processes, redis_url)
    sleeping = users_app.sleep.delay(3, "slept")
    eventually(lambda: len(stand.inspect("active")) == 1)
    failed = users_app.fail.delay("on purpose")
    eventually(failed.ready, ANSWER_S)
    for task in (sleeping, failed):
        for method, path in (
            ("GET", ""),
            ("GET", "/result"),
            ("GET", "/events"),
            ("DELETE", ""),
            ("POST", "/cancel"),
        ):
            url = f"{api.url}/jobs/{task.id}{path}"
            assert requests.request(method, url, timeout=10).status_code == 404
    assert sleeping.get(timeout=ANSWER_S) == 3
    stand.noted("slept")
    assert worker.stop() == 0


def test_an_api_that_dies_before_it_sends_the_message_leaves_a_job_that_a_retry_sends(
    processes: Processes, valkey_server: Callable[..., ValkeyServer], tmp_path: Path
) -> None:
    broker, results = valkey_server(), valkey_server()
    env = {"CELERY_RESULT_BACKEND": results.url}
    with results.client() as client:
        # The broker stands still: the record is written and the message is not sent.
        worker = start_worker(processes, broker.url, app="bench.costless", env=env)
        api = start_api(processes, broker.url, env=env)
        eventually(lambda: requests.get(api.url + "/readyz", timeout=5).ok, ANSWER_S)
        assert broker.process is not None
        broker.process.signal(signal.SIGSTOP)
        headers = {"Idempotency-Key": "k"}
        post = processes.python(
            "-c",
            "import requests, sys; requests.post(sys.argv[1], json={'input': 'a'}, "
            "headers={'Idempotency-Key': 'k'}, timeout=20)",
            f"{api.url}/jobs",
        )
        eventually(
            lambda: client.hlen(keys.outbox("embedq")) == 1, ANSWER_S, message=api.process.log
        )
        api.process.kill()
        post.wait()
        broker.process.signal(signal.SIGCONT)
        again = start_api(processes, broker.url, env=env)
        answer = requests.post(
            again.url + "/jobs?wait=30", json={"input": "a"}, headers=headers, timeout=40
        )
        assert answer.status_code in (200, 202)
        assert answer.headers.get("Idempotent-Replayed") == "true"
        job_id = answer.json()["id"]
        store = JobStore(client, "embedq", result_ttl=60)
        eventually(
            lambda: (record := store.read(job_id)) is not None and record.status == "succeeded",
            ANSWER_S,
            message=worker.log,
        )
        eventually(lambda: client.hlen(keys.outbox("embedq")) == 0, ANSWER_S)
        eventually(lambda: store.queued_tokens() == 0, ANSWER_S)
        assert worker.stop() == 0


def test_a_purge_cancels_what_waits_and_nothing_else(stand: Stand, redis_url: str) -> None:
    worker = start(stand)
    with stand.busy_device() as go_on:
        running = send(["running"])
        stand.wait_until_encoding()
        eventually(lambda: stand.messages() == (0, 1))
        # Larger than the amount that the worker fetches ahead.
        waiting = [send([f"{n} {m} " + "word " * 300 for m in range(8)]) for n in range(32)]
        eventually(lambda: stand.messages()[0])
        purge = stand.processes.python(
            *("-m", "celery", "-A", "worker", "purge", "-f"),
            env={"CELERY_BROKER_URL": redis_url, "CELERY_RESULT_BACKEND": redis_url},
        )
        assert purge.wait(60) == 0
        purged = re.search(r"Purged (\d+) message", purge.log())
        assert purged, purge.log()
        statuses = [stand.record(job.id)[0] for job in waiting]
        assert statuses.count("cancelled") == int(purged[1]) > 0
        go_on()
    assert len(vectors(running.get(timeout=ANSWER_S))) == 1
    for job, status in zip(waiting, statuses, strict=True):
        if status != "cancelled":
            assert len(vectors(job.get(timeout=4 * ANSWER_S))) == 8
    eventually(stand.idle, ANSWER_S, message=worker.log)
    assert store_of(stand).queued_tokens() == 0
    assert worker.stop() == 0


def test_a_purge_by_another_program_cancels_once_the_queue_is_empty(stand: Stand) -> None:
    store = store_of(stand)
    store.submit(JobRequest("purged", 1, 10, 10, message=b"{}"))
    stand.client.delete("embedq")
    stand.client.zincrby(keys.open_jobs("embedq"), -60, "purged")
    worker = start(stand)
    eventually(lambda: stand.record("purged") == ("cancelled", None), ANSWER_S, message=worker.log)
    assert store.queued_tokens() == 0
    assert worker.stop() == 0
