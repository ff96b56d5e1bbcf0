"""Users' own tasks next to `embed`: whatever they do, `embed` continues and they end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from tests.integration import users_app
from tests.integration.stand import ANSWER_S, Stand, embed_at, send, vectors
from tests.processes import Process, ValkeyServer, eventually
from worker.contract import keys, messages
from worker.contract.jobs import DEFAULT_OPTIONS
from worker.contract.lanes import Lane
from worker.pool import parking

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

LEASE = {"EMBEDQ_LEASE_SECONDS": "3"}
#: Seconds for all queued tasks of a test, on a busy machine.
LONGEST_S = 120.0
#: Seconds for a job without obstacles, on a busy machine.
PROMPT_S = 15.0


def held(stand: Stand) -> int:
    """Leases held by workers."""
    tags = stand.client.hkeys("unacked")
    return sum(not tag.startswith(b"parked:") for tag in tags)


def parked(stand: Stand) -> int:
    return stand.client.hlen("unacked") - held(stand)


def letters(stand: Stand) -> list[dict[str, Any]]:
    return [json.loads(x) for x in stand.client.lrange(keys.dead_letters("embedq"), 0, -1)]


def push_tasks(stand: Stand, task: Any, calls: list[tuple[str, tuple[Any, ...], Any]]) -> None:
    """Queue many tasks at once, each given as id, arguments and eta: a producer takes a while."""
    queued = []
    for task_id, args, eta in calls:
        message = json.loads(messages.of_task(task.name, task_id, args, "embedq"))
        message["headers"] |= {"ignore_result": False, "eta": eta}
        queued.append(json.dumps(message))
    for start in range(0, len(queued), 5000):
        stand.client.lpush("embedq", *queued[start : start + 5000])


# -- ending -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("exit", "WorkerLostError", "exitcode 0"),
        ("exit 3", "WorkerLostError", "exitcode 3"),
        ("exit with words", "WorkerLostError", "exitcode 1"),
        ("interrupt", "WorkerLostError", "KeyboardInterrupt"),
        ("generator", "GeneratorExit", ""),
        ("own", "Stopped", "by hand"),
        ("memory", "MemoryError", ""),
    ],
)
def test_a_task_that_raises_what_no_task_should_fails_as_in_a_pool_of_processes(
    module_stand: Stand, request: pytest.FixtureRequest, name: str, error: str, says: str
) -> None:
    stand = module_stand
    if name == "memory" and "stock" in request.node.name:
        pytest.skip("Celery's pool of processes ends the worker")
    link = users_app.note_failure.s("failed").set(queue="embedq")
    task = users_app.leave.apply_async((name,), link_error=link)
    eventually(lambda: task.state == "FAILURE", ANSWER_S)
    meta = json.loads(stand.client.get(keys.result(task.id)) or b"")
    assert meta["result"]["exc_type"] == error
    assert says in str(meta["result"]["exc_message"])
    stand.noted("failed", task.id)
    eventually(stand.idle, ANSWER_S)
    assert len(vectors(send().get(timeout=ANSWER_S))) == 2


@pytest.fixture(scope="module", params=["our worker", "stock worker"])
def module_stand(request: pytest.FixtureRequest, valkey: ValkeyServer) -> Iterator[Stand]:
    """One worker, ours or Celery's pool of processes, for the tests that compare both."""
    from tests.conftest import running

    stock = {"STOCK": "1", "POOL": "prefork"}
    with running() as processes, valkey.client() as client, embed_at(valkey.url) as app:
        client.flushall()
        stand = Stand(processes, app, client)
        worker = stand.start(**(stock if request.param == "stock worker" else {}))
        yield stand
        assert worker.running
        worker.kill()


def test_a_task_that_kills_its_worker_fails_in_the_end_and_blames_nobody_else(
    stand: Stand,
) -> None:
    poison = users_app.die.apply_async(link_error=users_app.note_failure.s("failed"))
    stop = threading.Event()
    workers: list[Process] = [stand.start(ready=None, EMBEDQ_MAX_ATTEMPTS="2", **LEASE)]
    jobs = [send([f"innocent {n}"]) for n in range(30)]
    other = users_app.sleep.delay(0.2, "slept")

    def supervise() -> None:
        while not stop.wait(0.1):
            if not workers[-1].running:
                workers.append(stand.start(ready=None, EMBEDQ_MAX_ATTEMPTS="2", **LEASE))

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    try:
        with pytest.raises(WorkerLostError, match="2 times"):
            poison.get(timeout=LONGEST_S)
        assert [len(vectors(job.get(timeout=LONGEST_S))) for job in jobs] == [1] * 30
        assert other.get(timeout=LONGEST_S) == 0.2
        stand.noted("failed", poison.id)
        eventually(stand.idle, ANSWER_S)
    finally:
        stop.set()
        supervisor.join()
    # Once with the others, then twice alone.
    assert len(workers) == 4
    (letter,) = letters(stand)
    assert json.loads(letter["message"])["headers"]["id"] == poison.id
    assert workers[-1].running


# -- next to embed ------------------------------------------------------------------------------


def test_jobs_are_prompt_beside_a_thousand_tasks_and_fifty_thousand_for_later(
    stand: Stand,
) -> None:
    worker = stand.start(EMBEDQ_TASK_THREADS="4")
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    sleepers = [f"sleeper-{n}" for n in range(1000)]
    push_tasks(stand, users_app.sleep, [(task_id, (0.05, ""), None) for task_id in sleepers])
    push_tasks(stand, users_app.sleep, [(f"later-{n}", (0, ""), later) for n in range(40_000)])
    for n in range(10_000):
        message = json.loads(messages.envelope(f"job-{n}", ["later"], DEFAULT_OPTIONS, "embedq"))
        message["headers"]["eta"] = later
        stand.client.lpush("embedq", json.dumps(message))
    begun = time.monotonic()
    asked = stand.submit("asked", Lane.INTERACTIVE)
    assert len(vectors(asked.get(timeout=PROMPT_S))) == 1
    # All the others precede these in their queue.
    for _ in range(3):
        assert len(vectors(send(["a normal one"]).get(timeout=LONGEST_S))) == 1
    eventually(lambda: parked(stand) >= 50_000, LONGEST_S)
    assert held(stand) <= parking.MOST_HELD + parking.MOST_SOON + 1024
    print(f"all 50,000 were parked after {time.monotonic() - begun:.1f} s")  # noqa: T201
    begun = time.monotonic()
    assert len(vectors(send(["beside them"]).get(timeout=PROMPT_S))) == 1
    results = [AsyncResult(task_id, app=stand.app) for task_id in sleepers]
    eventually(lambda: all(one.state == "SUCCESS" for one in results[::50]), LONGEST_S)
    eventually(
        lambda: all(stand.client.exists(keys.result(task_id)) for task_id in sleepers), LONGEST_S
    )
    assert parked(stand) == 50_000
    eventually(lambda: held(stand) == 0, ANSWER_S)
    assert psutil.Process(worker.pid).memory_info().rss < 1.5 * 2**30
    assert worker.running


def test_tasks_that_wait_for_one_another_hold_up_no_job_and_no_other_task(stand: Stand) -> None:
    stand.start(EMBEDQ_TASK_THREADS="2")
    limited = users_app.sleep
    stand.app.control.rate_limit(limited.name, "100/s", reply=True, timeout=ANSWER_S, limit=1)
    push_tasks(stand, limited, [(f"limited-{n}", (0, ""), None) for n in range(400)])
    assert len(vectors(send().get(timeout=PROMPT_S))) == 2
    assert users_app.count.delay({"embeddings": [1]}).get(timeout=PROMPT_S) == 1
    eventually(lambda: held(stand) <= parking.MOST_HELD, ANSWER_S)
    assert parked(stand) > 0
    # Their rate depends on Celery: its timers share the loop.
    eventually(lambda: stand.client.exists(keys.result("limited-9")), LONGEST_S)


def test_jobs_with_links_hold_up_no_others(stand: Stand) -> None:
    stand.start()
    linked = [
        send([f"linked {n}"], link=users_app.sleep.si(0, "linked"), ignore_result=True)
        for n in range(600)
    ]
    assert len(vectors(stand.submit("asked", Lane.INTERACTIVE).get(timeout=PROMPT_S))) == 1
    eventually(lambda: len(stand.notes()) == len(linked), LONGEST_S)
    eventually(stand.idle, ANSWER_S)


# -- for later ----------------------------------------------------------------------------------


def test_a_message_for_later_is_parked_and_runs_in_time(stand: Stand) -> None:
    stand.start()
    due = time.time() + parking.SOON + 4
    eta = datetime.fromtimestamp(due, UTC)
    task = users_app.tell_time.apply_async(eta=eta)
    job = send(["later"], eta=eta)
    eventually(lambda: parked(stand) == 2, ANSWER_S)
    assert held(stand) == 0
    ran = task.get(timeout=LONGEST_S)
    assert due <= ran < due + 5
    assert len(vectors(job.get(timeout=ANSWER_S))) == 1
    eventually(stand.idle, ANSWER_S)


def test_more_messages_for_soon_than_a_worker_holds_run_in_time(stand: Stand) -> None:
    stand.start()
    due = time.time() + 6
    eta = datetime.fromtimestamp(due, UTC).isoformat()
    count = parking.MOST_SOON + 200
    push_tasks(stand, users_app.tell_time, [(f"soon-{n}", (), eta) for n in range(count)])
    eventually(lambda: parked(stand) >= 200, ANSWER_S)
    results = [AsyncResult(f"soon-{n}", app=stand.app) for n in range(count)]
    assert min(result.get(timeout=LONGEST_S) for result in results) >= due - 0.1


def test_a_parked_message_that_is_revoked_does_not_run(stand: Stand) -> None:
    stand.start()
    task = users_app.sleep.apply_async((0, "slept"), countdown=parking.SOON + 3)
    job = send(["later"], countdown=parking.SOON + 3)
    eventually(lambda: parked(stand) == 2, ANSWER_S)
    for one in (task, job):
        stand.app.control.revoke(one.id, reply=True, timeout=ANSWER_S, limit=1)
    for one in (task, job):
        with pytest.raises(TaskRevokedError):
            one.get(timeout=LONGEST_S)
    eventually(stand.idle, ANSWER_S)
    assert ["slept"] not in stand.notes()


def test_parked_messages_outlive_their_worker(stand: Stand) -> None:
    first = stand.start(**LEASE)
    task = users_app.tell_time.apply_async(countdown=parking.SOON + 8)
    eventually(lambda: parked(stand) == 1, ANSWER_S)
    first.kill()
    stand.start(**LEASE)
    assert task.get(timeout=LONGEST_S)
    assert not letters(stand)
