"""The previous version next to this one: its code from the repository's history, its processes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration import upgrade_app
from tests.processes import ROOT, Api, Process, Processes, start_api, start_worker

#: The version before the single state of a job, its keys and its leases. Deployments run it and
#: upgrade from it.
COMMIT = "70cf723c597bc68fc39b991e8bc96720e717c186"
#: The shortest possible delay of a killed worker's jobs.
LEASE_SECONDS = 3
_APP = Path(upgrade_app.__file__)


def previous_code(folder: Path) -> Path:
    """The previous version's packages, below `folder`. Skips the test without a history."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", COMMIT, "worker", "api", "bench"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        reason = f"no previous version: {archive.stderr.decode(errors='replace').strip()}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
        packed.extractall(folder, filter="data")
    return folder


@dataclass
class Version:
    """One version's code, and its programs on the same servers as the other version's.

    `gate` is the file that stops the devices of workers while it exists.
    """

    processes: Processes
    code: Path
    broker_url: str
    result_url: str
    gate: Path
    env: dict[str, str]

    @property
    def servers(self) -> dict[str, str]:
        return {"CELERY_BROKER_URL": self.broker_url, "CELERY_RESULT_BACKEND": self.result_url}

    def start_worker(self, **env: str) -> Process:
        env = self.env | env
        return start_worker(self.processes, self.broker_url, app=_APP.stem, env=env, cwd=self.code)

    def start_api(self, **env: str) -> Api:
        return start_api(self.processes, self.broker_url, env=self.env | env, cwd=self.code)

    def submit(self, phase: str) -> dict[str, str]:
        """Ids of one job of every kind, from a producer with this version of embedq."""
        producer = self.processes.python(
            *("-m", _APP.stem, phase), name=f"producer-{phase}", env=self.env, cwd=self.code
        )
        status = producer.wait(60)
        assert status == 0, producer.log()
        ids: dict[str, str] = json.loads(
            # Celery may complain as the interpreter ends.
            next(line for line in producer.log().splitlines() if line.startswith("{"))
        )
        return ids

    def __post_init__(self) -> None:
        self.env = self.servers | {
            "PYTHONPATH": os.pathsep.join((str(self.code), str(_APP.parent))),
            "EMBEDQ_LEASE_SECONDS": str(LEASE_SECONDS),
            "EMBEDQ_BATCH_TOKENS": "1024",
            "EMBEDQ_BENCH_FORWARD_MS": "5",
            upgrade_app.GATE: str(self.gate),
            **self.env,
        }
