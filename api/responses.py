"""JSON answers, as bytes."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import orjson
from flask import Response
from werkzeug.datastructures import Headers


def json_body(value: Any) -> bytes:
    """`value` as JSON; may contain numpy rows, times, and strings with lone surrogates.

    A caller's name may contain lone surrogates, and an error may quote it.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)
    except TypeError:
        return json.dumps(value).encode("ascii")


class CompleteResponse(Response):
    """A response with a body in memory, an absolute `Location` at most, and a status above 204."""

    def get_wsgi_headers(self, environ: dict[str, Any]) -> Headers:
        # Werkzeug's method copies and corrects the headers, which costs as much as all other steps.
        return self.headers


def json_response(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Return an `application/json` response."""
    return CompleteResponse(json_body(value), status, content_type="application/json")
