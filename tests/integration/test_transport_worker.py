"""Celery workers on our transport, as processes that are killed, stopped and cut off."""

from __future__ import annotations

import base64
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from tests.processes import (
    Process,
    Processes,
    ValkeyServer,
    eventually,
    free_port,
    start_worker,
)
from worker.local import valkey as local

APP = "tests.integration.transport_app"
StartWorker = Callable[..., Process]


@pytest.fixture
def start(processes: Processes, redis_url: str) -> StartWorker:
    """Starts a worker with the solo pool, which runs tasks in its event loop."""

    def started(name: str, *options: str, url: str = redis_url, **env: str) -> Process:
        arguments = ("-P", "solo", "--without-gossip", "--without-mingle", *options)
        return start_worker(processes, url, *arguments, app=f"{APP}:app", name=name, env=env)

    return started


def client_app(url: str, **options: Any) -> Celery:
    app = Celery(
        "client", broker=url, backend=url, amqp="worker.transport:AMQP", set_as_current=False
    )
    app.conf.broker_transport_options = app.conf.result_backend_transport_options = options
    return app


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with client_app(redis_url) as app:
        yield app


def call(app: Celery, name: str, *args: Any, **options: Any) -> Any:
    return app.send_task(f"{APP}.{name}", args=args, **options)


def lines(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def held(client: redis.Redis) -> tuple[int, int]:
    return client.llen("celery"), client.hlen("unacked")


def test_a_worker_runs_tasks_answers_pings_and_ends_cleanly(
    start: StartWorker, app: Celery, redis_client: redis.Redis
) -> None:
    worker = start("one")
    results = [call(app, "add", n, n) for n in range(50)]
    assert [result.get(timeout=20) for result in results] == [2 * n for n in range(50)]
    assert app.control.ping(timeout=5, limit=1) == [{"one@localhost": {"ok": "pong"}}]
    chain = app.signature(f"{APP}.add", (1, 2)) | app.signature(f"{APP}.add", (4,))
    assert chain.apply_async().get(timeout=20) == 7
    later = call(app, "add", 1, 1, countdown=1)
    assert later.get(timeout=20) == 2
    eventually(lambda: held(redis_client) == (0, 0))
    assert worker.stop() == 0
    assert "Traceback" not in worker.log()


def test_workers_of_both_kinds_share_a_queue(
    start: StartWorker, app: Celery, redis_client: redis.Redis
) -> None:
    start("ours", PREFETCH="4")
    start("stock", STOCK="1", PREFETCH="4")
    results = [call(app, "add", n, n) for n in range(300)]
    assert [result.get(timeout=30) for result in results] == [2 * n for n in range(300)]
    eventually(lambda: held(redis_client) == (0, 0))
    done = app.control.inspect(timeout=5, limit=2).stats()
    assert all(done[f"{name}@localhost"]["total"] for name in ("ours", "stock")), done


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_a_killed_worker_held_is_held_by_another_within_seconds(
    start: StartWorker, app: Celery, redis_client: redis.Redis
) -> None:
    doomed = start("doomed", LEASE="6")
    for n in range(2000):
        call(app, "add", n, n, countdown=300)
    eventually(lambda: held(redis_client) == (0, 2000), 20)
    other = start("other", LEASE="6")
    before = set(redis_client.hkeys("unacked"))
    doomed.kill()
    killed = time.monotonic()
    eventually(lambda: not before <= set(redis_client.hkeys("unacked")), 30)
    first = time.monotonic() - killed
    eventually(lambda: not before & set(redis_client.hkeys("unacked")), 5)
    eventually(lambda: held(redis_client) == (0, 2000))
    assert first < 12
    assert other.stop() == 0
    assert held(redis_client) == (2000, 0)


def test_no_job_is_lost_when_workers_are_killed_at_any_moment(
    start: StartWorker, app: Celery, redis_client: redis.Redis, tmp_path: Path
) -> None:
    chance = random.Random(3)
    done = tmp_path / "done"
    sent = 0
    for round_ in range(6):
        worker = start(f"doomed{round_}", PREFETCH="50")
        for _ in range(300):
            call(app, "note", str(done), sent)
            sent += 1
        eventually(lambda: len(lines(done)) > chance.random() * 200)
        worker.kill()
        places = [*redis_client.lrange("celery", 0, -1)]
        places += [json.dumps(json.loads(v)[0]).encode() for v in redis_client.hvals("unacked")]
        numbers = {number_of(message) for message in places} | set(lines(done))
        assert numbers == set(range(sent))
    start("last")
    eventually(lambda: set(lines(done)) == set(range(sent)), 30)
    eventually(lambda: held(redis_client) == (0, 0))


def number_of(message: bytes) -> int:
    body = base64.b64decode(json.loads(message)["body"])
    number: int = json.loads(body)[0][1]
    return number


def test_no_worker_takes_the_live_leases_of_one_with_a_longer_timeout(
    start: StartWorker, app: Celery, redis_client: redis.Redis, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    start("patient", LEASE="30", PREFETCH="100")
    for n in range(100):
        call(app, "note", str(done), n, 0.1)
    eventually(lambda: held(redis_client)[0] == 0, 20)
    start("hasty", LEASE="1.5")
    start("elsewhere", "-Q", "other", LEASE="1.5")
    for n in range(100, 150):
        call(app, "note", str(done), n, 0.1)
    eventually(lambda: set(lines(done)) == set(range(150)), 60)
    eventually(lambda: held(redis_client) == (0, 0), 20)
    assert sorted(lines(done)) == list(range(150))


def test_a_stopped_worker_loses_its_jobs_but_not_their_outcome(
    start: StartWorker, app: Celery, redis_client: redis.Redis, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    for n in range(100):
        call(app, "note", str(done), n, 0.02)
    stopped = start("stopped")
    eventually(lambda: len(lines(done)) > 10)
    stopped.signal(signal.SIGSTOP)
    assert held(redis_client)[1] > 50
    # The timeout of the stopped worker counts, not that of the other one.
    start("other", LEASE="600")
    eventually(lambda: set(lines(done)) == set(range(100)), 30)
    stopped.signal(signal.SIGCONT)
    eventually(lambda: held(redis_client) == (0, 0), 20)
    assert call(app, "add", 1, 2).get(timeout=10) == 3
    assert stopped.running


def test_a_worker_survives_killed_connections_and_restarts_of_the_server(
    valkey_server: Callable[..., ValkeyServer], start: StartWorker, tmp_path: Path
) -> None:
    server = valkey_server()
    worker = start("one", url=server.url)
    done = tmp_path / "done"
    with client_app(server.url) as app, server.client() as client:
        for n in range(5):
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            call(app, "note", str(done), n)
            eventually(lambda n=n: n in lines(done), 20, message=worker.log)
        for n in range(5, 8):
            server.kill()
            server.start()
            call(app, "note", str(done), n)
            eventually(lambda n=n: n in lines(done), 40, message=worker.log)
        eventually(lambda: held(client) == (0, 0), 20)
    assert worker.running


def test_a_worker_follows_sentinel_to_the_new_primary(
    processes: Processes, start: StartWorker, tmp_path: Path
) -> None:
    ports = [free_port(), free_port()]
    servers = []
    for port in ports:
        options = ("--replicaof", "127.0.0.1", str(ports[0])) if port != ports[0] else ()
        servers.append(ValkeyServer(processes, tmp_path / str(port), port, options=options))
        servers[-1].folder = processes.folder / f"v{port}"
        servers[-1].start()
    sentinels = [free_port() for _ in range(3)]
    program = local.command(processes.folder / "x", processes.folder / "x.sock", port=0)[0]
    for port in sentinels:
        config = processes.folder / f"sentinel{port}.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\n"
            f"sentinel monitor main 127.0.0.1 {ports[0]} 2\n"
            "sentinel down-after-milliseconds main 1000\n"
            "sentinel failover-timeout main 5000\n"
        )
        processes.start([program, str(config), "--sentinel"], name="sentinel")
    eventually(lambda: knows_all(sentinels[0]), 30, message=processes.logs)
    url = ";".join(f"sentinel://127.0.0.1:{port}" for port in sentinels)
    worker = start("one", url=url, MASTER="main")
    done = tmp_path / "done"
    with client_app(url, master_name="main") as app:
        call(app, "note", str(done), 0)
        eventually(lambda: lines(done) == [0], 20, message=worker.log)
        servers[0].kill()
        with servers[1].client() as client:
            eventually(lambda: is_primary(client), 30)
        eventually(lambda: master(sentinels[0])["port"] == ports[1], 30)
        call(app, "note", str(done), 1)
        eventually(lambda: lines(done) == [0, 1], 60, message=worker.log)
    assert worker.running


def is_primary(client: redis.Redis) -> bool:
    try:
        return bool(client.info("replication")["role"] == "master")  # type: ignore[index]
    except redis.ConnectionError:
        # Sentinel drops all clients of a server that it promotes.
        return False


def knows_all(port: int) -> bool:
    try:
        state = master(port)
    except redis.RedisError:
        return False
    return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == 2)


def master(sentinel: int) -> dict[str, Any]:
    """A sentinel's view of the primary."""
    with redis.Redis(port=sentinel) as client:
        state: dict[str, Any] = client.sentinel_master("main")
        return state
