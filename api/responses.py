"""JSON answers, as bytes."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import orjson
from flask import Response


def json_body(value: Any) -> bytes:
    """`value` as JSON; may hold numpy rows, times, and strings with lone surrogates.

    Callers can put those into any name, and get it back in an error.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)
    except TypeError:
        return json.dumps(value).encode("ascii")


def json_response(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """An `application/json` answer."""
    return Response(json_body(value), status, content_type="application/json")
