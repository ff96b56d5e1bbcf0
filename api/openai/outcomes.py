"""From a job's stored outcome to the answer of an embeddings request."""

from __future__ import annotations

import binascii
from http import HTTPStatus
from typing import Any

import orjson

from api.errors import Problem
from worker.contract.jobs import EncodingFormat, Status
from worker.contract.results import Matrix, matrix
from worker.contract.store import JobRecord

#: Codes of failures that another try may not meet; all others are the texts' own.
_PASSING = frozenset({"internal_error", "time_limit"})


def embeddings_of(record: JobRecord, meta: bytes, encoding_format: EncodingFormat) -> Any:
    """The body for a job that has ended and its stored outcome, ready for `json_body`.

    Raises Problem where not every text has a vector: a request is answered whole or not at all.
    """
    if record.status is Status.FAILED:
        raise _failure(record.code or "internal_error", record.message or "the job failed")
    if record.status is Status.CANCELLED:
        # Not 409: clients would send it again.
        raise Problem("cancelled", "the request was cancelled", status=HTTPStatus.BAD_REQUEST)
    result = orjson.loads(meta)["result"]
    if result["errors"]:
        first = result["errors"][0]
        raise _failure(first["code"], f"input[{first['index']}]: {first['message']}")
    vectors, _ = matrix(result["embeddings"])
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": row}
            for index, row in enumerate(
                _base64(vectors) if encoding_format == "base64" else vectors
            )
        ],
        "model": result["model"],
        "usage": result["usage"],
    }


def _failure(code: str, message: str) -> Problem:
    passing = code in _PASSING
    field = message.partition(":")[0] if message.startswith("input[") else None
    return Problem(
        code,
        message,
        field=field,
        status=HTTPStatus.INTERNAL_SERVER_ERROR if passing else HTTPStatus.BAD_REQUEST,
    )


def _base64(vectors: Matrix) -> list[str]:
    rows = vectors.astype("<f4", copy=False)
    return [binascii.b2a_base64(row, newline=False).decode("ascii") for row in rows]
