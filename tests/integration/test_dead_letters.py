"""Messages that cannot run are stored, their callers get the error, and the worker continues."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator

import pytest
import redis
from celery import Celery
from celery.exceptions import NotRegistered

from tests.conftest import running
from tests.processes import Process, Processes, ValkeyServer, eventually, free_port, start_worker
from worker.store.dead_letters import DeadLetters

pytestmark = pytest.mark.integration

SECRET = "a text that must not be logged"


class Stand:
    def __init__(self, processes: Processes) -> None:
        self.valkey = ValkeyServer(processes, processes.folder / "data", free_port())
        self.valkey.start()
        self.worker: Process = start_worker(processes, self.valkey.url, app="bench.costless")
        self.client: redis.Redis = self.valkey.client()
        self.caller = Celery(broker=self.valkey.url, backend=self.valkey.url)
        self.caller.conf.task_default_queue = "embedq"

    def letters(self) -> list[str]:
        return [letter.reason for letter in DeadLetters(self.client, "embedq")]

    def works(self) -> bool:
        result = self.caller.send_task("embedq.embed", args=[["a text"]])
        return len(result.get(timeout=20)["embeddings"]) == 1


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with running() as processes:
        stand = Stand(processes)
        yield stand
        # Results unsubscribe when they are collected; the server must still run then.
        gc.collect()
        stand.caller.close()


def test_an_unknown_task_fails_for_its_caller_and_is_kept(stand: Stand) -> None:
    result = stand.caller.send_task("nobody.knows", args=[SECRET])
    with pytest.raises(NotRegistered):
        result.get(timeout=20)
    eventually(lambda: any("nobody.knows" in reason for reason in stand.letters()))
    assert stand.works()
    assert SECRET not in stand.worker.log()


def spoil_body(message: dict[str, object]) -> None:
    message["body"] = SECRET + "{"


def spoil_content_type(message: dict[str, object]) -> None:
    message["content-type"] = "application/x-python-serialize"


@pytest.mark.parametrize("spoil", [spoil_body, spoil_content_type])
def test_a_body_that_cannot_be_read_ends_its_job_and_is_kept(
    stand: Stand, spoil: Callable[[dict[str, object]], None]
) -> None:
    with stand.caller.connection() as connection:
        queue = connection.SimpleQueue("elsewhere")
        queue.clear()
        result = stand.caller.send_task("embedq.embed", args=[[SECRET]], queue="elsewhere")
        queue.close()
    message = json.loads(stand.client.rpop("elsewhere"))
    spoil(message)
    before = len(stand.letters())
    stand.client.lpush("embedq", json.dumps(message))
    eventually(lambda: len(stand.letters()) == before + 1, message=stand.worker.log)
    eventually(lambda: result.state == "FAILURE", message=stand.worker.log)
    assert stand.works()
    assert SECRET not in stand.worker.log()
