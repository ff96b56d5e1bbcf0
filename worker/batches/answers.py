"""Lines of a batch's output: `{"id", "custom_id", "response", "error"}`, the ids random."""

from __future__ import annotations

import json
import secrets
from http import HTTPStatus
from typing import Any

import orjson

from worker.contract.jobs import EncodingFormat
from worker.contract.results import Matrix
from worker.openai import answers


def embedded(
    custom_id: str, model: str, vectors: Matrix, tokens: int, encoding_format: EncodingFormat
) -> bytes:
    """The line of a request whose texts all have a vector, float32 (n, d)."""
    body = answers.embeddings(model, vectors, tokens, encoding_format)
    return _line(custom_id, _response(HTTPStatus.OK, body), None)


def failed(custom_id: str, code: str, message: str, param: str | None = None) -> bytes:
    """The line of a request that was answered with an error, as a caller would have been."""
    status = answers.status_of_failure(code)
    body = answers.error(status, code, message, param)
    return _line(custom_id, _response(status, body), None)


def given_up(custom_id: str, code: str, message: str) -> bytes:
    """The line of a request that was never answered."""
    return _line(custom_id, None, {"code": code, "message": message})


def _response(status: HTTPStatus, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "status_code": status.value,
        "request_id": f"req_{secrets.token_hex(16)}",
        "body": body,
    }


def _line(custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    line = {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    try:
        return orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # A message repeats a name of the caller's with a lone surrogate.
        return json.dumps(line).encode("ascii") + b"\n"
