"""A job's vectors in the form that the caller asks for."""

from __future__ import annotations

import io
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import numpy as np
import orjson
from celery import states
from flask import Request, Response

from api.errors import Problem
from api.responses import json_body
from worker.contract.results import NoVectors, blob, failure_of, matrix, success_text, summary_of

JSON = "application/json"
NPY = "application/x-npy"
FORMS = ("float", "base64")


def media_type(request: Request) -> str:
    """`application/json` or `application/x-npy`, as `Accept` prefers. Raises Problem."""
    chosen = request.accept_mimetypes.best_match([JSON, NPY]) if request.accept_mimetypes else JSON
    if chosen is None:
        raise Problem("not_acceptable", f"a result is {JSON} or {NPY}")
    return chosen


def encoding_format(request: Request) -> str:
    """The query's `encoding_format`, floats by default. Raises Problem."""
    form = request.args.get("encoding_format", "float")
    if form not in FORMS:
        raise Problem(
            "invalid_request",
            f"encoding_format is {form!r}; allowed are {', '.join(FORMS)}",
            field="encoding_format",
        )
    return form


def response(meta: bytes, media: str, form: str) -> Response:
    """A stored outcome in the requested form. Raises Problem unless it is a success."""
    text = success_text(meta)
    if text is not None and media == JSON and _form_of(text) == form:
        return Response(text, content_type=JSON)
    result = _result(meta)
    try:
        vectors, _ = matrix(result["embeddings"])
    except NoVectors as error:
        raise Problem("not_found", error.message) from error
    if media == NPY:
        return Response(_npy(vectors), content_type=NPY)
    embeddings = blob(vectors) if form == "base64" else _rows(vectors, result)
    body = json_body(result | {"embeddings": embeddings})
    return Response(body, content_type=JSON)


def fragment(meta: bytes | None) -> orjson.Fragment | dict[str, Any] | None:
    """Return a stored success in the job's format, for use inside a larger answer, or None.

    Its vectors stay JSON text.
    """
    if meta is None:
        return None
    text = success_text(meta)
    if text is not None:
        return orjson.Fragment(text)
    outcome = orjson.loads(meta)
    return outcome["result"] if outcome["status"] == states.SUCCESS else None


def _result(meta: bytes) -> dict[str, Any]:
    outcome = orjson.loads(meta)
    if outcome["status"] == states.FAILURE:
        failure = failure_of(outcome["result"])
        raise Problem(failure.code, failure.message, status=HTTPStatus.CONFLICT)
    if outcome["status"] == states.REVOKED:
        raise Problem("cancelled", "the job was cancelled")
    if outcome["status"] != states.SUCCESS:
        raise Problem("not_ended", "the job has not ended")
    result = outcome["result"]
    if summary_of(result) is None:
        raise Problem("not_found", "the job's result is not of embedq.embed: it holds no vectors")
    found: dict[str, Any] = result
    return found


def _form_of(text: bytes) -> str:
    """Which form a result's JSON text has; `embeddings` stands near its beginning."""
    at = text.find(b'"embeddings":')
    return "base64" if text[at + 13 : at + 14] == b"{" else "float"


def _rows(vectors: np.ndarray[Any, Any], result: Mapping[str, Any]) -> list[Any]:
    errors = result.get("errors") or ()
    failed = {error.get("index") for error in errors if isinstance(error, Mapping)}
    return [None if index in failed else row for index, row in enumerate(vectors)]


def _npy(vectors: np.ndarray[Any, Any]) -> bytes:
    """Format version 1.0 of numpy.lib.format, little-endian float32, row-major."""
    file = io.BytesIO()
    np.lib.format.write_array(file, vectors.astype("<f4", copy=False), allow_pickle=False)
    return file.getvalue()
