"""The OpenAPI 3.1 document, from the models that make the answers and from `JobRequest`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from flask import Blueprint, Response, request
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api import mounting, results
from api.dialects.openai import document as openai_document
from api.dialects.openai_batches import document as bulk
from api.errors import MEDIA_TYPE, STATUS_OF
from api.jobs import MOST_JOBS_A_PAGE
from api.openapi_examples import BODIES
from api.openapi_parts import JsonObject, answer, header, parameter, ref, retry_after
from api.responses import json_response
from api.schemas import FinishedJob, Job, JobList, ProblemDocument, Result
from api.status import ServiceStatus
from api.submission import LONGEST_IDEMPOTENCY_KEY
from api.trust import SAFE_METHODS
from api.wait_options import LONGEST_WAIT
from worker.contract.jobs import JobRequest, Status

blueprint = Blueprint("openapi", __name__)

#: What needs no key, and what takes from a key's quotas, with a body or without.
_OPEN = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
#: Paths of the endpoints in `trust.EXEMPT`.
_ANY_HOST = frozenset({"/healthz", "/readyz", "/metrics"})
_LISTS = ("/jobs", "/v1/files", "/v1/batches")
_SPENDING = {("/v1/embeddings", True), *((path, body) for path in _LISTS for body in (True, False))}

_ABOUT = """Text embeddings as jobs: submit texts, wait or poll, read vectors.
A job's id is its Celery task id; a job submitted either way can be read either way."""


@blueprint.get("/openapi.json")
def read_document() -> Response:
    """The document itself."""
    root = mounting.root(request)
    return json_response(document() | ({"servers": [{"url": root}]} if root else {}))


@cache
def document() -> JsonObject:
    """What the service takes and answers. The same object each time: do not change it."""
    groups = {
        "Jobs": {
            "/jobs": {"post": _submit(), "get": _list()},
            "/jobs/{id}": {"get": _read(), "delete": _cancel()},
            "/jobs/{id}/result": {"get": _result()},
            "/jobs/{id}/cancel": {"post": _cancel()},
            "/jobs/{id}/events": {"get": _events()},
        },
        "OpenAI's API": {**openai_document.paths(), **bulk.paths()},
        "Running it": _operations(),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "embedq", "version": _version(), "description": _ABOUT},
        "tags": [{"name": name} for name in groups],
        "paths": {
            path: {method: _complete(path, method, name, one) for method, one in methods.items()}
            for name, paths in groups.items()
            for path, methods in paths.items()
        },
        # Without a file of keys, none.
        "security": [{"bearer": []}, {"key": []}, {}],
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _complete(path: str, method: str, group: str, operation: JsonObject) -> JsonObject:
    """An operation with what those of its group and path have in common."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None and path in BODIES:
        body["examples"] = BODIES[path]
    errors = openai_document.errors if path.startswith("/v1/") else _problems
    always = errors(500) if path in _OPEN else errors(401, 500)
    if path not in _ANY_HOST:
        always |= errors(400)
    if method.upper() not in SAFE_METHODS:
        always |= errors(403)
    if "requestBody" in operation:
        always |= errors(408)
    if (path, "requestBody" in operation) in _SPENDING:
        always |= errors(429)
    both: JsonObject = {"security": []} if path in _OPEN else {}
    return operation | both | {"tags": [group], "responses": always | operation["responses"]}


def _submit() -> JsonObject:
    links = {"Location": header("The job's path.")}
    return {
        "summary": "Submit a job, and wait for it if asked to",
        "parameters": [
            *_waiting(),
            parameter(
                "Idempotency-Key",
                "The same key and body stand for the same job for 24 hours.",
                {"type": "string", "minLength": 1, "maxLength": LONGEST_IDEMPOTENCY_KEY},
                place="header",
            ),
        ],
        "requestBody": {"required": True, "content": {"application/json": ref("JobRequest")}},
        "responses": {
            "200": answer("It ended while the caller waited.", "FinishedJob", headers=links),
            "202": answer(
                "It is accepted and will end, whatever is killed or restarted.",
                "Job",
                headers=links | retry_after(),
            ),
            **_problems(400, 413, 415, 422, 503),
        },
    }


def _list() -> JsonObject:
    limit = {"type": "integer", "minimum": 1, "maximum": MOST_JOBS_A_PAGE, "default": 20}
    return {
        "summary": "The caller's jobs, newest first",
        "parameters": [
            parameter("limit", "Jobs of one page.", limit),
            parameter("after", "A job; the page begins after it.", {"type": "string"}),
            parameter("status", "Only jobs that stand so.", {"enum": list(Status)}),
        ],
        "responses": {"200": answer("One page.", "JobList"), **_problems(422, 503)},
    }


def _read() -> JsonObject:
    return {
        "summary": "A job, at once or when it ends",
        "parameters": [_id(), *_waiting()],
        "responses": {
            "200": answer("The job.", "Job", headers=retry_after()),
            **_problems(404, 422, 503),
        },
    }


def _cancel() -> JsonObject:
    return {
        "summary": "End a job unless it has ended",
        "parameters": [_id()],
        "responses": {"200": answer("The job as it stands now.", "Job"), **_problems(404, 503)},
    }


def _result() -> JsonObject:
    form = {"enum": list(results.FORMS), "default": "float"}
    found = answer("The vectors.", "Result")
    found["content"][results.NPY] = {"schema": {"type": "string", "format": "binary"}}
    return {
        "summary": "The vectors of a job that succeeded",
        "description": "409 while it has not ended, and with the job's own code if it failed.",
        "parameters": [_id(), parameter("encoding_format", "The form in JSON.", form)],
        "responses": {"200": found, **_problems(404, 406, 409, 422, 503)},
    }


def _events() -> JsonObject:
    stream = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
    return {
        "summary": "Server-sent events: progress, then done with the job",
        "parameters": [_id()],
        "responses": {"200": {"description": "The stream.", **stream}, **_problems(404, 503)},
    }


def _operations() -> JsonObject:
    any_json = {"content": {"application/json": {"schema": {"type": "object"}}}}
    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}
    html = {"content": {"text/html": {"schema": {"type": "string"}}}}
    status = {"content": {"application/json": ref(ServiceStatus.__name__)}}

    def get(summary: str, content: JsonObject, *problems: int) -> JsonObject:
        answers = {"200": {"description": "It does.", **content}, **_problems(*problems)}
        return {"get": {"summary": summary, "responses": answers}}

    return {
        "/healthz": get("Whether this process answers", any_json),
        "/readyz": get("Whether Redis answers and a worker makes progress", any_json, 503),
        "/metrics": get("Figures for Prometheus", text),
        "/status": get("The queue, the workers and the last five minutes", status, 503),
        "/openapi.json": get("This document", any_json),
        "/docs": get("This document, rendered", html),
        "/": get("A page to look at", html),
    }


def _schemas() -> JsonObject:
    requests: tuple[type[BaseModel], ...] = (
        JobRequest,
        *openai_document.REQUESTS,
        *bulk.REQUESTS,
    )
    native = (Job, FinishedJob, JobList, Result, ServiceStatus, ProblemDocument)
    answers: tuple[type[BaseModel], ...] = (*native, *openai_document.ANSWERS, *bulk.ANSWERS)
    _, schema = models_json_schema(
        [
            *((model, "validation") for model in requests),
            *((model, "serialization") for model in answers),
        ],
        ref_template="#/components/schemas/{model}",
    )
    schemas: JsonObject = schema["$defs"]
    return schemas


def _waiting() -> list[JsonObject]:
    seconds = {"type": "integer", "minimum": 0, "maximum": LONGEST_WAIT}
    return [
        parameter("wait", "Seconds to wait for the job's end.", seconds),
        parameter(
            "Prefer", "`wait=N` (RFC 7240), the same as a header.", {"type": "string"}, "header"
        ),
    ]


def _id() -> JsonObject:
    return parameter("id", "The job's id.", {"type": "string"}, "path")


def _problems(*statuses: int) -> JsonObject:
    def problem(status: int) -> JsonObject:
        codes = ", ".join(f"`{code}`" for code, value in STATUS_OF.items() if value == status)
        headers = {"headers": retry_after()} if status in (429, 503) else {}
        return {"description": codes, "content": {MEDIA_TYPE: ref("ProblemDocument")}, **headers}

    return {str(status): problem(status) for status in statuses}


def _version() -> str:
    try:
        return version("embedq")
    except PackageNotFoundError:
        return "0"
