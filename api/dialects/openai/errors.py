"""Errors in OpenAI's format, and their documentation: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from flask import Response

from api.dialects.openai.schemas import ErrorDocument
from api.errors import Problem
from api.operations import RETRY_AFTER, Answer, OperationGroup, header
from api.responses import json_response
from worker.openai import answers

_ABOUT: Final = {
    400: "`malformed_body`, `untrusted_host`, `invalid_request`, `invalid_dimensions`, "
    "`invalid_prompt`, `max_tokens_per_request`, `token_ids_not_supported`, `cancelled`, or "
    "the code of the first text that failed; `param` names it.",
    401: "`unauthorized`",
    403: "`cross_site`",
    404: "`model_not_found`, `not_found`",
    408: "`request_timeout`",
    413: "`too_large`, `files_full`",
    415: "`unsupported_media_type`",
    429: "`rate_limit_exceeded`, `quota_exceeded`; the key's quotas are in the headers.",
    500: "`internal_error`, `time_limit`",
    503: "`no_worker`, `queue_full`, `results_full`, `redis_unavailable`, `not_in_time`, "
    "`storage_unavailable`",
}
#: Headers of every response under `/v1`.
HEADERS: Final = {
    "x-request-id": header("The request's own, or a new one."),
    "openai-processing-ms": header("Milliseconds that the answer took.", "integer"),
}


def response(problem: Problem) -> Response:
    """The answer to a request under `/v1`."""
    answer = json_response(document(problem), status_of(problem))
    answer.headers.update(problem.headers)
    return answer


def document(problem: Problem) -> dict[str, Any]:
    """The body of an error; the same in the output of a batch."""
    return answers.error(status_of(problem), problem.code, problem.message, problem.field)


def status_of(problem: Problem) -> HTTPStatus:
    """The status that OpenAI uses: 400 for an invalid request, 404 for an unknown model."""
    if problem.code == "model_not_found":
        return HTTPStatus.NOT_FOUND
    if problem.status is HTTPStatus.UNPROCESSABLE_ENTITY:
        return HTTPStatus.BAD_REQUEST
    return problem.status


def answer(status: int) -> Answer:
    """The documentation of an error."""
    headers = HEADERS | (RETRY_AFTER if status in (429, 503) else {})
    return Answer(_ABOUT[status], ErrorDocument, headers)


OPENAI: Final = OperationGroup("OpenAI's API", answer)
