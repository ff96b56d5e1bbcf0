"""`python -m bench.soak all`: one soak after another, with one seed and one summary."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report import Table
from tests.processes import ROOT


@dataclass(frozen=True)
class Part:
    """One soak. `must_hold` is False if its purpose is to show losses."""

    name: str
    command: Sequence[str]
    must_hold: bool = True


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    table = Table(f"soaks, seed {seed}", ["soak", "seconds", "holds"])
    good = True
    for part in _parts(seed, quick=options.quick):
        print(f"\n== {part.name}: python -m bench.soak {' '.join(part.command)}", flush=True)
        began = time.monotonic()
        # A separate process, so that no state of one soak remains in the next.
        status = subprocess.run(
            [sys.executable, "-m", "bench.soak", *part.command], cwd=ROOT, check=False
        ).returncode
        table.add(part.name, round(time.monotonic() - began), _verdict(part, status))
        good = good and (status == 0 or not part.must_hold)
    print(f"\n{table.text()}")
    return 0 if good else 1


def _parts(seed: int, *, quick: bool) -> list[Part]:
    seeded = ("--seed", str(seed))
    few = ("--kills", "6", "--connection-kills", "3", "--valkey-kills", "1", "--stops", "1")
    some = ("--kills", "20", "--connection-kills", "10", "--valkey-kills", "3", "--stops", "2")
    short = ("--seconds", "30", "--maxmemory-mb", "24", "--result-ttl", "5", "--fillers", "1")
    stock = "--transport stock --rest 0 --kills 12 --connection-kills 4 --valkey-kills 1 --stops 0"
    return [
        Part("chaos", ("chaos", *seeded, *(few if quick else ()))),
        Part("different clocks", ("chaos", "--clocks", "300", *seeded, *(few if quick else some))),
        Part("few rights", ("chaos", "--access", "restricted", *seeded, *(few if quick else some))),
        Part("TLS", ("chaos", "--access", "tls", *seeded, *(few if quick else some))),
        Part("links", ("links", *seeded, *(("--stops", "3") if quick else ()))),
        Part("full", ("full", *seeded, *(short if quick else ()))),
        Part("failover", ("failover", *seeded, *(("--failovers", "2") if quick else ()))),
        Part("takeover", ("takeover",)),
        Part("drift", ("drift", *(("--jobs", "50000") if quick else ()))),
        Part("kombu's transport", ("chaos", *seeded, *stock.split()), must_hold=False),
    ]


def _verdict(part: Part, status: int) -> str:
    if status == 0:
        return "yes"
    if part.must_hold:
        return "NO"
    return "no, which the count sees" if status == 1 else "did not run"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak all",
        description="all but bulk, and chaos on kombu's transport; exits with 1 where one of all "
        "but that does not hold. About an hour.",
    )
    parser.add_argument("--quick", action="store_true", help="each in about a minute")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run")
    return parser.parse_args(arguments)
