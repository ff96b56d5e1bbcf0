"""Our messages equal a producer's."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import orjson
import pytest
import redis
from celery import Celery

from bench.stock import use_stock_transport
from worker.contract import messages
from worker.contract.app import make_app
from worker.contract.jobs import TASK_NAME, JobOptions, parse_call
from worker.contract.settings import Settings
from worker.tasks import EmbedTask

QUEUE = "embedq"
SURROGATE = "lone \ud800 surrogate"


@pytest.fixture
def app(redis_url: str) -> Celery:
    app = make_app(Settings(broker_url=redis_url, result_backend=redis_url))
    use_stock_transport(app)
    return app


def sent(app: Celery, client: redis.Redis, texts: Any, **options: Any) -> dict[str, Any]:
    """The message that `embed.apply_async` puts on the queue through a stock producer."""
    # The task itself belongs to the application that this process would have.
    task = app._task_from_fun(_embed, name=TASK_NAME, base=EmbedTask)
    task.apply_async((texts,), options, task_id="one")
    message: dict[str, Any] = json.loads(client.rpop(QUEUE))
    assert client.llen(QUEUE) == 0
    # Celery leaves them among the properties as well, unread.
    for name in ("argsrepr", "kwargsrepr"):
        assert message["properties"].pop(name) == message["headers"][name]
    return message


def _embed(input: Any, **options: Any) -> None:
    """Stands for the task's body, which a producer does not run."""


def built(texts: Any, **options: Any) -> dict[str, Any]:
    checked, chosen = parse_call([texts], options)
    message: dict[str, Any] = json.loads(messages.envelope("one", checked, chosen, QUEUE))
    return message


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        (["one text"], {}),
        (["one", "two", "日本語 🙂"], {}),
        (["one"], {"encoding_format": "base64", "dimensions": 128, "normalize": False}),
        (["one"], {"prompt": 'with "quotes" and \\ and \n', "truncate": False}),
        ([SURROGATE], {}),
        (["fine", SURROGATE], {"prompt": SURROGATE}),
    ],
)
def test_the_message_is_the_one_a_stock_producer_sends(
    app: Celery, redis_client: redis.Redis, texts: list[str], options: dict[str, Any]
) -> None:
    ours, theirs = built(texts, **options), sent(app, redis_client, texts, **options)
    for message in (ours, theirs):
        message["body"] = json.loads(message["body"])
        uuid.UUID(message["properties"].pop("delivery_tag"))
        # The reply queue for answers by AMQP; a new one for each process.
        assert isinstance(message["properties"].pop("reply_to"), str)
        assert message["headers"].pop("origin")
        assert messages.submission_time(message["headers"]) == pytest.approx(time.time(), abs=60)
        del message["headers"][messages.SUBMITTED_AT]
    assert ours == theirs


def test_options_that_are_the_default_are_not_sent() -> None:
    body = json.loads(built(["a"], normalize=True, truncate=True, encoding_format="float")["body"])
    assert body[1] == {}


def test_an_envelope_is_plain_ascii_or_utf8_json() -> None:
    for texts in (["日本語"], [SURROGATE]):
        envelope = messages.envelope("one", texts, JobOptions(), QUEUE)
        assert orjson.loads(envelope)["headers"]["id"] == "one"


@pytest.mark.parametrize(("count", "shown"), [(1, "(<1 text>,)"), (7, "(<7 texts>,)")])
def test_texts_are_counted_and_not_shown(count: int, shown: str) -> None:
    message = built(["a secret"] * count)
    assert message["headers"]["argsrepr"] == shown
    assert "secret" not in json.dumps(message["headers"])


def test_ids_are_random_and_never_the_same() -> None:
    ids = [messages.new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(uuid.UUID(job_id).version == 4 for job_id in ids)
    tags = {built(["a"])["properties"]["delivery_tag"] for _ in range(100)}
    assert len(tags) == 100
