"""Problems in the shape of OpenAI's errors: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from flask import Response

from api.errors import Problem
from api.responses import json_response
from worker.openai import answers


def response(problem: Problem) -> Response:
    """The answer to a request under `/v1`."""
    answer = json_response(document(problem), status_of(problem))
    answer.headers.update(problem.headers)
    return answer


def document(problem: Problem) -> dict[str, Any]:
    """The body of an error; the same in the output of a batch."""
    return answers.error(status_of(problem), problem.code, problem.message, problem.field)


def status_of(problem: Problem) -> HTTPStatus:
    """As OpenAI answers: what is wrong with a request is 400, a model that is not there 404."""
    if problem.code == "model_not_found":
        return HTTPStatus.NOT_FOUND
    if problem.status is HTTPStatus.UNPROCESSABLE_ENTITY:
        return HTTPStatus.BAD_REQUEST
    return problem.status
