"""`python -m bench.soak chaos`: kill processes under load, and check the outcome of each job."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from typing import Any

from bench.costless import expected
from bench.soak.access import Access
from bench.soak.chaos import Chaos, Plan
from bench.soak.load import Load
from bench.soak.settle import settle
from bench.soak.stage import Stage

#: API keys that the callers over REST share.
_OWNERS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, transport {options.transport}", flush=True)
    report = soak(
        Plan(options.kills, options.connection_kills, options.valkey_kills, options.stops),
        transport=options.transport,
        pause=options.pause,
        seed=seed,
        callers=(options.rest, options.direct),
        access=Access(options.access),
        clocks=options.clocks,
    )
    print(json.dumps(report, indent=2))
    return 1 if report["violations"] else 0


def soak(
    plan: Plan,
    *,
    transport: str = "embedq",
    pause: float = 2.0,
    seed: int = 0,
    callers: tuple[int, int] = (4, 4),
    access: Access = Access.PLAIN,
    clocks: int = 0,
) -> dict[str, Any]:
    """Do one run; return the counts of accepted jobs, of their outcomes and of leftovers."""
    rest, direct = callers
    stage = Stage(
        workers=2,
        transport=transport,
        app="bench.costless",
        forward_ms=10,
        api=rest > 0,
        owners=_OWNERS,
        access=access,
        clocks=clocks,
    )
    try:
        load = Load(stage, rest=rest, direct=direct, pause=0.02, seed=seed, expected=expected)
        accepted = load.accepted
        started = time.monotonic()
        load.start()

        def tell(number: int, total: int, event: str) -> None:
            print(f"\r{number}/{total} {event:<12} {accepted.total} jobs", end="", flush=True)

        try:
            Chaos(stage, pause=pause, seed=seed).run(plan, tell)
        finally:
            load.stop()
        print(flush=True)
        seconds = round(time.monotonic() - started)
        return {"seconds": seconds} | settle(stage, accepted, expected)
    finally:
        stage.close()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.soak chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs of a busy worker")
    parser.add_argument("--connection-kills", type=int, default=100, help="CLIENT KILL of all")
    parser.add_argument("--valkey-kills", type=int, default=20, help="SIGKILLs of Valkey (AOF on)")
    parser.add_argument("--stops", type=int, default=5, help="SIGSTOPs of a worker past its lease")
    parser.add_argument("--pause", type=float, default=2.0, help="mean seconds between two events")
    parser.add_argument("--rest", type=int, default=4, help="callers over REST")
    parser.add_argument("--direct", type=int, default=4, help="callers of the Celery task")
    parser.add_argument("--transport", choices=["embedq", "stock"], default="embedq")
    parser.add_argument(
        "--access",
        choices=list(Access),
        default=Access.PLAIN,
        help="how processes get at Valkey: as anybody, as the documented user, by TLS",
    )
    parser.add_argument(
        "--clocks",
        type=int,
        default=0,
        help="seconds by which the API's clock is ahead, and every second worker's behind",
    )
    parser.add_argument("--seed", type=int, default=None, help="repeat a run's order of events")
    return parser.parse_args(arguments)
