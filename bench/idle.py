"""The cost of an idle worker, an idle API and the Valkey between them."""

from __future__ import annotations

import threading
import time

from bench.load import loads
from bench.report import Options, Table, run
from bench.stage import cpu_seconds, resident_bytes, stage
from bench.texts import texts

_SECONDS = 15.0


def main(options: Options) -> list[Table]:
    seconds = _SECONDS / (3 if options.quick else 1)
    table = Table(f"Idle for {seconds:.0f} s", ["process", "CPU %", "resident MiB"])
    with stage() as processes:
        worker = processes.worker()
        api = processes.api()
        with loads(rest=api.url) as callers:
            callers["rest"](texts("short", 64), callers=8)
        assert processes.valkey.process is not None
        watched = {"worker": worker, "API": api.process, "Valkey": processes.valkey.process}
        threading.Event().wait(2.0)
        before = {name: cpu_seconds(process.pid) for name, process in watched.items()}
        began = time.perf_counter()
        threading.Event().wait(seconds)
        took = time.perf_counter() - began
        for name, process in watched.items():
            percent = (cpu_seconds(process.pid) - before[name]) / took * 100
            table.add(name, percent, resident_bytes(process) / 2**20)
    return [table]


if __name__ == "__main__":
    run("idle", main)
