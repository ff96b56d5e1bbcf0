"""Routes for operators: health, readiness, metrics, and the status document."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

import orjson
import redis
from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from api.backend import Backend, backend
from api.errors import WORKER_RETRY, Problem
from api.history import History, history
from api.operations import RUNNING, Answer, Operation
from api.responses import json_response
from worker.contract import keys
from worker.contract.lanes import lists_of
from worker.store import queue_history
from worker.store.queue_history import Sample
from worker.store.worker_registry import SILENCE

logger = logging.getLogger(__name__)

blueprint = Blueprint("status", __name__)

_DONE: Final = Answer("It does.", content={"application/json": {"schema": {"type": "object"}}})
_TEXT: Final = {"text/plain": {"schema": {"type": "string"}}}
#: Seconds over which a worker's share of busy time is measured.
_LATELY = 10.0


class Queue(BaseModel):
    """Jobs that are accepted and have not ended."""

    name: str
    tokens: int = Field(description="Of the texts, estimated when they were accepted.")
    most_tokens: int = Field(description="Past it submissions are refused; 0: no bound.")
    waiting: int = Field(description="Jobs that no worker has taken.")
    taken: int = Field(description="Jobs that workers hold.")


class ServedModel(BaseModel):
    """A model in a worker's memory, and its device."""

    name: str
    dimensions: int
    max_tokens: int
    device: str
    backend: str
    dtype: str
    path: str = Field(
        default="",
        description="How forward passes run: kernel, layers, groups, padded or table; empty if "
        "the worker does not report it.",
    )


class Worker(BaseModel):
    """A worker, from its last heartbeat."""

    name: str
    silent_seconds: float = Field(description="Since its device last made progress.")
    live: bool = Field(description="Whether it made progress lately enough to count.")
    models: list[ServedModel] = Field(description="Its default model first.")
    batch_tokens: dict[str, int] = Field(description="Token budget of a forward pass, by model.")
    tokens: int = Field(description="Encoded since it started.")
    texts: int
    batches: int
    busy: float | None = Field(
        default=None, description="Share of the last seconds in a forward pass; null: not known."
    )


class ServiceStatus(BaseModel):
    """The service at one moment."""

    at: datetime
    queue: Queue
    workers: list[Worker]
    history: History


@blueprint.get("/healthz")
@Operation(RUNNING, {200: _DONE}, public=True, any_host=True)
def health() -> Response:
    """Whether this process answers."""
    return json_response({"status": "ok"})


@blueprint.get("/readyz")
@Operation(RUNNING, {200: _DONE}, errors=[503], public=True, any_host=True)
def readiness() -> Response:
    """Whether Redis answers and a worker makes progress.

    A worker is not required if jobs are accepted without one.
    """
    services = backend()
    for client in (services.probe, services.store.broker):
        _ping(client)
    workers = services.liveness.read(services.probe)
    if not workers.models and not services.settings.accept_without_workers:
        raise Problem("no_worker", "no worker is there to take jobs", retry_after=WORKER_RETRY)
    return json_response(
        {"status": "ready", "workers": workers.count, "models": list(workers.models)}
    )


@blueprint.get("/metrics")
@Operation(RUNNING, {200: Answer("It does.", content=_TEXT)}, any_host=True)
def metrics() -> Response:
    """Figures for Prometheus."""
    return Response(backend().metrics.exposition(), content_type=CONTENT_TYPE_LATEST)


@blueprint.get("/status")
@Operation(RUNNING, {200: Answer("It does.", ServiceStatus)}, errors=[503])
def read_status() -> Response:
    """The queue, the workers and the last five minutes."""
    return json_response(_status(backend()).model_dump())


def _ping(client: redis.Redis) -> None:
    client.ping()


def _status(backend: Backend) -> ServiceStatus:
    settings, client = backend.settings, backend.store.client
    now, samples = queue_history.read(client, settings.queue)
    with backend.store.broker.pipeline(transaction=False) as pipe:
        for name in lists_of(settings.queue):
            pipe.llen(name)
        pipe.hlen(keys.LEASED)
        *waiting, taken = pipe.execute()
    presences = cast("dict[bytes, bytes]", client.hgetall(keys.workers(settings.queue)))
    return ServiceStatus(
        at=datetime.fromtimestamp(now, UTC),
        queue=Queue(
            name=settings.queue,
            tokens=backend.store.queued_tokens(),
            most_tokens=settings.max_queued_tokens,
            waiting=sum(waiting),
            taken=taken,
        ),
        workers=workers(presences, samples, now),
        history=history(samples, now),
    )


def workers(
    presences: Mapping[bytes, bytes], samples: Iterable[Sample], now: float
) -> list[Worker]:
    """The workers by name, silent ones included until they are removed. Pure."""
    busy = _busy(samples, now)
    found = []
    for node, raw in sorted(presences.items()):
        name = node.decode(errors="replace")
        try:
            said: dict[str, Any] = orjson.loads(raw)
            silent = max(now - said["at"], 0.0)
            facts = {"silent_seconds": round(silent, 1), "live": silent <= SILENCE}
            found.append(Worker(**said | facts | {"name": name, "busy": busy.get(name)}))
        except (ValueError, TypeError, KeyError) as error:
            # A worker of another version must not hide the others from the page.
            logger.warning("Worker %r is not understood: %s", name, type(error).__name__)
    return found


def _busy(samples: Iterable[Sample], now: float) -> dict[str, float]:
    """By node, the share of its latest samples that it spent in forward passes."""
    seconds: dict[str, float] = {}
    spent: dict[str, float] = {}
    for sample in samples:
        if sample.at > now - _LATELY:
            node = sample.node
            seconds[node] = seconds.get(node, 0.0) + sample.work.seconds
            spent[node] = spent.get(node, 0.0) + sample.work.busy_seconds
    # A pass counts when it ends, so it may be longer than its sample's period.
    return {
        node: round(min(spent[node] / total, 1.0), 3) for node, total in seconds.items() if total
    }
