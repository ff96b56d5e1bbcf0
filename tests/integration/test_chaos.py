"""Everything is killed under load, in short; `make soak` does it for as long as it takes."""

from __future__ import annotations

import pytest

from bench.soak.__main__ import soak
from bench.soak.chaos import Plan


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(300)
def test_every_accepted_job_ends_right_whatever_is_killed() -> None:
    plan = Plan(worker_kills=4, connection_kills=2, valkey_kills=2, worker_stops=1)
    report = soak(plan, pause=1.0, seed=7, callers=(2, 2), quiet=True)
    assert report["accepted"] > 100
    assert report["right"] == report["accepted"], report
    assert report["lost"] == 0
    assert report["left"] | {"ledger tokens": 0} == dict.fromkeys(report["left"], 0)
