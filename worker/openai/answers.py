"""The response bodies of an embeddings request, in OpenAI's format."""

from __future__ import annotations

import binascii
from http import HTTPStatus
from typing import Any, Final

from worker.contract.jobs import EncodingFormat
from worker.contract.outcomes import Matrix

#: Most characters of a message or a name in an error, which may quote the caller's input.
LONGEST_DETAIL: Final = 500
#: Codes of failures for which a retry may succeed; the texts cause all others.
_PASSING = frozenset({"internal_error", "time_limit"})


def embeddings(
    model: str, vectors: Matrix, prompt_tokens: int, encoding_format: EncodingFormat
) -> dict[str, Any]:
    """The body for texts that all have a vector, float32 (n, d); rows stay numpy for orjson."""
    rows = _base64(vectors) if encoding_format == "base64" else vectors
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": row}
            for index, row in enumerate(rows)
        ],
        "model": model,
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }


def error(status: HTTPStatus, code: str, message: str, param: str | None) -> dict[str, Any]:
    """The body of an error; `param` is the part of the request at fault."""
    return {
        "error": {
            "message": message[:LONGEST_DETAIL],
            "type": _type_of(status),
            "param": None if param is None else param[:LONGEST_DETAIL],
            "code": code,
        }
    }


def status_of_failure(code: str) -> HTTPStatus:
    """The status for a job, or one of its texts, that failed with `code`."""
    if code == "model_not_found":
        return HTTPStatus.NOT_FOUND
    return HTTPStatus.INTERNAL_SERVER_ERROR if code in _PASSING else HTTPStatus.BAD_REQUEST


def param_of_failure(message: str) -> str | None:
    """The text named by a failed job's message, or None."""
    return message.partition(":")[0] if message.startswith("input[") else None


def _type_of(status: HTTPStatus) -> str:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    if status is HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "invalid_request_error"


def _base64(vectors: Matrix) -> list[str]:
    rows = vectors.astype("<f4", copy=False)
    return [binascii.b2a_base64(row, newline=False).decode("ascii") for row in rows]
