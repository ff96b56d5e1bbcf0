"""The messages of `embed` that go directly to the pool."""

from __future__ import annotations

import time
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals
from celery.worker import state

from worker.contract import messages
from worker.contract.jobs import DEFAULT_OPTIONS
from worker.pool.pool import TaskPool
from worker.pool.strategy import strategy
from worker.tasks import embed
from worker.transport.message import Message, parse


class RecordingPool(TaskPool):
    """Records its requests, direct ones and Celery's."""

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def take(self, request: Any, target: Any, limits: Any) -> Any:
        self.taken.append((request, limits))


def nothing(*_: Any, **__: Any) -> None:
    """Stands for Celery's own steps, which are not under test."""


class Consumer:
    """The part of Celery's consumer that a strategy needs; records the requests for Celery."""

    hostname = "worker@here"
    connection_errors = ()
    event_dispatcher = None
    disable_rate_limits = False
    controller = SimpleNamespace(state=state)
    qos = SimpleNamespace(increment_eventually=nothing)
    apply_eta_task = _limit_post_eta = staticmethod(nothing)

    def __init__(self) -> None:
        self.pool = RecordingPool()
        self.general: list[Any] = []
        self.task_buckets: dict[str, Any] = defaultdict(lambda: None)
        self.timer = SimpleNamespace(call_at=lambda _, __, args, **___: self.note(*args))

    def note(self, request: Any, *_: Any) -> None:
        self.general.append(request)

    on_task_request = _limit_task = note

    @property
    def ways(self) -> tuple[int, int]:
        """The numbers of direct requests and of Celery's."""
        return len(self.pool.taken), len(self.general)


@pytest.fixture
def consumer() -> Any:
    yield Consumer()
    state.reset_state()


def all_of(request: Any) -> dict[str, Any]:
    """Every attribute of a request, by its name."""
    slots = [name for cls in type(request).__mro__ for name in getattr(cls, "__slots__", ())]
    names = [f"_Request{name}" if name == "__payload" else name for name in slots]
    fields = {name: getattr(request, name) for name in names if not name.endswith("__")}
    return fields | vars(request)


def receive(consumer: Any, headers: dict[str, Any] | None = None) -> None:
    """Pass a message to the strategy."""
    app: Celery = embed.app
    envelope = parse(messages.envelope("one", ["a text"], DEFAULT_OPTIONS, "embedq"))
    envelope["headers"] |= headers or {}
    envelope["properties"]["delivery_tag"] = "tag"
    message = Message(envelope, channel=SimpleNamespace())
    message.accept = frozenset({"application/json"})
    strategy(embed, app, consumer)(message, None, nothing, nothing, ())


def test_a_plain_message_goes_straight_to_the_pool(consumer: Any) -> None:
    receive(consumer)
    assert consumer.ways == (1, 0)
    request, limits = consumer.pool.taken[0]
    assert (request.id, request.args, request.kwargs) == ("one", [["a text"]], {})
    assert limits == (None, None)
    assert state.requests["one"] is request
    assert request in state.reserved_requests


@pytest.mark.parametrize(
    "headers",
    [{}, {"shadow": "another", "timelimit": [20, 10], "ignore_result": True, "root_id": "root"}],
    ids=["as sent", "with options"],
)
def test_a_request_made_the_short_way_is_the_one_that_celery_makes(
    consumer: Any, headers: dict[str, Any]
) -> None:
    receive(consumer, headers)
    request = consumer.pool.taken[0][0]
    cls = type(request)
    celerys = cls(
        request.message,
        on_ack=nothing,
        on_reject=nothing,
        app=embed.app,
        hostname=consumer.hostname,
        eventer=consumer.event_dispatcher,
        task=embed,
        connection_errors=consumer.connection_errors,
        headers=request.message.headers,
        utc=embed.app.uses_utc_timezone(),
    )
    assert all_of(request) == all_of(celerys)
    assert {"_eta", "_request_dict", "_Request__payload", "embed"} <= all_of(request).keys()


def test_time_limits_of_the_message_go_along(consumer: Any) -> None:
    receive(consumer, {"timelimit": [20, 10]})
    assert consumer.pool.taken[0][1] == (20, 10)


@pytest.mark.parametrize(
    "headers",
    [
        {"eta": "2100-01-01T00:00:00+00:00"},
        {"expires": "2100-01-01T00:00:00+00:00"},
        {"stamped_headers": ["tenant"], "stamps": {"tenant": ["a"]}},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_what_asks_for_more_goes_celerys_way(consumer: Any, headers: dict[str, Any]) -> None:
    receive(consumer, headers)
    assert consumer.ways == (0, 1)


def test_a_rate_limit_is_celerys_to_keep(consumer: Any) -> None:
    consumer.task_buckets[embed.name] = object()
    receive(consumer)
    assert consumer.ways == (0, 1)


def test_whoever_listens_hears_of_every_message(consumer: Any) -> None:
    heard: list[str] = []

    def listen(request: Any, **_: Any) -> None:
        heard.append(request.id)

    signals.task_received.connect(listen)
    try:
        receive(consumer)
    finally:
        signals.task_received.disconnect(listen)
    assert heard == ["one"]
    assert consumer.ways == (0, 1)


def test_an_expired_message_is_not_handed_over(consumer: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(type(embed.app.backend), "mark_as_revoked", lambda *_, **__: None)
    long_ago = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(0))
    receive(consumer, {"expires": long_ago})
    assert consumer.ways == (0, 0)
