"""`POST /v1/embeddings`: a job that its caller waits for, and that ends with the last such caller.

Equal requests of one caller share a job while it has not ended, in whatever process they arrive:
a client that lost its connection and tries again finds its place in the queue. A job
without a waiting caller is cancelled; it expires by itself if this process is killed.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

import redis
from flask import Blueprint, Response

from api import auth, requests
from api.backend import Backend, backend
from api.current import current_request
from api.dialects.openai.deadlines import hang_up, seconds_to_wait
from api.dialects.openai.outcomes import embeddings_of
from api.errors import Problem
from api.responses import json_response
from api.submission import Submitted, submit
from api.wait_options import Patience
from worker.contract.jobs import Status
from worker.contract.results import has_expired
from worker.openai.calls import EmbeddingsCall, parse_call

logger = logging.getLogger(__name__)

#: Seconds after which a request that was lost is worth another try.
_AT_ONCE = 1

blueprint = Blueprint("embeddings", __name__)


@blueprint.post("/embeddings")
def create_embeddings() -> Response:
    """Vectors of texts, once they are all there."""
    request, parts = current_request(), backend()
    patience = Patience(seconds_to_wait(request), hang_up(request))
    body = requests.read_json(request, parts.settings.max_job_bytes)
    call = parse_call(body, parts.token_table)
    job = _run(parts, call, patience)
    try:
        if job.meta is None or not job.record.status.ended or _has_expired(job):
            raise Problem(
                "not_in_time",
                "the vectors were not there in time",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                retry_after=job.retry_after,
            )
        response = json_response(embeddings_of(job.record, job.meta, call.encoding_format))
        model = job.record.model or ""
        if model.isascii() and model.isprintable():
            response.headers["openai-model"] = model
        return response
    finally:
        _leave(parts, job)


def _run(backend: Backend, call: EmbeddingsCall, patience: Patience) -> Submitted:
    """The job as it stands when it has ended or its caller's time has."""
    while True:
        job = _submit(backend, call, patience)
        if not (job.replayed and _has_expired(job) and patience.left):
            return job
        # With the time of the caller who was first; this one's goes on.
        _leave(backend, job)


def _submit(backend: Backend, call: EmbeddingsCall, patience: Patience) -> Submitted:
    try:
        return submit(
            backend,
            call.texts,
            call.options,
            owner=auth.owner(),
            shared=True,
            deadline=backend.store.clock.now() + patience.left,
            patience=patience,
        )
    except Problem as problem:
        if problem.code != "not_found":
            raise
        # The caller asked for no job, so there is none to miss; another try makes a new one.
        lost = "Redis has lost the request"
        raise Problem("redis_unavailable", lost, retry_after=_AT_ONCE) from problem


def _has_expired(job: Submitted) -> bool:
    cancelled = job.record.status is Status.CANCELLED
    return cancelled and job.meta is not None and has_expired(job.meta)


def _leave(backend: Backend, job: Submitted) -> None:
    if job.left:
        return
    if backend.waiting.released and not job.record.status.ended:
        # This process ends, and its clients try again elsewhere: the job waits for them.
        return
    try:
        if backend.store.leave(job.record.id, auth.owner(), job.caller):
            backend.store.cancel(job.record.id)
            backend.revocations.send(job.record.id)
    except redis.RedisError as error:
        logger.warning("Job %s is kept for its full time: %s", job.record.id, type(error).__name__)
