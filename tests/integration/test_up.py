"""`embedq up` as a process: it starts, serves, is killed, and cleans up after itself."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import redis
import requests

from tests.processes import (
    Process,
    Processes,
    ValkeyServer,
    alive,
    eventually,
    free_port,
    run_python,
)

#: Seconds until everything must be gone after a kill of the parent: the guardian's grace period
#: and some for a busy machine.
GONE_S = 15.0
SERVES = "embedq serves on"

#: Starts `embedq up` on one data directory and port, with more options and variables.
Up = Callable[..., Process]


@dataclass
class Deployment:
    """A running `embedq up` and its processes."""

    process: Process
    url: str
    pids: list[int]

    def pid_of(self, word: str) -> int:
        """The oldest process with `word` in its command line."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        found = [child.pid for child in children if word in " ".join(child.cmdline())]
        assert found, f"no {word} among {children}"
        return found[0]

    def gone(self) -> bool:
        return not any(alive(pid) for pid in self.pids)


@pytest.fixture
def up(processes: Processes) -> Up:
    data = processes.folder / "data"

    def start(*options: str, port: int = 0, **env: str) -> Process:
        code = "from worker.cli import main; main(prog_name='embedq')"
        return processes.python(
            *("-c", code, "up", "--port", str(port), "--data-dir", str(data), *options),
            name="up",
            env=env,
        )

    return start


def serving(process: Process) -> Deployment:
    """Wait until it serves, and record all its processes."""
    process.wait_for_log(SERVES, timeout=90)
    match = re.search(rf"{SERVES} (\S+)", process.log())
    assert match
    children = psutil.Process(process.pid).children(recursive=True)
    return Deployment(process, match[1], [process.pid, *(child.pid for child in children)])


@pytest.mark.timeout(240)
def test_it_shows_the_sample_job_serves_and_ends_at_ctrl_c(up: Up) -> None:
    deployment = serving(up("--demo"))
    log = deployment.process.log()
    assert "state succeeded, model all-MiniLM-L6-v2, 8 texts, dimension 384" in log
    assert re.search(
        r"How do I reset my password\? +I forgot my login and cannot sign in\. +0\.\d", log
    )
    assert f"curl -s '{deployment.url}/jobs?wait=10'" in log
    answer = requests.post(f"{deployment.url}/jobs?wait=30", json={"input": "a"}, timeout=40)
    assert answer.json()["status"] == "succeeded"
    # Celery programs need only the printed address.
    shown = r"export CELERY_BROKER_URL='(\S+)'"
    eventually(lambda: re.search(shown, deployment.process.log()), message=deployment.process.log)
    address = re.findall(shown, deployment.process.log())[0]
    program = (
        "from worker.tasks import embed; print(embed.delay(['a']).get(timeout=30)['dimensions'])"
    )
    ran = run_python("-c", program, CELERY_BROKER_URL=address)
    assert ran.stdout.strip() == "384", ran.stderr
    assert len(deployment.pids) >= 6, "parent, guardian, Valkey, worker, gunicorn and its worker"

    deployment.process.signal(signal.SIGINT)

    assert deployment.process.wait(45) == 0
    assert deployment.gone()
    assert "Traceback" not in deployment.process.log()


@pytest.mark.timeout(240)
def test_nothing_outlives_it_when_it_is_killed_and_its_jobs_are_there_again(up: Up) -> None:
    first = serving(up())
    job = requests.post(f"{first.url}/jobs?wait=30", json={"input": "kept"}, timeout=40).json()
    assert job["status"] == "succeeded"

    first.process.signal(signal.SIGKILL)
    first.process.wait()
    eventually(first.gone, GONE_S, message=lambda: str([p for p in first.pids if alive(p)]))

    second = serving(up())
    assert (
        requests.get(f"{second.url}/jobs/{job['id']}", timeout=10).json()["status"] == "succeeded"
    )
    second.process.signal(signal.SIGTERM)
    assert second.process.wait(45) == 0
    assert second.gone()


@pytest.mark.timeout(240)
def test_parts_that_are_killed_come_back_and_a_second_instance_is_refused(up: Up) -> None:
    port = free_port()
    deployment = serving(up(port=port))

    other = up()
    assert other.wait(30) == 1
    assert f"is in use by another embedq, process {deployment.process.pid};" in other.log()

    for name, word in (("valkey", "valkey-server"), ("worker 1", "celery"), ("api", "gunicorn")):
        psutil.Process(deployment.pid_of(word)).kill()
        deployment.process.wait_for_log(f"{name} was killed by SIGKILL: starting it again in 1 s")

    def answers() -> bool:
        try:
            url = f"{deployment.url}/jobs?wait=5"
            return requests.post(url, json={"input": "again"}, timeout=40).status_code == 200
        except requests.ConnectionError:
            return False

    eventually(answers, 90, interval=0.5, message=deployment.process.log)
    deployment.process.signal(signal.SIGINT)
    assert deployment.process.wait(45) == 0


def test_a_port_in_use_is_named_and_nothing_starts(up: Up, processes: Processes) -> None:
    holder = processes.python("-c", LISTEN, name="holder")
    holder.wait_for_log("port ")
    port = int(holder.log().split()[-1])
    process = up(port=port)
    assert process.wait(30) == 1
    assert f"Error: cannot listen on 127.0.0.1 port {port}: Address already in use" in process.log()
    assert "Valkey is up" not in process.log()


LISTEN = """
import socket, threading
listener = socket.create_server(("127.0.0.1", 0))
print("port", listener.getsockname()[1], flush=True)
threading.Event().wait()
"""


@pytest.mark.timeout(120)
def test_a_model_that_is_not_there_ends_it_all_with_its_name(up: Up, tmp_path: Path) -> None:
    missing = tmp_path / "no-such-model"
    process = up("--model", str(missing))
    assert process.wait(90) == 1
    log = process.log()
    assert str(missing) in log
    assert "Error: worker 1 ended with exit code" in log
    assert "starting it again" not in log


@pytest.mark.timeout(240)
def test_a_server_of_the_users_own_is_used_and_outlives_it(
    up: Up, valkey_server: Callable[..., ValkeyServer]
) -> None:
    server = valkey_server()
    deployment = serving(up(CELERY_BROKER_URL=server.url))
    assert "Valkey is up" not in deployment.process.log()
    requests.post(f"{deployment.url}/jobs?wait=30", json={"input": "a"}, timeout=40)
    deployment.process.stop(45)
    with redis.Redis.from_url(server.url) as client:
        assert client.keys("embedq:job:*")


@pytest.mark.timeout(120)
def test_it_ends_with_its_parent_where_asked_to(processes: Processes, up: Up) -> None:
    port = free_port()
    make = processes.python(
        "-c",
        PARENT.format(port=port, data=str(processes.folder / "data")),
        name="make",
    )
    make.wait_for_log("Valkey is up")
    tree = [make.pid, *(child.pid for child in psutil.Process(make.pid).children(recursive=True))]
    make.signal(signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in tree), 45)


PARENT = """
import subprocess, sys
code = "from worker.cli import main; main(prog_name='embedq')"
command = ["up", "--with-parent", "--port", "{port}", "--data-dir", {data!r}]
subprocess.run([sys.executable, "-c", code, *command])
"""
