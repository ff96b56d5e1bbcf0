"""Processes show the passwords of their URLs nowhere: not in answers, not in logs at any level."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.processes import (
    START_TIMEOUT_S,
    Processes,
    ValkeyServer,
    eventually,
    free_port,
    start_api,
    start_worker,
)

PASSWORD = "Vy/7@u#secret"
ENCODED = "Vy%2F7%40u%23secret"
TOKEN = "tokenOfFiles"
SECRETS = (PASSWORD, ENCODED, TOKEN, "u#secret")


def shows_nothing(text: str) -> None:
    for secret in SECRETS:
        found = [line for line in text.splitlines() if secret in line]
        assert not found, found[:3]


def test_processes_that_work_and_fail_show_no_secret(
    processes: Processes, valkey_server: Callable[..., ValkeyServer], tmp_path: Path
) -> None:
    server = valkey_server()
    with server.client() as client:
        client.acl_setuser(
            "me",
            enabled=True,
            passwords=[f"+{PASSWORD}"],
            keys=["*"],
            channels=["*"],
            categories=["+@all"],
        )
        client.config_set("requirepass", PASSWORD)
    place = f"127.0.0.1:{server.port}/0"
    broker, results = f"redis://me:{ENCODED}@{place}", f"redis://:{ENCODED}@{place}"
    files = f"nosuch://id:{TOKEN}@bucket/x?token={TOKEN}"
    env = {"CELERY_RESULT_BACKEND": results, "EMBEDQ_FILES": files}
    worker = start_worker(processes, broker, "-l", "debug", env=env)
    api = start_api(processes, broker, "--log-level", "debug", env=env)
    eventually(lambda: requests.get(f"{api.url}/readyz", timeout=10).ok, START_TIMEOUT_S)
    job = requests.post(f"{api.url}/jobs?wait=60", json={"input": "a"}, timeout=90)
    assert job.json()["status"] == "succeeded", job.text
    answer = requests.post(
        f"{api.url}/v1/files", data={"purpose": "batch"}, files={"file": b"{}"}, timeout=30
    )
    assert answer.status_code == 503
    shows_nothing(answer.text)
    assert server.process is not None
    server.kill()
    assert requests.get(f"{api.url}/readyz", timeout=30).status_code == 503
    eventually(lambda: "annot connect" in worker.log() or "onnection" in worker.log(), 60)
    shows_nothing(processes.logs())


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:{password}@127.0.0.1:{port}/0",
        "sentinel://:{password}@127.0.0.1:{port};sentinel://:{password}@localhost:{port}/0",
        "redis+socket://:{password}@/nowhere/s?virtual_host=0&password={password}",
    ],
)
def test_a_server_that_does_not_answer_is_named_without_its_password(
    processes: Processes, url: str
) -> None:
    url = url.format(password=ENCODED, port=free_port())
    worker = start_worker(processes, url, "-l", "debug", ready=None)
    api = start_api(processes, url, "--log-level", "debug")
    answer = requests.get(f"{api.url}/readyz", timeout=60)
    assert answer.status_code == 503
    told = ("annot connect", "ConnectionError", "MasterNotFoundError")
    eventually(lambda: any(words in worker.log() for words in told), 2 * START_TIMEOUT_S)
    shows_nothing(answer.text + processes.logs())


PROGRAMS = {
    "worker": ("-m", "celery", "-A", "worker", "worker"),
    "gunicorn": ("-m", "gunicorn", "-c", "python:api.serving", "api:create_app()"),
    "up": ("-c", "from worker.cli import main; main()", "up", "--port", "0"),
    "health": ("-c", "from worker.cli import main; main()", "health"),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CELERY_BROKER_URL", f"redis://:{PASSWORD}@127.0.0.1:1/0"),
        ("EMBEDQ_FILES", f"id:{TOKEN}@bucket"),
    ],
)
def test_a_wrong_setting_stops_a_process_without_its_secret(
    processes: Processes, program: str, name: str, value: str
) -> None:
    process = processes.python(*PROGRAMS[program], env={name: value})
    assert process.wait(60) != 0
    assert name in process.log()
    shows_nothing(process.log())
