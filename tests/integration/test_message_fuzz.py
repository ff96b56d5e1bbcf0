"""Thousands of bad messages in the queue of one worker: it continues, and loses no job."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pytest
import redis
from celery import Celery

from tests.message_mutations import Bad, Mutations, deep_body, without
from tests.processes import Process, Processes, ValkeyServer, eventually, start_worker
from worker import loading
from worker.contract import keys, messages
from worker.contract.jobs import DEFAULT_OPTIONS, Status
from worker.contract.lanes import Lane, list_of, lists_of
from worker.contract.results import matrix
from worker.store.jobs import JobStore

_load_encoders = loading.load_encoders
from bench import costless  # noqa: E402

# The costless model is the worker's, not this process's.
loading.load_encoders = _load_encoders

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SEED, COUNT = 7, 3000
#: A valid job after so many bad messages.
EVERY = 50
#: In every text, so that a log with a text is found.
SECRET = "zebra9f1c"
ANSWER_S = 60.0


@dataclass
class Stand:
    """One worker, its Redis, and the messages of its queue."""

    worker: Process
    client: redis.Redis
    store: JobStore
    seeds: list[bytes]

    def push(self, message: bytes, lane: Lane = Lane.NORMAL) -> None:
        self.client.lpush(list_of("embedq", lane.step), message)

    def valid(self, name: str, lane: Lane = Lane.NORMAL) -> str:
        """Queue a valid job; its texts follow from its name."""
        self.push(messages.envelope(name, texts_of(name), DEFAULT_OPTIONS, "embedq"), lane)
        return name

    def meta(self, job_id: str) -> dict[str, Any] | None:
        stored = self.client.get(keys.result(job_id))
        return json.loads(stored) if stored else None

    def succeeded(self, job_id: str) -> bool:
        """Whether a valid job has its result, which must be right."""
        meta = self.meta(job_id)
        if meta is None:
            return False
        assert meta["status"] == "SUCCESS", meta
        found, _ = matrix(meta["result"]["embeddings"])
        assert np.abs(found - costless.expected(texts_of(job_id))).max() < 1e-5
        return True

    def wait_for(self, job_ids: list[str]) -> None:
        """Wait for valid jobs."""
        for job_id in job_ids:
            eventually(
                lambda job_id=job_id: self.succeeded(job_id), ANSWER_S, message=self.worker.log
            )

    def ended(self, job_id: str | None) -> bool:
        """Whether a job's outcome is stored, as a result or, if that is ignored, in its record."""
        if job_id is None:
            return False
        try:
            if self.meta(job_id) is not None:
                return True
            record = self.store.read(job_id)
        except UnicodeError:
            return False
        return record is not None and record.status not in (Status.QUEUED, Status.RUNNING)

    def marks(self, entries: list[bytes]) -> set[str]:
        return {mark.decode() for entry in entries for mark in re.findall(rb"fuzz-\d{6}", entry)}

    def buried(self) -> set[str]:
        return self.marks(self.client.lrange(keys.dead_letters("embedq"), 0, -1))

    def held(self) -> set[str]:
        return self.marks(self.client.hvals("unacked"))

    def queued(self) -> int:
        return sum(map(self.client.llen, lists_of("embedq")))


def texts_of(job_id: str) -> list[str]:
    return [f"{SECRET} {job_id}", "another"]


@pytest.fixture
def stand(processes: Processes, valkey_server: Callable[..., ValkeyServer]) -> Iterator[Stand]:
    server = valkey_server(persistent=False)
    with server.client() as client:
        worker = start_worker(processes, server.url, app="bench.costless")
        store = JobStore(client, "embedq", result_ttl=3600)
        yield Stand(worker, client, store, seeds(server.url, client))


def seeds(url: str, client: redis.Redis) -> list[bytes]:
    """Messages of producers: a stock Celery program, with a link and without, and the API."""
    call = {"args": [[f"{SECRET} sent", "two"]], "queue": "elsewhere"}
    with Celery(broker=url, backend=url, set_as_current=False) as app:
        send = app.send_task
        send("embedq.embed", **call)
        send("embedq.embed", **call, link=app.signature("nobody.knows"), expires=3600)
        send("embedq.embed", **call, priority=0, time_limit=60, shadow="another")
        send("celery.accumulate", args=["public"], queue="elsewhere")
    found = [client.rpop("elsewhere") for _ in range(4)]
    own = messages.envelope("own", [f"{SECRET} own"], DEFAULT_OPTIONS, "embedq", owner="tenant")
    return [*found, own, own]


def proto1(job_id: str) -> bytes:
    """A message of task protocol 1, which is out of use."""
    body = {"task": "embedq.embed", "id": job_id, "args": [texts_of(job_id)], "kwargs": {}}
    message = orjson.loads(messages.envelope(job_id, ["x"], DEFAULT_OPTIONS, "embedq"))
    return orjson.dumps(message | {"headers": {}, "body": orjson.dumps(body).decode()})


def test_a_nested_body_fails_its_job_and_is_buried(stand: Stand) -> None:
    stand.push(deep_body("fuzz-000001", stand.seeds[0]))
    stand.valid("after")
    eventually(lambda: stand.succeeded("after"), ANSWER_S, message=stand.worker.log)
    eventually(lambda: stand.buried() == {"fuzz-000001"}, message=stand.worker.log)
    meta = eventually(lambda: stand.meta("fuzz-000001"))
    assert meta["status"] == "FAILURE"
    assert calm(stand.worker)


def test_a_message_without_an_id_costs_no_connection(stand: Stand) -> None:
    for seed in stand.seeds:
        stand.push(without(seed, "fuzz-000002", "id"))
    stand.push(proto1("protocol1"))
    stand.valid("after")
    stand.wait_for(["after", "protocol1"])
    letters = lambda: stand.client.llen(keys.dead_letters("embedq"))  # noqa: E731
    eventually(lambda: letters() == len(stand.seeds), message=stand.worker.log)
    assert calm(stand.worker)


def test_no_message_stops_a_worker_or_is_lost(stand: Stand) -> None:
    pid = stand.worker.pid
    valid = [stand.valid(f"before-{n}") for n in range(20)]
    bad: list[Bad] = []
    for one in Mutations(stand.seeds, SEED).make(COUNT):
        bad.append(one)
        stand.push(one.raw, Lane.INTERACTIVE if len(bad) % 7 == 0 else Lane.NORMAL)
        if len(bad) % EVERY == 0:
            valid.append(stand.valid(f"between-{len(bad)}"))
    valid += [stand.valid(f"after-{n}", Lane.INTERACTIVE) for n in range(20)]
    stand.wait_for(valid)

    def open_ones() -> list[Bad]:
        buried, held = stand.buried(), stand.held()
        return [
            one
            for one in bad
            if one.mark not in buried
            and not stand.ended(one.id)
            and not ((one.later or one.ignored) and (one.mark in held) is one.later)
        ]

    eventually(lambda: not open_ones(), ANSWER_S, message=lambda: report(open_ones()), interval=1)
    eventually(lambda: stand.held() <= {one.mark for one in bad if one.later}, ANSWER_S)
    assert stand.queued() == 0
    assert stand.worker.pid == pid
    assert calm(stand.worker)
    stand.valid("last")
    eventually(lambda: stand.succeeded("last"), ANSWER_S, message=stand.worker.log)


def calm(worker: Process) -> bool:
    """Whether a worker lives, has had one connection, and has logged no text."""
    log = worker.log()
    assert log.count("mingle:") == 2, log[-4000:]
    assert "Connection to broker lost" not in log
    assert SECRET not in log, log[log.index(SECRET) - 2000 :][:2500]
    return worker.running


def report(left: list[Bad]) -> str:
    lines = [f"{one.mark} {one.id!r:.40} {one.raw[:1500]!r}" for one in left[:10]]
    return f"{len(left)} messages came to no end:\n" + "\n".join(lines)
