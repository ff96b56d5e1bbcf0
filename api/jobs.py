"""Routes of native jobs: parse, do, answer."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import redis
from flask import Blueprint, Response, request

from api import auth, events, mounting, quotas, requests, results
from api.backend import Backend, backend
from api.current import current_request
from api.errors import Problem
from api.responses import json_response
from api.schemas import job_list_of, job_of
from api.submission import KEPT_AFTER_ANSWER, Submitted, submit
from api.wait_options import Patience, Wait, await_end, find
from worker.contract.jobs import Status, parse_body
from worker.store.jobs import JobRecord

logger = logging.getLogger(__name__)

blueprint = Blueprint("jobs", __name__)

MOST_JOBS_A_PAGE = 100
_JOBS_A_PAGE = 20
#: Seconds after which a job that has not ended is worth another look.
_LOOK_AGAIN = 1


@blueprint.post("/jobs")
def submit_job() -> Response:
    """Accept a job; with a wait, answer with its result if it ends in time."""
    request, parts = current_request(), backend()
    wait = Wait(request)
    texts, options = parse_body(requests.read_json(request, parts.settings.max_job_bytes))
    job = submit(
        parts,
        texts,
        options,
        owner=auth.owner(),
        idempotency_key=request.headers.get("Idempotency-Key"),
        patience=Patience(wait.seconds),
    )
    answer = _body(job.record)
    if wait.asked and job.record.status.ended:
        response = _answer_ended(parts, answer, job)
    else:
        response = json_response(answer, HTTPStatus.ACCEPTED)
        response.headers["Retry-After"] = str(job.retry_after)
    response.headers["Location"] = answer["links"]["self"]
    if job.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    wait.confirm(response)
    return response


@blueprint.get("/jobs/<job_id>")
def read_job(job_id: str) -> Response:
    """A job, at once or when it ends."""
    wait = Wait(request)
    record = await_end(backend(), job_id, Patience(wait.seconds))
    response = json_response(_body(record))
    if not record.status.ended:
        response.headers["Retry-After"] = str(_LOOK_AGAIN)
    wait.confirm(response)
    return response


@blueprint.get("/jobs/<job_id>/result")
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


@blueprint.get("/jobs")
def list_jobs() -> Response:
    """The caller's jobs, newest first."""
    quotas.spend_listing(backend())
    limit, status = _limit(request.args.get("limit")), _status(request.args.get("status"))
    after = request.args.get("after")
    try:
        records, following = backend().store.page(
            auth.owner(), limit=limit, after=after, status=status
        )
    except KeyError as error:
        raise Problem(
            "invalid_request", "after is no job of a page before", field="after"
        ) from error
    return json_response(job_list_of(records, following, request.args, mounting.root(request)))


@blueprint.delete("/jobs/<job_id>")
@blueprint.post("/jobs/<job_id>/cancel")
def cancel_job(job_id: str) -> Response:
    """End a job unless it has ended; the body, if there is one, is ignored."""
    find(backend(), job_id)
    if backend().store.cancel(job_id):
        backend().revocations.send(job_id)
    return json_response(_body(find(backend(), job_id)))


@blueprint.get("/jobs/<job_id>/events")
def follow_job(job_id: str) -> Response:
    """Server-sent events: `progress`, then `done`."""
    find(backend(), job_id)
    return events.response(backend(), job_id, request)


def _answer_ended(backend: Backend, answer: dict[str, Any], job: Submitted) -> Response:
    """The job with its result inside, which then need not be kept long."""
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


def _body(record: JobRecord) -> dict[str, Any]:
    return job_of(record, mounting.root(request))


def _limit(value: str | None) -> int:
    if value is None:
        return _JOBS_A_PAGE
    if not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= MOST_JOBS_A_PAGE):
        raise Problem(
            "invalid_request",
            f"limit is {value!r}; 1 to {MOST_JOBS_A_PAGE} are allowed",
            field="limit",
        )
    return int(value)


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
