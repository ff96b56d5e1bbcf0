"""Routes of native jobs: parse, do, answer."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, Final

import redis
from flask import Blueprint, Response, request
from werkzeug.urls import iri_to_uri

from api import auth, events, quotas, requests, results, wait_options
from api.backend import Backend, backend
from api.errors import Problem
from api.operations import (
    JOBS,
    RETRY_AFTER,
    Answer,
    Operation,
    header,
    limit_parameter,
    parameter,
    path_parameter,
)
from api.responses import json_response
from api.schemas import FinishedJob, JobDocument, JobList, Result, job_list_of, job_of
from api.submission import KEPT_AFTER_ANSWER, LONGEST_IDEMPOTENCY_KEY, Submission, submit
from api.wait_options import Timeout, WaitOption, await_end, find
from worker.contract.jobs import JobBody, Status, parse_body
from worker.store.jobs import JobRecord

logger = logging.getLogger(__name__)

blueprint = Blueprint("jobs", __name__)

MOST_JOBS_A_PAGE = 100
_JOBS_A_PAGE = 20
#: Seconds after which a client should read a running job again.
_LOOK_AGAIN = 1

_ID: Final = path_parameter("The job's id.")
_LOCATION: Final = {"Location": header("The job's path.")}
_IDEMPOTENCY_KEY: Final = parameter(
    "Idempotency-Key",
    "The same key and body stand for the same job for 24 hours.",
    {"type": "string", "minLength": 1, "maxLength": LONGEST_IDEMPOTENCY_KEY},
    "header",
)
_EXAMPLES: Final = {
    "one": {"summary": "One text", "value": {"input": "a photo of a cat"}},
    "several": {
        "summary": "Several texts, their vectors as one blob",
        "value": {
            "input": ["a photo of a cat", "ein Foto einer Katze"],
            "encoding_format": "base64",
        },
    },
    "strict": {
        "summary": "Vectors as the model gives them; a text that is too long fails",
        "value": {
            "input": ["neither cut", "nor scaled"],
            "truncate": False,
            "normalize": False,
        },
    },
}


@blueprint.post("/jobs")
@Operation(
    JOBS,
    {
        200: Answer("It ended while the caller waited.", FinishedJob, _LOCATION),
        202: Answer(
            "It is accepted and will end, whatever is killed or restarted.",
            JobDocument,
            _LOCATION | RETRY_AFTER,
        ),
    },
    errors=(400, 413, 415, 422, 503),
    parameters=[*wait_options.PARAMETERS, _IDEMPOTENCY_KEY],
    body=JobBody,
    examples=_EXAMPLES,
    rated=True,
)
def submit_job() -> Response:
    """Submit a job, and wait for it if asked to."""
    request, parts = requests.current_request(), backend()
    wait = WaitOption(request)
    texts, options = parse_body(requests.read_json(request, parts.settings.max_job_bytes))
    job = submit(
        parts,
        texts,
        options,
        owner=auth.owner(),
        idempotency_key=request.headers.get("Idempotency-Key"),
        timeout=Timeout(wait.seconds),
    )
    answer = job_of(job.record, parts.root(request))
    if wait.asked and job.record.status.ended:
        response = _answer_ended(parts, answer, job)
    else:
        response = json_response(answer, HTTPStatus.ACCEPTED)
        response.headers["Retry-After"] = str(job.retry_after)
    response.headers["Location"] = _location(answer["links"]["self"])
    if job.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    wait.confirm(response)
    return response


@blueprint.get("/jobs")
@Operation(
    JOBS,
    {200: Answer("One page.", JobList)},
    errors=(422, 503),
    parameters=[
        limit_parameter("Jobs of one page.", _JOBS_A_PAGE, MOST_JOBS_A_PAGE),
        parameter("after", "A job; the page begins after it.", {"type": "string"}),
        parameter("status", "Only jobs that stand so.", {"enum": list(Status)}),
    ],
    rated=True,
)
def list_jobs() -> Response:
    """The caller's jobs, newest first."""
    quotas.spend_listing(backend())
    limit = requests.page_limit(request, _JOBS_A_PAGE, MOST_JOBS_A_PAGE)
    status = _status(request.args.get("status"))
    after = request.args.get("after")
    try:
        records, following = backend().store.page(
            auth.owner(), limit=limit, after=after, status=status
        )
    except KeyError as error:
        raise Problem(
            "invalid_request", "after is no job of a page before", field="after"
        ) from error
    root = backend().root(request)
    return json_response(job_list_of(records, following, request.args, root))


@blueprint.get("/jobs/<job_id>")
@Operation(
    JOBS,
    {200: Answer("The job.", JobDocument, RETRY_AFTER)},
    errors=(404, 422, 503),
    parameters=[_ID, *wait_options.PARAMETERS],
)
def read_job(job_id: str) -> Response:
    """A job, at once or when it ends."""
    wait = WaitOption(request)
    record = await_end(backend(), job_id, Timeout(wait.seconds))
    response = _job_response(record)
    if not record.status.ended:
        response.headers["Retry-After"] = str(_LOOK_AGAIN)
    wait.confirm(response)
    return response


@blueprint.delete("/jobs/<job_id>")
@blueprint.post("/jobs/<job_id>/cancel")
@Operation(
    JOBS,
    {200: Answer("The job as it stands now.", JobDocument)},
    errors=(404, 503),
    parameters=[_ID],
)
def cancel_job(job_id: str) -> Response:
    """End a job unless it has ended.

    The request's body, if there is one, is ignored.
    """
    find(backend(), job_id)
    if backend().store.cancel(job_id):
        backend().revocations.send(job_id)
    return _job_response(find(backend(), job_id))


@blueprint.get("/jobs/<job_id>/result")
@Operation(
    JOBS,
    {
        200: Answer(
            "The vectors.",
            Result,
            content={results.NPY: {"schema": {"type": "string", "format": "binary"}}},
        )
    },
    errors=(404, 406, 409, 422, 503),
    description="409 while it has not ended, and with the job's own code if it failed.",
    parameters=[
        _ID,
        parameter(
            "encoding_format",
            "The form in JSON.",
            {"enum": list(results.FORMS), "default": "float"},
        ),
    ],
)
def read_result(job_id: str) -> Response:
    """The vectors of a job that succeeded."""
    media, form = results.media_type(request), results.encoding_format(request)
    record = find(backend(), job_id)
    if not record.status.ended:
        raise Problem("not_ended", f"the job is {record.status}", retry_after=_LOOK_AGAIN)
    meta = backend().store.raw_outcome(job_id)
    if meta is None:
        raise Problem("not_found", "the job's result was not stored, or its time has passed")
    response = results.response(meta, media, form)
    response.vary.add("Accept")
    return response


@blueprint.get("/jobs/<job_id>/events")
@Operation(
    JOBS,
    {200: Answer("The stream.", content={"text/event-stream": {"schema": {"type": "string"}}})},
    errors=(404, 503),
    parameters=[_ID],
)
def follow_job(job_id: str) -> Response:
    """Server-sent events: progress, then done with the job."""
    find(backend(), job_id)
    return events.response(backend(), job_id, request)


def _answer_ended(backend: Backend, answer: dict[str, Any], job: Submission) -> Response:
    """The job with its result inside; the stored result then expires soon."""
    result = results.fragment(job.meta)
    response = json_response(answer | {"result": result})
    if result is not None and job.replayed:
        response.call_on_close(lambda: _release(backend, job.record.id))
    return response


def _release(backend: Backend, job_id: str) -> None:
    try:
        backend.store.release(job_id, KEPT_AFTER_ANSWER)
    except redis.RedisError as error:
        logger.warning("Job %s is kept for its full time: %s", job_id, type(error).__name__)


def _location(path: str) -> str:
    """Escape a path for a header: the prefix of another application may be any text."""
    return path if path.isascii() else iri_to_uri(path)


def _job_response(record: JobRecord) -> Response:
    return json_response(job_of(record, backend().root(request)))


def _status(value: str | None) -> Status | None:
    if value is None:
        return None
    try:
        return Status(value)
    except ValueError as error:
        allowed = ", ".join(Status)
        raise Problem(
            "invalid_request", f"status is {value!r}; allowed are {allowed}", field="status"
        ) from error
