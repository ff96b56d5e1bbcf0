"""Hosts with clocks that are wrong by minutes, each differently, serve as one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pytest
import redis
import requests

from bench.costless import expected
from tests.clock_shift import shifted
from tests.conftest import running
from tests.integration.test_batches import answers, client_of, create, ended, request_of
from tests.processes import (
    START_TIMEOUT_S,
    Api,
    Process,
    Processes,
    ValkeyServer,
    eventually,
    free_port,
    start_api,
    start_worker,
)
from tests.processes import answers as is_up
from worker.contract.settings import DEFAULT_MODEL_NAME

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(240)]

#: Seconds that the clocks of the API's host and of the workers' host are ahead.
SHIFTS = {
    "API half a minute ahead": (31, 0),
    "API 20 s behind": (-20, 0),
    "API five minutes ahead": (300, 0),
    "worker five minutes ahead": (0, 300),
    "worker five minutes behind": (0, -300),
    # Longer than the minutes or the hour after which state is forgotten or removed.
    "both wrong by two hours": (-7200, 7200),
}
#: Seconds that a time may differ from Redis' on a busy machine.
TOLERANCE = 20.0
TEXTS = ["what time is it", "it depends on whom you ask"]


@dataclass
class Stand:
    processes: Processes
    client: redis.Redis
    api: Api
    workers: list[Process]
    url: str
    #: Seconds that the clock of the API's host is ahead.
    shift: float

    def post(self, path: str, **headers: str) -> requests.Response:
        body = {"input": TEXTS, "model": DEFAULT_MODEL_NAME}
        return requests.post(self.api.url + path, json=body, headers=headers, timeout=60)

    def near_now(self, value: float) -> bool:
        """Whether a time in seconds since the epoch is about now, by Redis' clock."""
        seconds, micros = self.client.time()
        return abs(seconds + micros / 1e6 - value) < TOLERANCE


@pytest.fixture(scope="module", params=SHIFTS.values(), ids=SHIFTS)
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    of_api, of_worker = request.param
    with running() as processes:
        server = ValkeyServer(processes, processes.folder / "data", free_port(), persistent=False)
        server.start()
        env = {"EMBEDQ_FILES": str(processes.folder / "files"), "EMBEDQ_LEASE_SECONDS": "3"}
        # One is right and one is wrong: they must see each other alive, and share the work.
        workers = [
            start_worker(processes, server.url, app="bench.costless", env=env | shifted(seconds))
            for seconds in (0, of_worker)
        ]
        api = start_api(processes, server.url, env=env | shifted(of_api))
        with server.client() as client:
            yield Stand(processes, client, api, workers, server.url, of_api)


def test_the_clocks_are_wrong(stand: Stand) -> None:
    program = (
        "import time; from datetime import UTC, datetime; "
        "print(time.time(), time.time_ns() / 1e9, datetime.now(UTC).timestamp())"
    )
    process = stand.processes.python("-c", program, env=shifted(300))
    assert process.wait() == 0, process.log()
    for value in map(float, process.log().split()):
        assert stand.near_now(value - 300)


def test_the_service_is_ready_and_counts_both_workers(stand: Stand) -> None:
    eventually(lambda: is_up(stand.api, "/readyz"), START_TIMEOUT_S)
    metrics = requests.get(f"{stand.api.url}/metrics", timeout=30).text
    assert "embedq_workers 2.0" in metrics.splitlines()


def test_a_job_runs_and_its_times_are_in_order(stand: Stand) -> None:
    answer = stand.post("/jobs?wait=30")
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["status"] == "succeeded"
    times = [
        datetime.fromisoformat(job[name]).timestamp()
        for name in ("created_at", "started_at", "finished_at")
    ]
    assert times == sorted(times)
    assert all(map(stand.near_now, times))


def test_an_idempotency_key_stands_for_its_job(stand: Stand) -> None:
    first, again = (stand.post("/jobs", **{"Idempotency-Key": "once"}) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("number", range(4))
def test_embeddings_come_within_ten_seconds(stand: Stand, number: int) -> None:
    answer = stand.post("/v1/embeddings", **{"X-Stainless-Read-Timeout": "10"})
    assert answer.status_code == 200, answer.text
    found = [one["embedding"] for one in answer.json()["data"]]
    np.testing.assert_allclose(found, expected(TEXTS), atol=1e-5)


@pytest.mark.parametrize("option", ["expires=20", "countdown=1", "countdown=1, expires=20"])
def test_a_direct_call_with_times_from_now_runs_in_time(stand: Stand, option: str) -> None:
    program = (
        "from worker.tasks import embed; "
        f"print(embed.apply_async((['a'],), {option}).get(timeout=30)['dimensions'])"
    )
    urls = dict.fromkeys(("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"), stand.url)
    caller = stand.processes.python("-c", program, env=urls | shifted(stand.shift))
    assert caller.wait(60) == 0, caller.log()


def test_a_batch_completes_and_its_files_expire_by_redis_clock(stand: Stand) -> None:
    with client_of(stand.api) as client:
        kept = client.files.create(
            file=b"{}\n", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        batch = ended(client, create(client, [request_of(f"r{n}", str(n)) for n in range(20)]))
        assert batch.status == "completed", batch
        assert len(answers(client, batch.output_file_id)) == 20
        assert batch.expires_at is not None
        times = [batch.created_at, batch.in_progress_at, batch.completed_at]
        assert times == sorted(times)
        assert all(map(stand.near_now, [*times, batch.expires_at - 24 * 3600]))
        # The end of a batch removes expired files.
        file = client.files.retrieve(kept.id)
        assert file.expires_at is not None
        assert stand.near_now(file.created_at)
        assert stand.near_now(file.expires_at - 3600)
        assert client.files.content(kept.id).read() == b"{}\n"


def test_a_job_is_cancelled(stand: Stand) -> None:
    for worker in stand.workers:
        worker.signal(signal.SIGSTOP)
    try:
        job_id = stand.post("/jobs").json()["id"]
        requests.delete(f"{stand.api.url}/jobs/{job_id}", timeout=30).raise_for_status()
    finally:
        for worker in stand.workers:
            worker.signal(signal.SIGCONT)
    job = requests.get(f"{stand.api.url}/jobs/{job_id}", timeout=30).json()
    assert job["status"] == "cancelled"
    assert stand.near_now(datetime.fromisoformat(job["finished_at"]).timestamp())
