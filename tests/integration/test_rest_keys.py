"""The limits of a key hold in every process of the API, and on every route."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.api_stand import ApiStand, api_stand
from tests.documented import DOCUMENT
from tests.processes import Api
from worker.contract import estimates, messages
from worker.store.api_keys import ApiKey, KeyFile, new_key

VECTOR = np.full((1, 4), 0.5, dtype=np.float32)
#: A line of a batch's file.
LINE = (
    '{"custom_id":"1","method":"POST","url":"/v1/embeddings","body":{"model":"tiny","input":"a"}}'
)
#: Routes with the id of a tenant's own resource in the path.
OWNED = [
    (method, path)
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
    if "{" in path and not path.startswith("/v1/models")
]


@dataclass
class Caller:
    """A client with a key, which sends requests to the given process."""

    key: ApiKey
    secret: str

    def __call__(
        self, api: Api, method: str, path: str, *, key: str | None = None, **options: Any
    ) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.secret}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        url = api.url + path
        return requests.request(method, url, headers=headers, timeout=30, **options)

    def submit(self, api: Api, text: str, **options: Any) -> requests.Response:
        return self(api, "POST", "/jobs", json={"input": text}, **options)


@dataclass
class Stand:
    """Two processes of the API on one Redis; the test plays the worker's part."""

    apis: tuple[Api, Api]
    worker: ApiStand
    callers: dict[str, Caller]


@pytest.fixture
def stand(redis_url: str, tmp_path: Path, api_process: Callable[..., Api]) -> Iterator[Stand]:
    file = KeyFile(tmp_path / "keys.json")
    limits: dict[str, dict[str, int]] = {
        "requests": {"requests_per_minute": 6},
        "tokens": {"tokens_per_minute": 600},
        "queued": {"max_queued_tokens": 30},
        "first": {},
        "second": {},
    }
    callers = {}
    for name, fields in limits.items():
        made = new_key(name=name, **fields)
        file.add(made.key)
        callers[name] = Caller(made.key, made.secret)
    env = {"EMBEDQ_API_KEYS_FILE": str(file.path), "EMBEDQ_FILES": str(tmp_path / "files")}
    apis = api_process(env=env), api_process(env=env)
    with api_stand(redis_url) as worker:
        yield Stand(apis, worker, callers)


def granted(stand: Stand, caller: Caller, text: str, count: int) -> tuple[int, float]:
    """Send so many jobs to both processes in turn; return the number accepted and the seconds.

    Both must have accepted some and refused some.
    """
    stand.worker.worker()
    began = time.monotonic()
    answers: Counter[tuple[str, int]] = Counter()
    for api in islice(cycle(stand.apis), count):
        answers[api.url, caller.submit(api, text).status_code] += 1
    seconds = time.monotonic() - began
    for api in stand.apis:
        assert answers[api.url, 202], answers
        assert answers[api.url, 429], answers
    accepted = sum(count for (_, status), count in answers.items() if status == 202)
    assert accepted + sum(answers[api.url, 429] for api in stand.apis) == count, answers
    return accepted, seconds


def test_what_a_key_may_submit_is_counted_over_both_processes(stand: Stand) -> None:
    one, other = stand.apis
    # A minute's requests, and the quota refilled in that time.
    accepted, seconds = granted(stand, stand.callers["requests"], "a text", 24)
    assert 6 <= accepted <= 6 + seconds / 10 + 1

    text = "word " * 70
    cost = estimates.tokens([text], 256)
    accepted, seconds = granted(stand, stand.callers["tokens"], text, 30)
    assert 600 // cost <= accepted <= (600 + seconds * 10) / cost + 1

    stand.worker.worker()
    caller, text = stand.callers["queued"], "word " * 15
    job = caller.submit(one, text).json()["id"]
    refused = caller.submit(other, text)
    assert refused.status_code == 429
    assert refused.json()["code"] == "quota_exceeded"
    stand.worker.succeed(job, VECTOR)
    assert caller.submit(other, text).status_code == 202


def test_nothing_of_one_key_can_be_told_from_nothing_by_another(stand: Stand) -> None:
    one, other = stand.apis
    first, second = stand.callers["first"], stand.callers["second"]
    stand.worker.worker()
    job = first.submit(one, "a text", key="same").json()["id"]
    ended = first.submit(one, "another").json()["id"]
    stand.worker.succeed(ended, VECTOR)
    upload = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", LINE)}}
    file = first(one, "POST", "/v1/files", **upload).json()["id"]
    order = {"endpoint": "/v1/embeddings", "completion_window": "24h", "input_file_id": file}
    batch = first(one, "POST", "/v1/batches", json=order).json()["id"]
    unknown = {
        job: messages.new_id(),
        ended: messages.new_id(),
        file: file[:-6] + "unheard",
        batch: batch[:-6] + "unheard",
    }

    def told(method: str, path: str, **options: Any) -> tuple[int, Any]:
        response = second(other, method, path, **options)
        return response.status_code, response.json()

    for method, path in OWNED:
        owned = {"jobs": (job, ended), "files": (file,), "batches": (batch,)}
        for name in owned[path.removeprefix("/v1").split("/")[1]]:
            answer = told(method, path.replace("{id}", name))
            assert answer[0] == 404, (method, path)
            assert answer == told(method, path.replace("{id}", unknown[name])), (method, path)
    for path, name in (("/jobs", job), ("/v1/files", file), ("/v1/batches", batch)):
        assert told("GET", path)[1]["data"] == []
        after = told("GET", f"{path}?after={name}")
        assert after == told("GET", f"{path}?after={unknown[name]}")
    wrong = told("POST", "/v1/batches", json=order)
    assert wrong == told("POST", "/v1/batches", json=order | {"input_file_id": unknown[file]})
    # A retry's key belongs to one tenant, too: neither the same job nor a conflict.
    again = second.submit(other, "a text", key="same").json()["id"]
    assert again != job
    assert second.submit(one, "a text", key="same").json()["id"] == again

    # The owner can read all of it.
    assert first(other, "GET", f"/jobs/{job}").json()["status"] == "queued"
    assert first(other, "GET", f"/jobs/{ended}/result").ok
    assert first(other, "GET", f"/v1/files/{file}/content").text == LINE
    assert first(other, "GET", f"/v1/batches/{batch}").json()["status"] == "validating"
    assert {one["id"] for one in first(other, "GET", "/jobs").json()["data"]} == {job, ended}
