"""A Redis that the previous version filled, and all its readers afterwards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import redis
import requests
from celery import Celery, signature
from celery.result import AsyncResult
from openai.types import Batch

from tests.integration.test_batches import client_of, create, request_of
from tests.integration.upgrade_app import NOTED, NOTES, texts
from tests.integration.versions import Version
from tests.processes import Api, Processes, eventually
from worker.contract import keys
from worker.contract.lanes import lists_of
from worker.contract.settings import DEFAULT_MODEL_NAME
from worker.store.api_keys import KeyFile, NewKey, new_key

QUEUE = "embedq"
#: Seconds for jobs to end on a busy machine; leases of a killed worker run out meanwhile.
PATIENCE = 90.0


@contextmanager
def stock_caller(broker_url: str, result_url: str) -> Iterator[Celery]:
    """A program on stock Celery without our code."""
    app = Celery(broker=broker_url, backend=result_url, set_as_current=False)
    app.conf.task_default_queue = QUEUE
    yield app
    # Results that are collected later have no subscription to end.
    app.backend.remove_pending_result = lambda result: result
    app.close()


@dataclass
class Stand:
    """Jobs by phase and name, with the means to submit and read them.

    `producer` is the version of direct callers. `api` has no keys, `keyed` those of `tenants`.
    """

    processes: Processes
    producer: Version
    app: Celery
    #: Of the server with the messages, and of the one with the results.
    client: redis.Redis
    results: redis.Redis
    api: Api
    keyed: Api
    tenants: dict[str, NewKey] = field(default_factory=dict)
    ids: dict[str, dict[str, str]] = field(default_factory=dict)
    batches: dict[str, Batch] = field(default_factory=dict)
    file_id: str = ""
    #: States of waiting jobs, as this version read them at that time.
    seen: dict[str, str] = field(default_factory=dict)
    #: Answers to a submission beyond the tenant's bound, and to one that joined another.
    over: requests.Response = field(default_factory=requests.Response)
    equal: requests.Response = field(default_factory=requests.Response)

    def submit(self, phase: str) -> None:
        """Submit jobs of every kind from every kind of caller; two of them are cancelled."""
        ids = self.ids[phase] = {}
        for name, path in (("rest", "/jobs"), ("waited", "/jobs?wait=1"), ("withdrawn", "/jobs")):
            answer = self.post(path, texts(phase, name), key=f"{phase}-{name}")
            assert answer.status_code in (HTTPStatus.OK, HTTPStatus.ACCEPTED), answer.text
            ids[name] = answer.json()["id"]
        linked = signature("upgrade.note_result", args=(phase, "stock"), app=self.app)
        ids["stock"] = self.send(texts(phase, "stock"), link=linked)
        ids |= self.producer.submit(phase)
        for name in ("cancelled", "withdrawn"):
            requests.delete(f"{self.api.url}/jobs/{ids[name]}", timeout=30).raise_for_status()

    def send(self, *args: Any, task: str = "embedq.embed", **options: Any) -> str:
        """Send a message like a stock program."""
        return str(self.app.send_task(task, args=args, **options).id)

    def post(
        self, path: str, input: list[str], *, key: str = "", tenant: str = ""
    ) -> requests.Response:
        """Post texts, under an Idempotency-Key, for a tenant with an API key."""
        headers = {"Idempotency-Key": key} if key else {}
        if tenant:
            headers["Authorization"] = f"Bearer {self.tenants[tenant].secret}"
        api = self.keyed if tenant else self.api
        body = {"input": input} | ({"model": DEFAULT_MODEL_NAME} if path.startswith("/v1") else {})
        return requests.post(api.url + path, json=body, headers=headers, timeout=60)

    def job(self, job_id: str, *, wait: int = 0, tenant: str = "") -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.tenants[tenant].secret}"} if tenant else {}
        api = self.keyed if tenant else self.api
        found = requests.get(f"{api.url}/jobs/{job_id}?wait={wait}", headers=headers, timeout=90)
        assert found.status_code == HTTPStatus.OK, found.text
        body: dict[str, Any] = found.json()
        return body

    def result(self, phase: str, name: str) -> AsyncResult:
        return self.app.AsyncResult(self.ids[phase][name])

    def create_batch(self, name: str, lines: int) -> None:
        with client_of(self.api) as client:
            wanted = [request_of(f"r{number}", f"{name} {number}") for number in range(lines)]
            self.batches[name] = create(client, wanted)

    def notes(self) -> Counter[tuple[Any, ...]]:
        """The tasks' notes with their numbers."""
        return Counter(tuple(json.loads(one)) for one in self.client.lrange(NOTES, 0, -1))

    def noted(self, phase: str) -> dict[str, int]:
        """The notes of the tasks of one phase, by the jobs that they were linked to."""
        return {name: number for of, name, number in self.notes() if of == phase}

    def queued(self, lists: Sequence[str] = tuple(lists_of(QUEUE))) -> int:
        return sum(map(self.client.llen, lists))

    def leased(self) -> int:
        return int(self.client.hlen(keys.LEASED))

    def counters(self) -> dict[str, int]:
        """The contents of the queue's counters, without stored results."""
        found = self.results.hgetall(keys.ledger(QUEUE))
        return {
            name.decode(): int(value)
            for name, value in found.items()
            if int(value) and not name.startswith((b"stored", b"kept"))
        }

    def wait_for_notes(self, phase: str) -> None:
        """Wait until every task behind the jobs of a phase has run."""
        eventually(
            lambda: NOTED.keys() <= self.noted(phase).keys(),
            PATIENCE,
            message=lambda: f"{self.noted(phase)}\n{self.processes.logs()}",
        )

    def wait_until_idle(self) -> None:
        eventually(
            lambda: not (self.queued() or self.leased()), PATIENCE, message=self.processes.logs
        )


def add_tenants(path: Path) -> dict[str, NewKey]:
    """API keys in a file: of a tenant with a token quota, and of one with few queued jobs."""
    made = {
        "spender": new_key(name="spender", tokens_per_minute=100),
        "waiter": new_key(name="waiter", max_queued_tokens=30),
    }
    for key in made.values():
        KeyFile(path).add(key.key)
    return made
