"""The lines of a file of requests: read in pieces, checked as a whole, parsed.

A line is `{"custom_id", "method": "POST", "url", "body"}`. A fault of its form fails the file. A
fault of its body fails only that line, when it is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import IO, Any, NamedTuple

import orjson

from worker.store.openai_batch import FileFault
from worker.store.storage import CHUNK

#: Faults that are reported of one file.
_MOST_FAULTS = 100
_LONGEST_ID = 512
_BOM = b"\xef\xbb\xbf"


class RequestLine(NamedTuple):
    """Line `number`, from 1, without its end; `end` is the byte offset of the next line."""

    number: int
    end: int
    raw: bytes


class LineRequest(NamedTuple):
    """The request of one line; the body is not checked yet."""

    custom_id: str
    body: dict[str, Any]


class Findings(NamedTuple):
    """The result of checking a file: its number of requests, their model, and faults."""

    total: int
    model: str
    faults: list[FileFault]


class Malformed(Exception):
    """A line, or a file, that is not a valid request; `fault` has the reason."""

    def __init__(
        self, code: str, message: str, param: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(message)
        self.fault = FileFault(code, message, line, param)


def read_lines(
    file: IO[bytes], longest: int, *, offset: int = 0, number: int = 0
) -> Iterator[RequestLine]:
    """The non-blank lines of a file from byte `offset` on, which is after line `number`.

    Memory holds at most a line and a piece of it. Raises Malformed if a line is longer than
    `longest` bytes.
    """
    file.seek(offset)
    rest = b""
    while piece := file.read(CHUNK):
        *whole, rest = (rest + piece).split(b"\n")
        for raw in whole:
            number += 1
            offset += len(raw) + 1
            yield from _line(number, offset, raw, longest)
        if len(rest) > longest:
            raise _too_long(number + 1, longest)
    yield from _line(number + 1, offset + len(rest), rest, longest)


def parse(raw: bytes, endpoint: str) -> LineRequest:
    """Return the request of a line. Raises Malformed."""
    try:
        value = _loads(raw)
    except (ValueError, RecursionError):
        raise Malformed("invalid_json_line", "the line is not JSON") from None
    if not isinstance(value, dict):
        raise Malformed("invalid_json_line", "the line is not a JSON object")
    for name in ("custom_id", "method", "url", "body"):
        if name not in value:
            raise Malformed("missing_required_parameter", f"{name} is missing", name)
    custom_id = value["custom_id"]
    if not isinstance(custom_id, str) or not _is_usable(custom_id):
        message = f"custom_id is not a string of 1 to {_LONGEST_ID} characters"
        raise Malformed("invalid_json_line", message, "custom_id")
    if value["method"] != "POST":
        raise Malformed("invalid_method", "method is not POST", "method")
    if value["url"] != endpoint:
        raise Malformed("url_mismatch", f"url is not the batch's endpoint, {endpoint}", "url")
    if not isinstance(value["body"], dict):
        raise Malformed("invalid_json_line", "body is not a JSON object", "body")
    return LineRequest(custom_id, value["body"])


def check(lines: Iterable[RequestLine], endpoint: str) -> Findings:
    """Check every line of a file; returns its first hundred faults."""
    faults: list[FileFault] = []
    seen: set[bytes] = set()
    model: object = None
    total = 0
    try:
        for number, _, raw in lines:
            total += 1
            try:
                request = parse(raw, endpoint)
                wanted = request.body.get("model")
                model = wanted if total == 1 else model
                _check_alike(request, seen, same_model=wanted == model)
            except Malformed as error:
                faults.append(error.fault._replace(line=number))
                if len(faults) == _MOST_FAULTS:
                    break
    except Malformed as error:
        faults.append(error.fault)
    if not (total or faults):
        faults.append(FileFault("empty_file", "the file has no requests"))
    return Findings(total, model if isinstance(model, str) else "", faults)


def _line(number: int, end: int, raw: bytes, longest: int) -> Iterator[RequestLine]:
    if len(raw) > longest:
        raise _too_long(number, longest)
    if number == 1:
        raw = raw.removeprefix(_BOM)
    if raw.strip():
        yield RequestLine(number, end, raw)


def _too_long(number: int, longest: int) -> Malformed:
    message = f"the line is longer than {longest:,} bytes"
    return Malformed("invalid_json_line", message, line=number)


def _loads(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        if b"\\u" not in raw:
            raise
    # Accepts a lone surrogate: only its text fails.
    return json.loads(raw)


def _is_usable(custom_id: str) -> bool:
    """Whether it can be repeated in JSON that every parser accepts."""
    surrogates = any("\ud800" <= one <= "\udfff" for one in custom_id)
    return 1 <= len(custom_id) <= _LONGEST_ID and not surrogates


def _check_alike(request: LineRequest, seen: set[bytes], *, same_model: bool) -> None:
    digest = blake2b(request.custom_id.encode(), digest_size=16).digest()
    if digest in seen:
        raise Malformed("duplicate_custom_id", "another line has the same custom_id", "custom_id")
    seen.add(digest)
    if not same_model:
        raise Malformed("model_mismatch", "the model is not that of the first line", "body.model")
