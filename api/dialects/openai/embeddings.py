"""`POST /v1/embeddings`: a job that is cancelled if its last waiting caller leaves.

Equal requests of one caller share a job while it has not ended, in any process: a client that
lost its connection and retries keeps its place in the queue. A job without a waiting caller is
cancelled; if this process is killed, the job expires.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, Final

import orjson
import redis
from flask import Blueprint, Response

from api import auth, requests
from api.backend import Backend, backend
from api.dialects.openai.deadlines import hang_up, seconds_to_wait
from api.dialects.openai.errors import HEADERS, OPENAI
from api.dialects.openai.schemas import EmbeddingList
from api.errors import Problem
from api.operations import Answer, Operation, header, parameter
from api.responses import json_response
from api.submission import Submission, submit
from api.wait_options import Timeout
from worker.contract.jobs import EncodingFormat, Status
from worker.contract.results import has_expired, matrix
from worker.openai import answers
from worker.openai.calls import EmbeddingsCall, parse_call
from worker.openai.requests import EmbeddingsRequest
from worker.store.jobs import JobRecord

logger = logging.getLogger(__name__)

#: Seconds after which a client should retry a lost request.
_AT_ONCE = 1

blueprint = Blueprint("embeddings", __name__)


_READ_TIMEOUT: Final = parameter(
    "X-Stainless-Read-Timeout",
    "Seconds that the caller waits, as OpenAI's clients say; the answer comes before.",
    {"type": "string", "examples": ["600"]},
    "header",
)
_MODEL_HEADER: Final = {"openai-model": header("The model that made the vectors.")}
_EXAMPLES: Final = {
    "several": {
        "summary": "What OpenAI's clients send",
        "value": {
            "model": "all-MiniLM-L6-v2",
            "input": ["a photo of a cat", "ein Foto einer Katze"],
            "encoding_format": "float",
        },
    },
}


@blueprint.post("/embeddings")
@Operation(
    OPENAI,
    {200: Answer("The vectors.", EmbeddingList, HEADERS | _MODEL_HEADER)},
    errors=(400, 404, 413, 415, 503),
    description=(
        "All or nothing: a text that fails fails the request. Equal requests under way share "
        "their work, and one whose caller hangs up is cancelled."
    ),
    parameters=[_READ_TIMEOUT],
    body=EmbeddingsRequest,
    examples=_EXAMPLES,
    rated=True,
)
def create_embeddings() -> Response:
    """Vectors of texts, as OpenAI's API gives them."""
    request, parts = requests.current_request(), backend()
    timeout = Timeout(seconds_to_wait(request), hang_up(request))
    body = requests.read_json(request, parts.settings.max_job_bytes)
    call = parse_call(body, parts.token_table)
    job = _run(parts, call, timeout)
    try:
        if job.meta is None or not job.record.status.ended or _has_expired(job):
            raise Problem(
                "not_in_time",
                "the vectors were not there in time",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                retry_after=job.retry_after,
            )
        response = json_response(_embeddings(job.record, job.meta, call.encoding_format))
        model = job.record.model or ""
        if model.isascii() and model.isprintable():
            response.headers["openai-model"] = model
        return response
    finally:
        _leave(parts, job)


def _run(backend: Backend, call: EmbeddingsCall, timeout: Timeout) -> Submission:
    """Return the job when it has ended or its caller's timeout has passed."""
    while True:
        job = _submit(backend, call, timeout)
        if not (job.replayed and _has_expired(job) and timeout.left):
            return job
        # Expired by the deadline of the first caller; this one still has time.
        _leave(backend, job)


def _submit(backend: Backend, call: EmbeddingsCall, timeout: Timeout) -> Submission:
    try:
        return submit(
            backend,
            call.texts,
            call.options,
            owner=auth.owner(),
            shared=True,
            deadline=backend.store.clock.now() + timeout.left,
            timeout=timeout,
        )
    except Problem as problem:
        if problem.code != "not_found":
            raise
        # The caller asked for vectors, not a job, so this is not a 404; a retry submits a new job.
        lost = "Redis has lost the request"
        raise Problem("redis_unavailable", lost, retry_after=_AT_ONCE) from problem


def _has_expired(job: Submission) -> bool:
    cancelled = job.record.status is Status.CANCELLED
    return cancelled and job.meta is not None and has_expired(job.meta)


def _leave(backend: Backend, job: Submission) -> None:
    if job.left:
        return
    if backend.waiting.released and not job.record.status.ended:
        # This process ends, and its clients retry elsewhere: keep the job for them.
        return
    try:
        if backend.store.leave(job.record.id, auth.owner(), job.caller):
            backend.store.cancel(job.record.id)
            backend.revocations.send(job.record.id)
    except redis.RedisError as error:
        logger.warning("Job %s is kept for its full time: %s", job.record.id, type(error).__name__)


def _embeddings(record: JobRecord, meta: bytes, encoding_format: EncodingFormat) -> Any:
    """The body for a job that has ended and its stored outcome, ready for `json_body`.

    Raises Problem unless every text has a vector: there are no partial answers.
    """
    if record.status is Status.FAILED:
        raise _failure(record.code or "internal_error", record.message or "the job failed")
    if record.status is Status.CANCELLED:
        # Not 409: clients would retry.
        raise Problem("cancelled", "the request was cancelled", status=HTTPStatus.BAD_REQUEST)
    result = orjson.loads(meta)["result"]
    if result["errors"]:
        first = result["errors"][0]
        raise _failure(first["code"], f"input[{first['index']}]: {first['message']}")
    vectors, _ = matrix(result["embeddings"])
    tokens = result["usage"]["prompt_tokens"]
    return answers.embeddings(result["model"], vectors, tokens, encoding_format)


def _failure(code: str, message: str) -> Problem:
    return Problem(
        code,
        message,
        field=answers.param_of_failure(message),
        status=answers.status_of_failure(code),
    )
