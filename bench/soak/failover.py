"""`python -m bench.soak failover`: Sentinel promotes the replica, again and again, under load."""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence

from bench.costless import expected
from bench.soak.load import Load
from bench.soak.settle import settle
from bench.soak.stage import Stage

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGTERM}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak failover", description=__doc__)
    parser.add_argument("--failovers", type=int, default=10)
    parser.add_argument(
        "--how",
        choices=list(_SIGNALS),
        default="stop",
        help="the primary is asked to and lets its replica catch up; or is killed, and what it has "
        "not passed on is lost to Redis itself, however little",
    )
    parser.add_argument("--pause", type=float, default=5, help="seconds of load before each")
    parser.add_argument("--rest", type=int, default=4, help="callers over REST")
    parser.add_argument("--direct", type=int, default=4, help="callers of the Celery task")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run's load")
    options = parser.parse_args(arguments)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    stage = Stage(
        workers=2,
        transport="embedq",
        app="bench.costless",
        forward_ms=10,
        owners=3,
        sentinel=True,
    )
    try:
        load = Load(
            stage,
            rest=options.rest,
            direct=options.direct,
            pause=0.02,
            seed=seed,
            expected=expected,
        )
        began, timer = time.monotonic(), threading.Event()
        load.start()
        for number in range(options.failovers):
            timer.wait(options.pause)
            stage.fail_over(_SIGNALS[options.how])
            jobs = load.accepted.total
            print(f"\rfailover {number + 1}, {jobs} jobs", end="", file=sys.stderr, flush=True)
        timer.wait(options.pause)
        after = load.accepted.total - jobs
        load.stop()
        report = {
            "seconds": round(time.monotonic() - began),
            "failovers": options.failovers,
            "accepted after the last one": after,
        } | settle(stage, load.accepted, expected)
    finally:
        stage.close()
    if not after:
        report["violations"].append("nothing was accepted after the last failover")
    print(json.dumps(report, indent=2))
    return 1 if report["violations"] else 0
