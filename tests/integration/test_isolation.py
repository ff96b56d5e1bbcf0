"""Jobs that end or stop a worker in any stage: they fail as poisoned, and all others succeed."""

from __future__ import annotations

import pytest

from tests.integration import users_app
from tests.integration.stand import ANSWER_S, Stand, send, vectors
from tests.processes import eventually
from worker.contract.errors import JobFailed
from worker.watchdog import EX_HUNG

pytestmark = pytest.mark.timeout(240)

#: Seconds until the jobs of a dead worker run elsewhere, and until a thread counts as hung.
SETTINGS = {"EMBEDQ_LEASE_SECONDS": "3", "EMBEDQ_MAX_ATTEMPTS": "1", "EMBEDQ_FORWARD_SECONDS": "5"}


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (users_app.DEADLY_TO_READ, 9),
        (users_app.DEADLY_TO_WRITE, 9),
        (users_app.ENDLESS, EX_HUNG),
    ],
)
def test_a_job_that_stops_workers_in_any_stage_fails_as_poisoned_and_others_succeed(
    text: str, status: int, stand: Stand
) -> None:
    first = stand.start(**SETTINGS)
    stand.close_gate()
    mates = [send(["a batch of its own"])]
    stand.wait_until_encoding()
    mates += [send([f"mate {number}", f"its other text {number}"]) for number in range(20)]
    eventually(lambda: stand.messages() == (0, 21))
    poison = send([text])
    # Jobs behind it in the queue, too.
    mates += [send([f"later {number}"]) for number in range(5)]
    stand.open_gate()
    assert first.wait(60) == status
    if status == EX_HUNG:
        assert "The thread embedq-tokenize has been busy for more than 5 s" in first.log()
    others = [stand.start(**SETTINGS) for _ in range(2)]
    with pytest.raises(JobFailed) as caught:
        poison.get(timeout=90)
    assert caught.value.code == "poisoned"
    for job in mates:
        assert len(vectors(job.get(timeout=ANSWER_S))) in (1, 2)
    assert sorted(other.running for other in others) == [False, True]
    eventually(stand.idle, ANSWER_S)
    assert stand.record(poison.id) == ("failed", "poisoned")
    assert not stand.client.keys("embedq:attempts:*")
