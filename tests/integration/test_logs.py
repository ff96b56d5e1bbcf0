"""The logs of a whole service: every line an object, with its job's id, and never a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import requests

from tests.conftest import running
from tests.processes import (
    Api,
    Process,
    ValkeyServer,
    eventually,
    free_port,
    start_api,
)
from worker.contract import keys, messages
from worker.contract.jobs import JobOptions

#: In every text that goes through the service here.
SECRET = "heliotrope"
JSON_LOGS = {"EMBEDQ_LOG_FORMAT": "json"}


class Logging:
    """A service that logs at every level, and its lines."""

    def __init__(self, valkey: ValkeyServer, worker: Process, api: Api) -> None:
        self.valkey = valkey
        self.worker = worker
        self.api = api

    def submit(self, **body: Any) -> requests.Response:
        return requests.post(f"{self.api.url}/jobs?wait=30", json=body, timeout=60)

    def lines(self, process: Process) -> list[dict[str, Any]]:
        """The written lines, up to the end of the last complete one."""
        return [json.loads(line) for line in process.log().split("\n")[:-1]]


@pytest.fixture(scope="module")
def service() -> Iterator[Logging]:
    with running() as processes:
        server = ValkeyServer(processes, processes.folder / "data", free_port(), persistent=False)
        server.start()
        # Quiet: without its banner, which is for people.
        worker = processes.python(
            *("-m", "celery", "--quiet", "-A", "worker", "worker", "-n", "w@here", "-l", "debug"),
            name="worker",
            env={
                "CELERY_BROKER_URL": server.url,
                "CELERY_RESULT_BACKEND": server.url,
                **JSON_LOGS,
            },
        )
        worker.wait_for_log(" ready.")
        api = start_api(
            processes,
            server.url,
            *("-c", "python:api.serving", "--log-level", "debug", "--access-logfile", "-"),
            env=JSON_LOGS,
        )
        yield Logging(server, worker, api)


def test_no_line_holds_a_text(service: Logging) -> None:
    answers = [
        service.submit(input=f"the {SECRET}"),
        service.submit(input=[f"{SECRET} {n}" for n in range(50)], encoding_format="base64"),
        service.submit(input=f"{SECRET} " * 2000, truncate=False),
        service.submit(input=[f"{SECRET} \ud800", f"fine {SECRET}"]),
        service.submit(input=[f"{SECRET}", {"not": SECRET}]),
        service.submit(input="x", prompt=f"{SECRET}: "),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 422, 200]
    broken = requests.post(
        f"{service.api.url}/jobs",
        data=f'{{"input": "{SECRET}',
        headers={"Content-Type": "application/json"},
        timeout=30,
    )
    assert broken.status_code == 400
    bad = orjson.loads(messages.envelope("bad", [SECRET], JobOptions(), "embedq"))
    strange = orjson.loads(messages.envelope("strange", [SECRET], JobOptions(), "embedq"))
    bad["body"] = f'[["{SECRET}"], ["{SECRET}"], {{}}]'
    strange["headers"]["task"] = "nobody.knows"
    with service.valkey.client() as client:
        client.lpush("embedq", orjson.dumps(bad), orjson.dumps(strange))
        eventually(lambda: client.llen(keys.dead_letters("embedq")) == 2, 30)
    for process in (service.worker, service.api.process):
        assert SECRET not in process.log().lower()

    def told() -> set[Any]:
        return {line.get("job_id") for line in service.lines(service.worker)}

    eventually(lambda: {"bad", "strange"} <= told())


def test_every_line_is_an_object_and_leads_from_the_request_to_the_job(service: Logging) -> None:
    name = "trace-7f.1:a"
    answer = requests.post(
        f"{service.api.url}/jobs?wait=30",
        json={"input": "a text"},
        headers={"X-Request-Id": name},
        timeout=60,
    )
    job_id = answer.json()["id"]
    assert answer.headers["X-Request-Id"] == name

    def access_lines() -> list[dict[str, Any]]:
        # Written once the answer is sent.
        return [line for line in said_of_request() if line["logger"] == "gunicorn.access"]

    def said_of_request() -> list[dict[str, Any]]:
        lines = service.lines(service.api.process)
        return [line for line in lines if line.get("request_id") == name]

    (access,) = eventually(access_lines)
    said = said_of_request()
    assert job_id in {line.get("job_id") for line in said}
    assert (access["method"], access["path"], access["status"]) == ("POST", "/jobs", 200)
    received = [line for line in service.lines(service.worker) if line.get("job_id") == job_id]
    assert received
    for line in (*said, *received):
        assert {"time", "level", "logger", "process", "message"} <= line.keys()
