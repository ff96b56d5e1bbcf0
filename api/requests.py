"""The current request, and its body: read within bounds, inflated within bounds, parsed."""

from __future__ import annotations

import gc
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import orjson
from flask import Request, g, request

from api.body_deadlines import TimedBody
from api.errors import Problem

_CHUNK = 64 * 1024
#: zlib's way to ask for a gzip header and trailer.
_GZIP = zlib.MAX_WBITS | 16
#: Most gzip members of a body: empty ones are only 20 bytes each but cost time.
_MOST_MEMBERS = 1024

# The methods of Flask's proxies have no types.
_request: Any = request
_g: Any = g


def current_request() -> Request:
    """Return the current request; Flask's proxy costs more at each use than most uses."""
    found: Request = _request._get_current_object()  # noqa: SLF001 - documented
    return found


def current_g() -> Any:
    """Return the values that the hooks and the routes keep for the current request."""
    return _g._get_current_object()  # noqa: SLF001 - documented


def page_limit(request: Request, default: int, most: int) -> int:
    """`?limit=N`. Raises Problem unless it is 1 to `most`."""
    value = request.args.get("limit")
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= most):
        raise Problem(
            "invalid_request", f"limit is {value!r}; 1 to {most:,} are allowed", field="limit"
        )
    return int(value)


def read_json(request: Request, limit: int) -> Any:
    """The JSON value of a body of at most `limit` bytes, before and after inflation.

    Raises Problem with `unsupported_media_type`, `too_large`, `request_timeout` or
    `malformed_body`.
    """
    _check_media_type(request)
    return parse_json(read_body(request, limit))


def read_body(request: Request, limit: int) -> bytes:
    """Return the body, inflated if it is gzip. At most `limit` bytes are in memory at a time."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise Problem(
            "unsupported_media_type",
            f"Content-Encoding {encoding!r} is not supported; gzip is",
            headers={"Accept-Encoding": "gzip"},
        )
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    with TimedBody(request) as body:
        chunks = _chunks(body, request.content_length)
        if encoding != "identity":
            chunks = _inflate(_bounded(chunks, limit))
        return b"".join(_bounded(chunks, limit))


def parse_json(body: bytes) -> Any:
    """Parse strictly, but accept lone surrogates: the worker fails only the text with one."""
    with _uncollected():
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            if b"\\u" not in body:
                raise Problem("malformed_body", f"the body is not JSON: {error}") from error
        try:
            return json.loads(body.decode(), parse_constant=_reject)
        except (ValueError, RecursionError) as error:
            raise Problem("malformed_body", "the body is not JSON") from error


def _check_media_type(request: Request) -> None:
    if request.environ.get("CONTENT_TYPE") == "application/json":
        # The most common value needs no parsing.
        return
    if request.mimetype != "application/json":
        given = request.mimetype or "none"
        raise Problem(
            "unsupported_media_type",
            f"Content-Type is {given!r}, not application/json",
            headers={"Accept": "application/json"},
        )
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise Problem("unsupported_media_type", f"charset is {charset!r}; JSON is UTF-8")


def _chunks(body: TimedBody, length: int | None) -> Iterator[bytes]:
    """The bytes of a body, without a last read for its end if it states its length."""
    while length != 0 and (chunk := body.read(_CHUNK)):
        yield chunk
        length = None if length is None else length - len(chunk)


def _bounded(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise _too_large(limit)
        yield chunk


def _inflate(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Inflate in steps of bounded size; several gzip members may follow each other (RFC 1952)."""
    member, members = zlib.decompressobj(_GZIP), 1
    for chunk in chunks:
        data = chunk
        while data:
            if member.eof:
                member, members = zlib.decompressobj(_GZIP), members + 1
            if members > _MOST_MEMBERS:
                raise Problem("malformed_body", f"the body has over {_MOST_MEMBERS:,} gzip members")
            try:
                yield member.decompress(data, _CHUNK)
            except zlib.error as error:
                raise Problem("malformed_body", "the body is not gzip") from error
            data = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise Problem("malformed_body", "the gzip body ends before its end")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Disable the garbage collector, which would traverse millions of new lists repeatedly.

    With two threads here, the one that found it enabled enables it again, maybe early for the
    other.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _too_large(limit: int) -> Problem:
    return Problem("too_large", f"the body is larger than {limit:,} bytes (EMBEDQ_MAX_JOB_BYTES)")


def _reject(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
