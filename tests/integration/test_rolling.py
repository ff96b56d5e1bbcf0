"""The previous version and this one on the same servers, as during a rolling deployment."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import numpy as np
import pytest
import requests

from bench.costless import expected
from tests.conftest import running
from tests.integration.upgrade_app import NOTED, VECTORS, texts
from tests.integration.upgrade_stand import PATIENCE, Stand, stock_caller
from tests.integration.versions import Version, previous_code
from tests.processes import ROOT, ValkeyServer, eventually, free_port
from worker.contract.results import matrix

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(400)]

#: Accepted jobs before the next change to the workers.
SPURT = 60


class Load:
    """Callers over REST and of the task, each of one version's API, that submit until `close`.

    If the answer to a submission is not an acceptance, it is repeated under its Idempotency-Key.
    """

    def __init__(self, stands: list[Stand]) -> None:
        self.jobs: dict[str, list[str]] = {}
        self._stands = stands
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=submit, args=(number, stand))
            for number, stand in enumerate(stands)
            for submit in (self._over_rest, self._directly)
        ]
        for thread in self._threads:
            thread.start()

    def wait_for(self, jobs: int) -> None:
        """Wait until so many more jobs are accepted."""
        wanted = len(self.jobs) + jobs
        eventually(lambda: len(self.jobs) >= wanted, PATIENCE)

    def close(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _over_rest(self, caller: int, stand: Stand) -> None:
        for number, given in self._texts(f"rest {caller}"):
            path = "/jobs?wait=1" if number % 3 == 0 else "/jobs"
            while not self._stopping.is_set():
                answer = stand.post(path, given, key=given[0])
                if answer.status_code == 200:
                    # Such a job is stored for a minute only.
                    check_vectors(answer.json()["result"], given)
                    break
                if answer.ok:
                    self.jobs[answer.json()["id"]] = given
                    break
                assert answer.status_code == 503, answer.text

    def _directly(self, caller: int, stand: Stand) -> None:
        for number, given in self._texts(f"direct {caller}"):
            self.jobs[stand.send(given, priority=number % 3 * 3)] = given

    def _texts(self, caller: str) -> Iterator[tuple[int, list[str]]]:
        rng = random.Random(caller)
        for number in count():
            if self._stopping.wait(rng.random() * 0.1):
                return
            yield number, [f"{caller} {number} {at}" for at in range(rng.randint(1, 5))]


@pytest.fixture(params=["one server", "two servers"])
def stands(request: pytest.FixtureRequest) -> Iterator[list[Stand]]:
    """Each version's API, and direct callers with its code."""
    with running() as processes, ExitStack() as stack:
        names = ("broker", "results")[: 1 if request.param == "one server" else 2]
        servers = [ValkeyServer(processes, processes.folder / name, free_port()) for name in names]
        for server in servers:
            server.start()
        broker, results = servers[0], servers[-1]
        clients = [stack.enter_context(server.client()) for server in (broker, results)]
        app = stack.enter_context(stock_caller(broker.url, results.url))
        env = {"EMBEDQ_FILES": str(processes.folder / "files"), "EMBEDQ_BENCH_FORWARD_MS": "30"}
        found = []
        for code in (previous_code(processes.folder / "previous"), ROOT):
            gate = processes.folder / "gate"
            version = Version(processes, code, broker.url, results.url, gate, env)
            api = version.start_api()
            found.append(Stand(processes, version, app, *clients, api, api))
        yield found


def test_old_and_new_processes_share_the_work_and_all_of_it_ends_right(stands: list[Stand]) -> None:
    old, new = stands
    old_worker = old.producer.start_worker()
    load = Load(stands)
    try:
        # New APIs and callers before new workers.
        run(stands, "old worker")
        load.wait_for(SPURT)
        new_worker = new.producer.start_worker()
        run(stands, "both workers")
        load.wait_for(SPURT)
        old_worker.kill()
        load.wait_for(SPURT)
        old_worker = old.producer.start_worker()
        new_worker.kill()
        load.wait_for(SPURT)
        new.producer.start_worker()
        load.wait_for(SPURT)
        old_worker.stop()
        # Old APIs and callers after the last old worker.
        run(stands, "new worker")
    finally:
        load.close()
    new.wait_until_idle()
    for stand in stands:
        check(stand, load.jobs)
    eventually(lambda: not new.counters(), PATIENCE, message=lambda: str(new.counters()))


def run(stands: list[Stand], phase: str) -> None:
    """Every kind of job from each version's callers; linked tasks run once."""
    for stand, version in zip(stands, ("old", "new"), strict=True):
        stand.submit(f"{version} callers, {phase}")
    for writer in stands:
        for of, ids in writer.ids.items():
            writer.wait_for_notes(of)
            notes = {note: often for note, often in writer.notes().items() if note[0] == of}
            assert notes == {(of, name, number): 1 for name, number in NOTED.items()}
            for reader in stands:
                for name in VECTORS:
                    # The result of a waiting request is stored for a minute.
                    if name != "waited" or of.endswith(phase):
                        check_job(reader, ids[name], texts(of, name))
                for name in ("cancelled", "expired"):
                    assert reader.job(ids[name])["status"] == "cancelled"


def check(stand: Stand, jobs: dict[str, list[str]]) -> None:
    """Every accepted job has its vectors."""
    assert len(jobs) > 5 * SPURT
    for job_id, given in jobs.items():
        check_job(stand, job_id, given)


def check_job(stand: Stand, job_id: str, given: list[str]) -> None:
    job = stand.job(job_id, wait=30)
    assert job["status"] == "succeeded", job
    found = requests.get(f"{stand.api.url}/jobs/{job_id}/result", timeout=30)
    check_vectors(found.json(), given)


def check_vectors(result: Any, given: list[str]) -> None:
    vectors, _ = matrix(result["embeddings"])
    np.testing.assert_allclose(vectors, expected(given), atol=1e-5)
