"""A short run of all faults under load; `make soak` runs them for longer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

import pytest

from tests.processes import run_python

EVENTS = {"--kills": 4, "--connection-kills": 2, "--valkey-kills": 2, "--stops": 1}
OPTIONS = {"--pause": 1.0, "--rest": 2, "--direct": 2, "--seed": 7}
#: A process's connections to the server, and hosts with clocks that differ by minutes.
WAYS = {
    "few rights": {"--access": "restricted"},
    "TLS": {"--access": "tls"},
    "different clocks": {"--clocks": 300},
}
FEW_EVENTS = {
    "--kills": 2,
    "--connection-kills": 1,
    "--valkey-kills": 1,
    "--stops": 0,
    "--pause": 3,
}
LINKS = {"--stops": 2, "--jobs": 100, "--seed": 2}
# Results are bounded by memory alone. The API's own bound, which forgets by the minute, is not
# under test here.
PAST_MEMORY = {"--seconds": 15, "--maxmemory-mb": 20, "--result-mb": 1000, "--result-ttl": 4}
FILLED = {"--fillers": 1, "--filler-seconds": 3, "--rest": 2, "--direct": 3, "--seed": 7}
FAILOVER = {"--failovers": 1, "--pause": 2, "--rest": 2, "--direct": 2}
# The soak has tighter time bounds, for an otherwise idle machine.
TAKEOVER = {"--jobs": 300, "--lease-seconds": 4, "--first-within": 90, "--most-pause": 10}

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(300)]


def soak(name: str, options: Mapping[str, float | str]) -> dict[str, Any]:
    """Return the report of a soak without violations.

    In a process of its own: its costless model would replace this process's model, too.
    """
    arguments = [str(part) for option in options.items() for part in option]
    done = run_python("-m", "bench.soak", name, *arguments, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["violations"] == []
    assert report["right"] == report["accepted"] > 100, report
    return report


def test_every_accepted_job_ends_right_whatever_is_killed() -> None:
    report = soak("chaos", EVENTS | OPTIONS)
    assert report["lost"] == 0
    assert report["left"] | {"ledger tokens": 0} == dict.fromkeys(report["left"], 0)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_accepted_job_ends_right_by_every_way_to_the_server(
    way: Mapping[str, float | str],
) -> None:
    if "tls" in way.values() and shutil.which("openssl") is None:
        pytest.skip("needs openssl to make certificates")
    report = soak("chaos", EVENTS | OPTIONS | FEW_EVENTS | way)
    assert report["answers"]["sent"]
    assert report["answers"]["202"]


def test_links_of_a_worker_that_is_stopped_and_continued_are_fired_once() -> None:
    assert soak("links", LINKS)["jobs with links"] == 150


def test_every_accepted_job_ends_right_while_redis_is_full() -> None:
    report = soak("full", PAST_MEMORY | FILLED)
    assert report["answers"]["refused: 503 results_full"]
    assert report["answers"]["refused: Redis is full"]


def test_every_accepted_job_ends_right_when_sentinel_names_another_primary() -> None:
    assert soak("failover", FAILOVER)["accepted after the last one"] > 0


def test_all_that_a_killed_worker_held_runs_on_another() -> None:
    assert soak("takeover", TAKEOVER)["leased when it was killed"] == TAKEOVER["--jobs"]
