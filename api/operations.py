"""Routes for those who run the service: health, readiness, metrics."""

from __future__ import annotations

import redis
from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST

from api.backend import backend
from api.errors import Problem
from api.limits import WORKER_RETRY
from api.responses import json_response

blueprint = Blueprint("operations", __name__)


@blueprint.get("/healthz")
def health() -> Response:
    """This process answers; nothing else is asked."""
    return json_response({"status": "ok"})


@blueprint.get("/readyz")
def readiness() -> Response:
    """Redis answers, and jobs are accepted: a worker made progress lately, or none is needed."""
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
def metrics() -> Response:
    """Figures for Prometheus."""
    return Response(backend().metrics.exposition(), content_type=CONTENT_TYPE_LATEST)


def _ping(client: redis.Redis) -> None:
    client.ping()
