"""Check that answers match the OpenAPI document: their status, media type and body."""

from __future__ import annotations

import re
from typing import Any

import orjson
from flask import Flask, Response, request
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from api import create_app
from api.openapi import document
from worker.contract.settings import Settings

DOCUMENT = document(create_app(Settings()))
#: Bytes; checking a larger body would take longer than the test.
_LARGE = 200_000


def watch(app: Flask) -> list[str]:
    """Check every answer of an application; undocumented ones are added to the list."""
    surprises: list[str] = []

    @app.after_request
    def check(response: Response) -> Response:
        # Flask's own answers on unknown paths and methods belong to no operation.
        if request.url_rule is not None and request.url_rule.endpoint != "page.send_asset":
            path = re.sub(r"<[\w:]+>", "{id}", request.url_rule.rule)
            body = b"" if response.is_streamed else response.get_data()
            found = surprise(request.method, path, response.status_code, response.mimetype, body)
            if found is not None:
                surprises.append(found)
        return response

    return surprises


def examples() -> list[tuple[str, str, Any]]:
    """Path, name and body of every example of a JSON body in the document."""
    found = []
    for path, methods in DOCUMENT["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        examples = content.get("application/json", {}).get("examples", {})
        found += [(path, name, example["value"]) for name, example in examples.items()]
    assert found
    return found


def surprise(method: str, path: str, status: int, mimetype: str, body: bytes) -> str | None:
    """Describe the undocumented parts of an answer; `path` has `{id}` for its parameters."""
    name = f"{method} {path}: {status}"
    if method in ("HEAD", "OPTIONS") or status in (304, 405):
        return None
    operation = DOCUMENT["paths"].get(path, {}).get(method.lower())
    if operation is None or str(status) not in operation["responses"]:
        return f"{name} is in no operation"
    content = operation["responses"][str(status)].get("content", {})
    if mimetype not in content:
        return f"{name} is {mimetype}, documented are {', '.join(content)}"
    if not mimetype.endswith("json") or not 0 < len(body) < _LARGE:
        return None
    schema = content[mimetype]["schema"] | {"components": DOCUMENT["components"]}
    error = best_match(Draft202012Validator(schema).iter_errors(orjson.loads(body)))
    return None if error is None else f"{name}: {error.json_path}: {error.message[:200]}"
