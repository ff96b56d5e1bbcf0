"""From a job's stored outcome to the answer of an embeddings request."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson

from api.errors import Problem
from worker.contract.jobs import EncodingFormat, Status
from worker.contract.results import matrix
from worker.openai import answers
from worker.store.jobs import JobRecord


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
    tokens = result["usage"]["prompt_tokens"]
    return answers.embeddings(result["model"], vectors, tokens, encoding_format)


def _failure(code: str, message: str) -> Problem:
    return Problem(
        code,
        message,
        field=answers.param_of_failure(message),
        status=answers.status_of_failure(code),
    )
