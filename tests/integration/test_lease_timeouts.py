"""Workers with different `EMBEDQ_LEASE_SECONDS`, on one queue and on two."""

from __future__ import annotations

import signal

import pytest

from tests.integration.stand import ANSWER_S, Stand, vectors
from tests.integration.test_worker import jobs_in_the_engine
from tests.processes import eventually

pytestmark = pytest.mark.timeout(180)

SHORT_S, LONG_S = 3, 60


def deadlines(stand: Stand) -> list[float]:
    """Seconds until each lease expires, the next one first."""
    seconds, _ = stand.client.time()
    scores = stand.client.zrange("unacked_index", 0, -1, withscores=True)
    return [score - seconds for _, score in scores]


def restore_something(stand: Stand) -> None:
    """Wait until some worker has looked for expired leases; there is one now."""
    stand.client.hset("unacked", "timed:0:gone:0000", '[{},"","nobodys"]')
    stand.client.zadd("unacked_index", {"timed:0:gone:0000": 1})
    eventually(lambda: stand.client.llen("nobodys"), ANSWER_S)


def test_leases_last_for_the_timeout_of_their_worker_and_no_job_counts_as_crashed(
    stand: Stand,
) -> None:
    strict = {"EMBEDQ_MAX_ATTEMPTS": "1"}
    patient = stand.start(EMBEDQ_LEASE_SECONDS=str(LONG_S), **strict)
    jobs = jobs_in_the_engine(stand, 20)
    eventually(lambda: stand.messages() == (0, 20))
    hasty = {"EMBEDQ_LEASE_SECONDS": str(SHORT_S), **strict}
    workers = [
        stand.start(ready=None, **hasty),
        stand.start(ready=None, **hasty, EMBEDQ_QUEUE="elsewhere"),
    ]
    for worker in workers:
        worker.wait_for_log(" ready.")
    # Not renewed for longer than the others' timeout.
    eventually(lambda: deadlines(stand)[0] < LONG_S - SHORT_S - 2, ANSWER_S)
    restore_something(stand)
    assert stand.messages() == (0, 20)
    stand.open_gate()
    assert [len(vectors(job.get(timeout=ANSWER_S))) for job in jobs] == [1] * 20
    eventually(stand.idle)
    assert not stand.client.keys("embedq:attempts:*") + stand.client.keys("embedq:crashes:*")
    assert all(worker.running for worker in (patient, *workers))


def test_a_worker_stopped_past_its_deadline_loses_its_jobs_and_goes_on_when_continued(
    stand: Stand,
) -> None:
    stopped = stand.start(EMBEDQ_LEASE_SECONDS=str(SHORT_S))
    jobs = jobs_in_the_engine(stand, 20)
    eventually(lambda: stand.messages() == (0, 20))
    # The timeout of the worker that takes over does not count.
    other = stand.start(EMBEDQ_LEASE_SECONDS=str(LONG_S))
    stopped.signal(signal.SIGSTOP)
    stand.open_gate()
    assert [len(vectors(job.get(timeout=2 * ANSWER_S))) for job in jobs] == [1] * 20
    stopped.signal(signal.SIGCONT)
    eventually(stand.idle, ANSWER_S)
    assert [len(vectors(job.get(timeout=ANSWER_S))) for job in jobs] == [1] * 20
    assert stopped.stop() == other.stop() == 0
    assert not stand.client.exists("unacked", "unacked_index")
