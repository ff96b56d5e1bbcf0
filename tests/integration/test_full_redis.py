"""A full Redis: all jobs survive, memory stays bounded, and work continues."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import orjson
import pytest
import redis
from celery import Celery

from tests.processes import Process, Processes, ValkeyServer, eventually, start_worker
from worker.contract import keys, messages
from worker.contract.jobs import DEFAULT_OPTIONS, TASK_NAME
from worker.contract.lanes import lists_of
from worker.store.completions import RESERVE
from worker.store.jobs import JobRequest, JobStore

#: Bytes that commands and leases under way may take in addition to the workers' bytes.
UNDER_WAY = 4 * 2**20
LONGEST_S = 90.0
TTL_S = 1


@pytest.fixture
def full_server(valkey_server: Callable[..., ValkeyServer]) -> ValkeyServer:
    """A server that clients can fill."""
    return valkey_server("--maxmemory", "10mb")


def start(processes: Processes, server: ValkeyServer, **env: str) -> Process:
    """A worker with results as large as a model's; it need not be ready yet."""
    env = {"EMBEDQ_BENCH_DIMENSIONS": "384"} | env
    return start_worker(processes, server.url, app="bench.costless", ready=None, env=env)


def fill(put: Callable[[int], object]) -> None:
    """Call `put` with 0, 1, … until the server refuses."""
    for number in itertools.count():
        try:
            put(number)
        except redis.OutOfMemoryError:
            return


def take_all_room(client: redis.Redis) -> None:
    """Fill the server with foreign keys, until even the smallest one does not fit."""
    for size in (2**16, 2**12, 2**8, 1):
        fill(lambda number, size=size: client.set(f"filler:{size}:{number}", bytes(size)))


def leave_room(client: redis.Redis) -> None:
    for key in client.scan_iter("filler:*", count=1000):
        client.delete(key)


def is_idle(client: redis.Redis) -> bool:
    return not (client.exists(*lists_of("embedq")) or client.hlen(keys.LEASED))


def test_a_server_full_of_jobs_is_worked_off_within_its_bound(
    full_server: ValkeyServer, processes: Processes
) -> None:
    with full_server.client() as client, full_server.client().pubsub() as notices:
        jobs: set[str] = set()
        store = JobStore(client, "embedq", result_ttl=TTL_S)

        def submit(_: int) -> None:
            job_id = messages.new_id()
            message = messages.envelope(job_id, ["text"], DEFAULT_OPTIONS, "embedq")
            store.submit(JobRequest(job_id, 1, tokens=3, result_bytes=1, message=message))
            jobs.add(job_id)

        fill(submit)
        assert len(jobs) > 2000
        notices.subscribe(keys.EVENTS)
        bound = client.info("memory")["maxmemory"] + RESERVE + UNDER_WAY
        worker = start(processes, full_server, EMBEDQ_RESULT_TTL=str(TTL_S))
        ended: set[str] = set()
        highest = 0

        def all_ended() -> bool:
            nonlocal highest
            highest = max(highest, client.info("memory")["used_memory"])
            while notice := notices.get_message(ignore_subscribe_messages=True):
                ended.update(orjson.loads(notice["data"]).get("ended", ()))
            return ended == jobs

        eventually(all_ended, LONGEST_S, message=worker.log)
        assert highest < bound
        eventually(lambda: is_idle(client), message=worker.log)
        assert store.queued_tokens() == 0


def test_a_job_whose_outcome_and_link_find_no_room_ends_when_there_is_some(
    full_server: ValkeyServer, processes: Processes
) -> None:
    with (
        full_server.client() as client,
        Celery(broker=full_server.url, backend=full_server.url, set_as_current=False) as app,
    ):
        app.conf.task_default_queue = "embedq"
        linked = app.signature(TASK_NAME, (["linked"],), immutable=True).set(task_id="linked")
        app.signature(TASK_NAME, (["text"],)).apply_async(task_id="first", link=linked)
        take_all_room(client)
        worker = start(processes, full_server)
        worker.wait_for_log("Job first could not be ended; it is put back")
        leave_room(client)
        for job_id in ("first", "linked"):
            result = app.AsyncResult(job_id)
            vectors = result.get(timeout=LONGEST_S)["embeddings"]
            assert len(vectors) == 1, worker.log()
        eventually(lambda: is_idle(client), message=worker.log)


def test_a_job_with_a_link_succeeds_where_a_full_server_has_room_now_and_then(
    valkey_server: Callable[..., ValkeyServer], processes: Processes
) -> None:
    server = valkey_server()
    worker = start(processes, server)
    with (
        server.client() as client,
        Celery(broker=server.url, backend=server.url, set_as_current=False) as app,
    ):
        app.conf.task_default_queue = "embedq"
        eventually(lambda: client.hlen(keys.workers("embedq")), LONGEST_S, message=worker.log)
        linked = app.signature(TASK_NAME, (["linked"],), immutable=True).set(task_id="linked")
        app.signature(TASK_NAME, (["text"],)).apply_async(task_id="first", link=linked)

        def put_back_often_or_done() -> bool:
            client.config_set("maxmemory", 1)
            threading.Event().wait(0.003)
            client.config_set("maxmemory", 0)
            threading.Event().wait(0.0005)
            done = bool(client.exists(keys.result("first")))
            return done or worker.log().count("is put back") > 4

        eventually(put_back_often_or_done, 20, message=worker.log)
        for job_id in ("first", "linked"):
            vectors = app.AsyncResult(job_id).get(timeout=LONGEST_S)["embeddings"]
            assert len(vectors) == 1, worker.log()


def test_a_full_server_is_still_told_which_workers_live(
    full_server: ValkeyServer, processes: Processes
) -> None:
    with full_server.client() as client:
        workers = keys.workers("embedq")

        def last_seen() -> float:
            (said,) = client.hvals(workers) or (b'{"at": 0}',)
            seen: float = orjson.loads(said)["at"]
            return seen

        worker = start(processes, full_server)
        eventually(last_seen, LONGEST_S, message=worker.log)
        take_all_room(client)
        filled = time.time()
        eventually(lambda: last_seen() > filled, LONGEST_S, message=worker.log)
