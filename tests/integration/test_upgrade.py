"""This version takes over the previous one's Redis; all jobs survive and run once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
import requests

from bench.costless import expected
from tests.conftest import running
from tests.integration.test_batches import answers, client_of, completed, ended
from tests.integration.upgrade_app import LATER, NOTED, VECTORS, texts
from tests.integration.upgrade_stand import PATIENCE, QUEUE, Stand, add_tenants, stock_caller
from tests.integration.versions import Version, previous_code
from tests.processes import ROOT, ValkeyServer, eventually, free_port
from worker.contract.lanes import PRIORITY_STEPS, Lane, lane_of, list_of
from worker.contract.results import matrix

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(400)]

#: Phases of submission with the previous version: its jobs ended there, were leased by a worker
#: that was killed, or were not fetched.
PHASES = ("ended", "leased", "queued")
#: Jobs that end without vectors, by name.
OTHERS = {"refused": "failed", "expired": "cancelled", "cancelled": "cancelled"}
#: Lines of the batch that is under way when its worker is killed, and of the others.
MANY, FEW = 3000, 20
FILE = b'{"a": "file that no batch reads"}\n'
#: Requests that are equal and under way at the same time.
EQUAL = ["two callers ask for this"]


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with running() as processes:
        server = ValkeyServer(processes, processes.folder / "data", free_port())
        server.start()
        gate, keys_file = processes.folder / "gate", processes.folder / "keys.json"
        env = {"EMBEDQ_FILES": str(processes.folder / "files"), "EMBEDQ_CACHE_MB": "8"}
        keyed = {"EMBEDQ_API_KEYS_FILE": str(keys_file)}
        tenants = add_tenants(keys_file)
        old, new = (
            Version(processes, code, server.url, server.url, gate, env)
            for code in (previous_code(processes.folder / "previous"), ROOT)
        )
        with stock_caller(server.url, server.url) as app, server.client() as client:
            apis = old.start_api(), old.start_api(**keyed)
            stand = Stand(processes, old, app, client, client, *apis, tenants)
            fill(stand, gate)
            for api in (stand.api, stand.keyed):
                api.process.kill()
            stand.api = new.start_api()
            stand.keyed = new.start_api(**keyed)
            worker = new.start_worker(**{LATER: "1"})
            take_over(stand, gate)
            yield stand
            worker.stop()


def fill(stand: Stand, gate: Path) -> None:
    """Leave every kind of state behind, with the previous version."""
    worker = stand.producer.start_worker()
    stand.submit("ended")
    stand.ids["ended"]["spent"] = accepted(stand, ["word " * 12] * 64, "spender")
    stand.ids["ended"]["later"] = stand.send("ended", task="upgrade.later")
    stand.create_batch("ended", FEW)
    with client_of(stand.api) as client:
        stand.file_id = client.files.create(file=FILE, purpose="batch").id
        ended(client, stand.batches["ended"])
        stand.create_batch("leased", MANY)
        eventually(lambda: completed(client, stand.batches["leased"]), PATIENCE, interval=0.01)
        gate.touch()
        assert completed(client, stand.batches["leased"]) < MANY
    stand.wait_for_notes("ended")
    stand.submit("leased")
    # A worker fetches a bounded part of the bulk lane.
    fetched = [list_of(QUEUE, step) for step in PRIORITY_STEPS if lane_of(step) is not Lane.BULK]
    eventually(lambda: not stand.queued(fetched), PATIENCE, message=worker.log)
    worker.kill()
    # For half a minute the worker counts as alive: the API accepts jobs.
    stand.submit("queued")
    stand.ids["queued"]["held"] = accepted(stand, texts("queued", "held") * 5, "waiter")
    threading.Thread(target=request_equal, args=(stand,), daemon=True).start()
    eventually(lambda: list(stand.client.scan_iter("*:shared:*")), PATIENCE)
    stand.create_batch("queued", FEW)


def take_over(stand: Stand, gate: Path) -> None:
    """Run the remaining jobs on the present version, after checks of the waiting ones."""
    stand.seen = {
        name: stand.job(stand.ids["queued"][name])["status"] for name in ("rest", "plain", "bulk")
    }
    stand.over = stand.post("/jobs", texts("queued", "over") * 5, tenant="waiter")
    joining = threading.Thread(target=request_equal, args=(stand,))
    joining.start()
    eventually(lambda: metric(stand, "embedq_jobs_joined_total") >= 1, PATIENCE)
    gate.unlink()
    joining.join()
    for phase in PHASES:
        stand.wait_for_notes(phase)
    with client_of(stand.api) as client:
        stand.batches = {name: ended(client, one) for name, one in stand.batches.items()}
    stand.wait_until_idle()


def accepted(stand: Stand, input: list[str], tenant: str) -> str:
    answer = stand.post("/jobs", input, tenant=tenant)
    assert answer.status_code == HTTPStatus.ACCEPTED, answer.text
    return str(answer.json()["id"])


def request_equal(stand: Stand) -> None:
    try:
        stand.equal = stand.post("/v1/embeddings", EQUAL)
    except requests.ConnectionError:
        # The previous version's API was killed.
        return


def metric(stand: Stand, name: str) -> float:
    lines = requests.get(f"{stand.api.url}/metrics", timeout=30).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", VECTORS)
def test_jobs_succeed_with_their_vectors_for_every_reader(
    stand: Stand, phase: str, name: str
) -> None:
    job = stand.job(stand.ids[phase][name])
    assert job["status"] == "succeeded", job
    assert job["progress"] == {"done": 2, "total": 2}
    assert job["created_at"] is None or job["created_at"] <= job["finished_at"]
    over_rest = requests.get(stand.api.url + job["links"]["result"], timeout=30).json()
    for result in (over_rest, stand.result(phase, name).get(timeout=10)):
        vectors, _ = matrix(result["embeddings"])
        np.testing.assert_allclose(vectors, expected(texts(phase, name)), atol=1e-5)
    assert requests.delete(f"{stand.api.url}/jobs/{job['id']}", timeout=30).ok
    assert stand.job(job["id"])["status"] == "succeeded"


@pytest.mark.parametrize("phase", PHASES)
def test_jobs_that_end_otherwise_stay_so_for_every_reader(stand: Stand, phase: str) -> None:
    found = {name: stand.job(stand.ids[phase][name]) for name in OTHERS}
    assert {name: job["status"] for name, job in found.items()} == OTHERS
    if phase != "ended":
        assert stand.job(stand.ids[phase]["withdrawn"])["status"] == "cancelled"
    assert found["refused"]["error"]["code"] == "model_not_found"
    states = {name: stand.result(phase, name).state for name in OTHERS}
    assert states.pop("refused") == "FAILURE"
    assert set(states.values()) == {"REVOKED"}
    partly = stand.result(phase, "partly").get(timeout=10)
    assert [(error["index"], error["code"]) for error in partly["errors"]] == [(2, "text_too_long")]
    assert stand.job(stand.ids[phase]["quiet"])["status"] == "succeeded"


@pytest.mark.parametrize("phase", PHASES)
def test_links_chains_and_chords_fire_once_and_none_of_a_cancelled_job(
    stand: Stand, phase: str
) -> None:
    notes = {of: count for of, count in stand.notes().items() if of[0] == phase}
    assert notes == {(phase, name, number): 1 for name, number in NOTED.items()}
    assert stand.result(phase, "chord").get(timeout=10) == 3
    assert {stand.result(phase, name).state for name in ("chain", "written")} == {"SUCCESS"}


def test_all_jobs_are_listed(stand: Stand) -> None:
    listed, path = set(), "/jobs?limit=7"
    while path:
        page = requests.get(stand.api.url + path, timeout=30).json()
        listed |= {job["id"] for job in page["data"]}
        path = page["next"]
    for phase in PHASES:
        missing = {name for name, job_id in stand.ids[phase].items() if job_id not in listed}
        assert missing <= {"stock", "spent", "held", "later", "chain", "written", "chord"}
    assert stand.job(stand.ids["queued"]["held"], tenant="waiter")["status"] == "succeeded"


@pytest.mark.parametrize("phase", PHASES)
def test_an_idempotency_key_stands_for_its_job(stand: Stand, phase: str) -> None:
    again = stand.post("/jobs", texts(phase, "rest"), key=f"{phase}-rest")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json()["id"] == stand.ids[phase]["rest"]
    other = stand.post("/jobs", ["something else"], key=f"{phase}-rest")
    assert other.json()["code"] == "idempotency_conflict"


def test_jobs_that_waited_were_seen_to_wait(stand: Stand) -> None:
    assert set(stand.seen.values()) <= {"queued", "running"}


def test_an_equal_request_joined_the_one_that_waited(stand: Stand) -> None:
    assert stand.equal.ok
    [found] = stand.equal.json()["data"]
    np.testing.assert_allclose(found["embedding"], expected(EQUAL)[0], atol=1e-5)


def test_quotas_count_what_was_used_and_what_waits(stand: Stand) -> None:
    assert stand.post("/jobs", ["a text"], tenant="spender").json()["code"] == "rate_limit_exceeded"
    assert stand.over.json()["code"] == "quota_exceeded"
    assert stand.post("/jobs", texts("queued", "over") * 5, tenant="waiter").ok


def test_files_and_batches_are_complete(stand: Stand) -> None:
    with client_of(stand.api) as client:
        assert client.files.content(stand.file_id).read() == FILE
        assert {one.id for one in client.batches.list()} == {
            one.id for one in stand.batches.values()
        }
        listed = {one.id for one in client.files.list()}
        for name, batch in stand.batches.items():
            total = MANY if name == "leased" else FEW
            assert (batch.status, batch.request_counts.completed) == ("completed", total)
            assert {batch.input_file_id, batch.output_file_id, stand.file_id} <= listed
            found = answers(client, batch.output_file_id)
            assert len(found) == total
            for number in range(total):
                [one] = found[f"r{number}"]["response"]["body"]["data"]
                want = expected([f"{name} {number}"])[0]
                np.testing.assert_allclose(one["embedding"], want, atol=1e-5)


def test_dead_letters_are_listed_and_run_again(stand: Stand) -> None:
    job_id = stand.ids["ended"]["later"]
    assert job_id in dead_letters(stand, "list")
    dead_letters(stand, "requeue", job_id)
    eventually(lambda: stand.notes()["ended", "later", 0], PATIENCE)
    assert job_id not in dead_letters(stand, "list")


def test_nothing_is_left_over(stand: Stand) -> None:
    stand.wait_until_idle()
    assert stand.counters() == {}


def dead_letters(stand: Stand, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("embedq")), "dead-letters", *arguments]
    process = stand.processes.start(command, env=stand.producer.servers)
    assert process.wait(60) == 0, process.log()
    return process.log()
