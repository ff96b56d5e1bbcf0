"""`python -m bench.soak links`: a worker is stopped past its lease and continued.

Another worker runs its jobs meanwhile, so that both workers have run them. Each job's link must be
fired once, and each job must be counted once.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import redis
import requests
from celery import Celery, signature

from bench.costless import expected
from bench.soak.audit import leftovers, outcomes, wait_for_empty, wait_for_outcomes
from bench.soak.linked import FIRED
from bench.soak.stage import LEASE_SECONDS, QUEUE, Stage
from tests.processes import eventually
from worker.contract import messages

#: Seconds for the jobs of a round to end.
_PATIENCE = 120
#: Seconds until the workers have reported their counts.
_TOLD = 5
#: One job in this number has no link, and is completed in bulk with others.
_PLAIN = 4


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak links", description=__doc__)
    parser.add_argument("--stops", type=int, default=20, help="of a worker, past its lease")
    parser.add_argument("--jobs", type=int, default=200, help="before each")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run's moments")
    options = parser.parse_args(arguments)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    stage = Stage(workers=2, transport="embedq", app="bench.soak.linked", forward_ms=50)
    try:
        report = _soak(stage, options, random.Random(seed))
    finally:
        stage.close()
    print(json.dumps(report, indent=2))
    return 1 if report["violations"] else 0


def _soak(stage: Stage, options: argparse.Namespace, rng: random.Random) -> dict[str, Any]:
    jobs: dict[str, list[str]] = {}
    timer = threading.Event()
    with stage.client() as client:
        for number in range(options.stops):
            some = _submit(stage, options.jobs, number)
            jobs |= some
            timer.wait(rng.random() * 0.5)
            stopped = stage.stop_worker(number % 2)
            timer.wait(LEASE_SECONDS * 1.6)
            wait_for_outcomes(client, list(some), _PATIENCE)
            stopped.signal(signal.SIGCONT)
            wait_for_empty(client, QUEUE)
        linked = [job for at, job in enumerate(jobs) if at % _PLAIN]
        eventually(lambda: client.scard(FIRED) >= len(linked), _PATIENCE)
        wait_for_empty(client, QUEUE)
        return _report(stage, client, jobs, linked)


def _submit(stage: Stage, count: int, number: int) -> dict[str, list[str]]:
    """Send jobs in a stock program's way, most of them with a link."""
    jobs = {messages.new_id(): [f"{number}-{at}"] for at in range(count)}
    app = Celery(broker=stage.url, backend=stage.url, set_as_current=False)
    app.conf.task_default_queue = QUEUE
    app.backend.on_task_call = lambda *_: None
    for at, (job, texts) in enumerate(jobs.items()):
        link = (
            signature("bench.fired", args=(job,), immutable=True, app=app) if at % _PLAIN else None
        )
        app.send_task("embedq.embed", args=[texts], task_id=job, link=link)
    app.close()
    return jobs


def _report(
    stage: Stage, client: redis.Redis, jobs: dict[str, list[str]], linked: list[str]
) -> dict[str, Any]:
    members = cast("set[bytes]", client.smembers(FIRED))
    messages_of = Counter(one.split()[0] for one in members)
    fired = Counter(messages_of.values())
    counts = outcomes(client, jobs, expected)
    threading.Event().wait(_TOLD)
    counted = _counted(stage)
    report: dict[str, Any] = {
        "accepted": len(jobs),
        "right": counts.pop("right", 0),
        **counts,
        "jobs with links": len(linked),
        "links fired so often": dict(fired),
        "jobs counted as ended": counted,
        "left": leftovers(client, QUEUE),
    }
    found = {
        "jobs ended wrong": report["right"] != len(jobs),
        "links were not fired": len(messages_of) != len(linked),
        "links were fired twice": len(members) != len(linked),
        "jobs were not counted once each": counted != len(jobs),
        "something is left": any(report["left"].values()),
    }
    return report | {"violations": [name for name, is_so in found.items() if is_so]}


def _counted(stage: Stage) -> int:
    """Return the number of ended jobs in the workers' metrics."""
    assert stage.api is not None
    lines = requests.get(f"{stage.api.url}/metrics", timeout=30).text.splitlines()
    return sum(
        int(float(line.split()[-1]))
        for line in lines
        if line.startswith("embedq_jobs_ended_total{")
    )
