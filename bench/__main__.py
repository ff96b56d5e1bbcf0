"""`python -m bench` (`make bench`): the set of benchmarks, one process each, in a quarter hour.

`--publish` writes the figures of each benchmark into the documentation as soon as it has ended. A
later failure does not lose them. `--resume` continues an interrupted run and skips the benchmarks
that have ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Approximate seconds of each benchmark on two cores.
SECONDS = {
    "gemm": 40,
    "throughput": 250,
    "peers": 240,
    "latency": 120,
    "growth": 45,
    "service": 30,
    "overhead": 50,
    "cost": 40,
    "waiting": 15,
    "lanes": 230,
    "idle": 30,
}
#: Not part of the set.
ALONE = {"bulk": 300, "leak": 900, "gpu": 500}
#: Multiple of the expected time after which a benchmark hangs. A busy machine needs two to five.
_PATIENCE = 10


def main() -> int:
    options = _parse()
    out = options.out or ROOT / "build" / ("bench-quick" if options.quick else "bench")
    names = options.names or [*SECONDS]
    if options.resume:
        names = [name for name in names if not (out / f"{name}.json").exists()]
    _warn_of_load()
    began = time.monotonic()
    failed = []
    for number, name in enumerate(names):
        left = sum(_expected(other, options.quick) for other in names[number:])
        print(f"\n=== {name}: {number + 1} of {len(names)}, {left / 60:.0f} min to go", flush=True)
        file = out / f"{name}.json"
        file.unlink(missing_ok=True)
        if not _ran(name, out, options.quick):
            failed.append(name)
        elif options.publish:
            # Imported late: drawing pictures needs more libraries than a benchmark.
            from bench.publish import publish

            publish({name: json.loads(file.read_text())})
    print(f"\n{(time.monotonic() - began) / 60:.1f} min; figures as JSON in {out}")
    if options.publish:
        print("docs/benchmarks.md and docs/benchmarks/ have the figures of those that ended")
    if failed:
        print(f"failed: {', '.join(failed)}; the same command with --resume tries them again")
    return int(bool(failed))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all of the set by default")
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds")
    parser.add_argument("--out", type=Path, default=None, help="folder for the figures as JSON")
    parser.add_argument("--publish", action="store_true", help="write the figures into docs/")
    parser.add_argument("--resume", action="store_true", help="only those without figures in --out")
    options = parser.parse_args()
    for name in options.names:
        if name not in SECONDS | ALONE:
            parser.error(f"{name!r} is none of {', '.join(SECONDS | ALONE)}")
    if options.quick and options.publish:
        parser.error("what --quick measures is not for publishing")
    return options


def _ran(name: str, out: Path, quick: bool) -> bool:
    """Run a benchmark; return whether it succeeded in time."""
    program = [sys.executable, "-m", f"bench.{name}", "--out", str(out)]
    limit = _PATIENCE * _expected(name, quick)
    try:
        return not subprocess.call([*program, "--quick"] if quick else program, timeout=limit)
    except subprocess.TimeoutExpired:
        print(f"{name} has not ended within {limit:.0f} s")
        return False


def _expected(name: str, quick: bool) -> float:
    # Starting the processes takes time, even in a quick run.
    return 45.0 if quick else float((SECONDS | ALONE)[name])


def _warn_of_load() -> None:
    """Print a warning if the machine is not idle: its figures then mean little."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 4:
        print(f"This machine is busy: {load:.1f} programs ran on its {cores} cores just now.")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command with --resume goes on from here")
