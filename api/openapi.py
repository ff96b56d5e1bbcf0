"""The OpenAPI 3.1 document, from the operations that the routes declare."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import orjson
from flask import Blueprint, Flask, Response, current_app, request
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from werkzeug.routing import Rule

from api.backend import Backend, backend_of
from api.operations import RUNNING, Answer, JsonObject, Operation, operation_of
from api.responses import json_response
from api.trust import SAFE_METHODS

blueprint = Blueprint("openapi", __name__)

_ABOUT = """Text embeddings as jobs: submit texts, wait or poll, read vectors.
A job's id is its Celery task id; a job submitted either way can be read either way."""
_REFERENCE = "#/components/schemas/"
_ANY_JSON: Final = {"application/json": {"schema": {"type": "object"}}}


@blueprint.get("/openapi.json")
@Operation(RUNNING, {200: Answer("It does.", content=_ANY_JSON)}, public=True)
def read_document() -> Response:
    """This document."""
    app: Any = current_app
    found = app._get_current_object()  # noqa: SLF001 - documented
    root = backend_of(found).root(request)
    return json_response(document(found) | ({"servers": [{"url": root}]} if root else {}))


@lru_cache(maxsize=1)
def document(app: Flask) -> JsonObject:
    """Return the OpenAPI document of an application: a shared object, not to be changed."""
    routes = list(_routes(app, backend_of(app)))
    paths: JsonObject = {}
    for path, method, operation, summary in routes:
        paths.setdefault(path, {})[method] = _operation(method, operation, summary)
    operations = [operation for _, _, operation, _ in routes]
    schemas, names = _schemas(operations)
    found = {
        "openapi": "3.1.0",
        "info": {"title": "embedq", "version": _version(), "description": _ABOUT},
        "tags": [{"name": name} for name in dict.fromkeys(one.group.name for one in operations)],
        "paths": paths,
        # The empty entry: without a file of keys, no key is necessary.
        "security": [{"bearer": []}, {"key": []}, {}],
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }
    return _renamed(found, names)


def _routes(app: Flask, backend: Backend) -> Iterator[tuple[str, str, Operation, str]]:
    """Path, method, operation and summary of every route that declares one."""
    for rule in app.url_map.iter_rules():
        operation = operation_of(app, rule.endpoint)
        if operation is None or operation.hidden:
            continue
        about = app.view_functions[rule.endpoint].__doc__ or ""
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            summary = about.partition("\n")[0].removesuffix(".")
            yield _path(rule, backend.prefix), method.lower(), operation, summary


def _path(rule: Rule, prefix: str) -> str:
    """`/jobs/<job_id>` as `/jobs/{id}`."""
    return re.sub(r"<(?:\w+:)?(?:\w+_)?(\w+)>", r"{\1}", rule.rule.removeprefix(prefix))


def _operation(method: str, operation: Operation, summary: str) -> JsonObject:
    group = operation.group
    answers = {str(status): group.error(status) for status in _errors(method, operation)}
    answers |= {str(status): answer for status, answer in operation.answers.items()}
    parts: JsonObject = {
        "description": operation.description,
        "parameters": list(operation.parameters),
        "requestBody": _body(operation),
    }
    return {
        "summary": summary,
        **{name: part for name, part in parts.items() if part},
        **({"security": []} if operation.public else {}),
        "tags": [group.name],
        "responses": {status: _response(answer) for status, answer in answers.items()},
    }


def _errors(method: str, operation: Operation) -> list[int]:
    """HTTP statuses of the errors that the checks of every request raise, and of its own."""
    checks = {
        401: not operation.public,
        500: True,
        400: not operation.any_host,
        403: method.upper() not in SAFE_METHODS,
        408: operation.body is not None,
        429: operation.rated,
    }
    return [status for status, raised in checks.items() if raised] + list(operation.errors)


def _body(operation: Operation) -> JsonObject | None:
    body = operation.body
    if body is None:
        return None
    if not isinstance(body, dict):
        examples = {"examples": operation.examples} if operation.examples else {}
        body = {"application/json": _reference(body) | examples}
    return {"required": True, "content": body}


def _response(answer: Answer) -> JsonObject:
    content = dict(answer.content)
    if answer.model is not None:
        content = {answer.media: _reference(answer.model)} | content
    headers = {"headers": dict(answer.headers)} if answer.headers else {}
    return {"description": answer.about, "content": content, **headers}


def _reference(model: type[BaseModel]) -> JsonObject:
    return {"schema": {"$ref": _REFERENCE + model.__name__}}


def _schemas(operations: Iterable[Operation]) -> tuple[JsonObject, Mapping[str, str]]:
    """The schemas of all models by title, and the titles by class name."""
    requests = [one.body for one in operations if isinstance(one.body, type)]
    responses = [
        answer.model
        for one in operations
        for answer in (*one.answers.values(), one.group.error(500))
        if answer.model is not None
    ]
    _, found = models_json_schema(
        [
            *((model, "validation") for model in dict.fromkeys(requests)),
            *((model, "serialization") for model in dict.fromkeys(responses)),
        ],
        ref_template=_REFERENCE + "{model}",
    )
    names = {name: schema["title"] for name, schema in found["$defs"].items()}
    return {names[name]: schema for name, schema in found["$defs"].items()}, names


def _renamed(found: JsonObject, names: Mapping[str, str]) -> JsonObject:
    """The document, with references that name schemas by their titles, not by their classes."""
    text = orjson.dumps(found)
    for name, title in names.items():
        text = text.replace(f'"{_REFERENCE}{name}"'.encode(), f'"{_REFERENCE}{title}"'.encode())
    renamed: JsonObject = orjson.loads(text)
    return renamed


def _version() -> str:
    try:
        return version("embedq")
    except PackageNotFoundError:
        return "0"
