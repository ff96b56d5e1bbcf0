"""JSON answers, as bytes."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import orjson
from flask import Response
from werkzeug.datastructures import Headers


def json_body(value: Any) -> bytes:
    """`value` as JSON; may hold numpy rows, times, and strings with lone surrogates.

    Callers can put those into any name, and get it back in an error.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)
    except TypeError:
        return json.dumps(value).encode("ascii")


class CompleteResponse(Response):
    """A response with a body in memory, an absolute `Location` at most, and a status above 204."""

    def get_wsgi_headers(self, environ: dict[str, Any]) -> Headers:
        # Werkzeug's copies the headers to correct them, at the cost of all other steps together.
        return self.headers


def json_response(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Return an `application/json` response."""
    return CompleteResponse(json_body(value), status, content_type="application/json")
