"""Everything is killed under load, in short; `make soak` does it for as long as it takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.processes import ROOT, clean_environment

EVENTS = {"--kills": 4, "--connection-kills": 2, "--valkey-kills": 2, "--stops": 1}
OPTIONS = {"--pause": 1.0, "--rest": 2, "--direct": 2, "--seed": 7}


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(300)
def test_every_accepted_job_ends_right_whatever_is_killed() -> None:
    options = [str(part) for option in (EVENTS | OPTIONS).items() for part in option]
    # A process of its own: its costless model would be this one's, too.
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", *options],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["accepted"] > 100
    assert report["right"] == report["accepted"], report
    assert report["lost"] == 0
    assert report["left"] | {"ledger tokens": 0} == dict.fromkeys(report["left"], 0)
