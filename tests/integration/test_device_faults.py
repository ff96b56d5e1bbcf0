"""Errors of the device under a real worker: no job fails because of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration import users_app
from tests.integration.stand import ANSWER_S, Stand, send, vectors
from tests.processes import eventually

pytestmark = pytest.mark.timeout(240)

#: Seconds until the jobs of a dead worker run elsewhere, and until a thread counts as hung.
SETTINGS = {"EMBEDQ_LEASE_SECONDS": "3", "EMBEDQ_FORWARD_SECONDS": "2"}
#: Exit code of a worker with a dead engine.
EX_SOFTWARE = 70


@contextmanager
def faulty(stand: Stand, message: str) -> Iterator[None]:
    """Every forward pass inside the block raises an error with this message."""
    file = stand.gate / users_app.FAULT
    file.write_text(message)
    try:
        yield
    finally:
        file.unlink()


def test_a_lost_device_stops_the_worker_with_its_error_and_the_jobs_run_elsewhere(
    stand: Stand,
) -> None:
    message = "CUDA error: uncorrectable ECC error encountered"
    worker = stand.start(**SETTINGS)
    with faulty(stand, f"{message}\nSearch for a code in the documentation."):
        jobs = [send([f"text {number}", "another"]) for number in range(10)]
        assert worker.wait(ANSWER_S) == EX_SOFTWARE
    assert f"DeviceLost('{message}')" in worker.log()
    stand.start(**SETTINGS)
    for job in jobs:
        assert len(vectors(job.get(timeout=ANSWER_S))) == 2
    eventually(stand.idle, ANSWER_S)


def test_a_full_device_keeps_its_worker_waiting_and_its_jobs(stand: Stand) -> None:
    worker = stand.start(**SETTINGS)
    with faulty(stand, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"):
        jobs = [send([f"text {number}"]) for number in range(10)]
        # The preceding backoff of 3.2 s is longer than the limit for a hang.
        eventually(lambda: "retrying in 6.4 s" in worker.log(), ANSWER_S)
        assert "The device is full" in worker.log()
        assert worker.running
    for job in jobs:
        assert len(vectors(job.get(timeout=ANSWER_S))) == 1
    eventually(stand.idle, ANSWER_S)


def test_a_worker_with_a_full_device_stops_when_asked_and_returns_its_jobs(stand: Stand) -> None:
    worker = stand.start(**SETTINGS)
    with faulty(stand, "CUDA out of memory: CUDA error: out of memory"):
        jobs = [send([f"text {number}"]) for number in range(10)]
        eventually(lambda: "The device is full" in worker.log(), ANSWER_S)
        worker.stop()
        assert worker.wait(ANSWER_S) == 0
    eventually(lambda: stand.messages() == (10, 0), ANSWER_S)
    stand.start(**SETTINGS)
    for job in jobs:
        assert len(vectors(job.get(timeout=ANSWER_S))) == 1
