"""`python -m bench` (`make bench`): the set of benchmarks, one process each, in a quarter hour.

`--publish` also writes the figures into `docs/benchmarks.md` and `docs/benchmarks/results.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.report import Table

NAMES = ("gemm", "throughput", "latency", "service", "overhead", "waiting", "lanes", "bulk", "idle")
DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"
RESULTS = DOCS / "benchmarks" / "results.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="all of them by default")
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds")
    parser.add_argument("--out", type=Path, default=None, help="folder for the figures as JSON")
    parser.add_argument("--publish", action="store_true", help="write the figures into docs/")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="embedq-bench-"))
    began = time.monotonic()
    failed = []
    for name in options.names or NAMES:
        print(f"\n=== {name}", flush=True)
        program = [sys.executable, "-m", f"bench.{name}", "--out", str(out)]
        if subprocess.call([*program, "--quick"] if options.quick else program):
            failed.append(name)
    print(f"\n{time.monotonic() - began:.0f} s; figures as JSON in {out}")
    if failed:
        print(f"failed: {', '.join(failed)}")
        return 1
    if options.publish:
        publish(out)
    return 0


def publish(out: Path) -> None:
    """Put the figures that lie in a folder into the documentation."""
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    RESULTS.parent.mkdir(exist_ok=True)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | reports, indent=1) + "\n")
    page = PAGE.read_text()
    for name, report in reports.items():
        shown = re.escape(f"<!-- {name} -->")
        block = f"<!-- {name} -->\n{_markdown(report)}\n<!-- /{name} -->"
        page = re.sub(f"{shown}.*?<!-- /{name} -->", lambda _, new=block: new, page, flags=re.S)
    PAGE.write_text(page)


def _markdown(report: dict[str, Any]) -> str:
    machine = report["machine"]
    parts = []
    for fields in report["tables"]:
        table = Table(**fields)
        notes = "".join(f"\n{note}." for note in table.notes)
        parts.append(f"**{table.title}**\n\n{table.markdown()}\n{notes}")
    where = f"{machine['date']}, {machine['cores']} of {machine['processor']}, {machine['python']}"
    return "\n".join([*parts, f"\n*{where}; {machine['versions']}.*"])


if __name__ == "__main__":
    sys.exit(main())
