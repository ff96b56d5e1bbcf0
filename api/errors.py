"""Errors as `application/problem+json` (RFC 9457); one table from code to status."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

import redis
from flask import Blueprint, Flask, Response
from pydantic import BaseModel, Field
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from api.responses import CompleteResponse, json_body
from worker.contract.errors import EmbedqError, InvalidJob

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

#: Every code that a request can be answered with. A job's own error keeps its own code, under 409.
STATUS_OF: Final[Mapping[str, HTTPStatus]] = {
    "bad_request": HTTPStatus.BAD_REQUEST,
    "malformed_body": HTTPStatus.BAD_REQUEST,
    "untrusted_host": HTTPStatus.BAD_REQUEST,
    "max_tokens_per_request": HTTPStatus.BAD_REQUEST,
    "token_ids_not_supported": HTTPStatus.BAD_REQUEST,
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "cross_site": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "not_acceptable": HTTPStatus.NOT_ACCEPTABLE,
    "request_timeout": HTTPStatus.REQUEST_TIMEOUT,
    "not_ended": HTTPStatus.CONFLICT,
    "cancelled": HTTPStatus.CONFLICT,
    "files_full": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "invalid_request": HTTPStatus.UNPROCESSABLE_ENTITY,
    "model_not_found": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_dimensions": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_prompt": HTTPStatus.UNPROCESSABLE_ENTITY,
    "idempotency_conflict": HTTPStatus.UNPROCESSABLE_ENTITY,
    "rate_limit_exceeded": HTTPStatus.TOO_MANY_REQUESTS,
    "quota_exceeded": HTTPStatus.TOO_MANY_REQUESTS,
    "internal_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "no_worker": HTTPStatus.SERVICE_UNAVAILABLE,
    "queue_full": HTTPStatus.SERVICE_UNAVAILABLE,
    "results_full": HTTPStatus.SERVICE_UNAVAILABLE,
    "redis_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "storage_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
}
#: Codes of the errors that Flask and Werkzeug raise.
_CODE_OF_STATUS: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "too_large",
    415: "unsupported_media_type",
}
#: Seconds for `Retry-After`: until Redis, a full store, and a stopped or killed worker are back.
_REDIS_RETRY_AFTER = 2
STORE_RETRY = 60
WORKER_RETRY = 10
#: Longest `Retry-After`. Clients of OpenAI's API do not retry at all after a longer one.
LONGEST_RETRY = 120
#: Characters of a message: it may quote a name that the caller made up.
LONGEST_DETAIL = 500


class Problem(EmbedqError):
    """A request that cannot be answered as asked.

    `status` is given only for a code that is not in the table: that of a job's own failure.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        status: HTTPStatus | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.field = field
        self.status = status or STATUS_OF[code]
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable, for programs.")
    field: str | None = Field(default=None, description="The part of the request at fault.")


def install(place: Flask | Blueprint, answer: Callable[[Problem], Response]) -> None:
    """Answer every error of `place` by `answer`."""

    def http_error(error: HTTPException) -> Response | HTTPException:
        is_error = (error.code or 500) >= HTTPStatus.BAD_REQUEST
        return answer(of_http_error(error)) if is_error else error

    place.register_error_handler(Problem, answer)
    place.register_error_handler(InvalidJob, lambda error: answer(of_invalid_job(error)))
    place.register_error_handler(redis.RedisError, lambda error: answer(_of_redis_error(error)))
    place.register_error_handler(HTTPException, http_error)
    place.register_error_handler(Exception, lambda error: answer(_of_bug(error)))


def seconds_to_encode(tokens: int, tokens_per_second: float) -> int:
    """Whole seconds, 1 to 120, in which the workers encode `tokens`; 1 if the rate is unknown."""
    if tokens <= 0 or tokens_per_second <= 0:
        return 1
    return max(1, min(math.ceil(tokens / tokens_per_second), LONGEST_RETRY))


def problem_response(problem: Problem) -> Response:
    """`type`, `title`, `status`, `detail`, `code`, and `field` if the problem has one."""
    body = {
        # The title only repeats the status; programs use the code.
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": problem.status.value,
        "detail": problem.message[:LONGEST_DETAIL],
        "code": problem.code,
    }
    if problem.field is not None:
        body["field"] = problem.field[:LONGEST_DETAIL]
    response = CompleteResponse(json_body(body), problem.status, content_type=MEDIA_TYPE)
    response.headers.update(problem.headers)
    return response


def of_invalid_job(error: InvalidJob) -> Problem:
    """The problem of a request with an invalid job."""
    code = error.code if error.code in STATUS_OF else InvalidJob.code
    return Problem(code, error.message, field=error.field)


def of_http_error(error: HTTPException) -> Problem:
    """The problem of a request that Flask or Werkzeug refused."""
    status = HTTPStatus(error.code or 500)
    headers = {}
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        headers["Allow"] = ", ".join(sorted(error.valid_methods))
    code = _CODE_OF_STATUS.get(status.value, "internal_error" if status >= 500 else "bad_request")
    detail = error.description or status.description
    return Problem(code, detail, status=status, headers=headers)


def _of_redis_error(error: redis.RedisError) -> Problem:
    if isinstance(error, redis.OutOfMemoryError):
        return Problem("results_full", "Redis is out of memory", retry_after=_REDIS_RETRY_AFTER)
    logger.warning("Redis did not answer: %s: %s", type(error).__name__, error)
    detail = "Redis does not answer; nothing that was accepted is lost"
    return Problem("redis_unavailable", detail, retry_after=_REDIS_RETRY_AFTER)


def _of_bug(error: Exception) -> Problem:
    logger.error("A request failed", exc_info=error)
    detail = "the request failed; the server's log says why"
    return Problem("internal_error", detail)
