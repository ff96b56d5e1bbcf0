"""Stream a multipart body into the storage, with one piece in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import IO, Any, Final

from flask import Request
from werkzeug.formparser import FormDataParser

from api.body_deadlines import TimedBody
from api.errors import Problem
from worker.store.file_limits import MAX_BYTES
from worker.store.files import (
    BATCH,
    DEFAULT_TTL,
    LEAST_TTL,
    MAX_LINES,
    MOST_TTL,
    FileRecord,
    FileStore,
    new_id,
    object_name,
)

#: Bytes of each member other than the file, and parts of a form. Werkzeug's decoder also counts
#: the bytes that it has read ahead, 64 KiB.
_MAX_FORM_BYTES = 256 * 1024
_MAX_PARTS = 16
_LONGEST_NAME = 255
#: Characters that would break a header, or a terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

#: The form, for the OpenAPI document.
FORM: Final = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {
                "file": {"type": "string", "format": "binary"},
                "purpose": {"enum": [BATCH]},
                "expires_after[anchor]": {"enum": ["created_at"]},
                "expires_after[seconds]": {"type": "integer"},
            },
            "required": ["file", "purpose"],
        }
    }
}


def receive(request: Request, files: FileStore, owner: str) -> FileRecord:
    """Store the file of a form with `file`, `purpose` and, if wanted, `expires_after`.

    Raises Problem naming the fault, StorageUnavailable or redis.RedisError; the file is then not
    stored.
    """
    if request.mimetype != "multipart/form-data":
        raise Problem(
            "unsupported_media_type",
            f"Content-Type is {request.mimetype or 'none'!r}, not multipart/form-data",
            headers={"Accept": "multipart/form-data"},
        )
    if (request.content_length or 0) > MAX_BYTES + _MAX_FORM_BYTES:
        raise _too_large()
    file_id = new_id()
    files.reserve(file_id, owner, min(request.content_length or MAX_BYTES, MAX_BYTES))
    try:
        with files.storage.writer(object_name(file_id)) as target:
            sink = _Sink(target)
            form, name = _parse(request, sink)
            _check_purpose(form.get("purpose"))
            now = files.now()
            expires = now + _seconds(form)
    except BaseException:
        files.abandon(file_id)
        raise
    record = FileRecord(
        file_id,
        name=_CONTROL.sub("�", name)[:_LONGEST_NAME],
        bytes=sink.bytes,
        lines=sink.lines,
        purpose=BATCH,
        owner=owner,
        created_at=now,
        expires_at=expires,
    )
    files.add(record)
    return record


class _Sink:
    """The one file of a form, counted on its way into the storage."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._ends_in_line = False
        self._breaks = 0
        self.bytes = 0
        self.opened = False

    @property
    def lines(self) -> int:
        """Lines so far, one without an end at the end included."""
        return self._breaks + self._ends_in_line

    def open(self, **_: Any) -> _Sink:
        """Werkzeug: a part with a file begins."""
        if self.opened:
            raise Problem("invalid_request", "the form has more than one file", field="file")
        self.opened = True
        return self

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        self._breaks += data.count(b"\n")
        if data:
            self._ends_in_line = not data.endswith(b"\n")
        if self.bytes > MAX_BYTES:
            raise _too_large()
        if self.lines > MAX_LINES:
            raise Problem("too_large", f"the file has more than {MAX_LINES:,} lines", field="file")
        return self._target.write(data)

    def seek(self, offset: int) -> None:
        """Werkzeug: the part has ended. It is not read here."""


def _parse(request: Request, sink: _Sink) -> tuple[Mapping[str, str], str]:
    """The form's other members, and the name of the file that is in `sink` now."""
    parser = FormDataParser(
        stream_factory=sink.open,  # type: ignore[arg-type]
        max_form_memory_size=_MAX_FORM_BYTES,
        max_form_parts=_MAX_PARTS,
        silent=False,
    )
    try:
        with TimedBody(request) as body:
            _, form, received = parser.parse(
                body,  # type: ignore[arg-type]
                request.mimetype,
                request.content_length,
                request.mimetype_params,
            )
    except ValueError as error:
        raise Problem("malformed_body", "the body is not a multipart form") from error
    if "file" not in received:
        raise Problem("invalid_request", "file is missing", field="file")
    return form, received["file"].filename or "upload"


def _check_purpose(purpose: str | None) -> None:
    if purpose is None:
        raise Problem("invalid_request", "purpose is missing; batch is allowed", field="purpose")
    if purpose != BATCH:
        raise Problem(
            "invalid_request", f"purpose is {purpose!r}; batch is allowed", field="purpose"
        )


def _seconds(form: Mapping[str, str]) -> int:
    """Seconds until the file expires."""
    anchor, value = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and value is None:
        return DEFAULT_TTL
    if anchor != "created_at":
        raise Problem(
            "invalid_request",
            f"expires_after[anchor] is {anchor!r}; created_at is allowed",
            field="expires_after[anchor]",
        )
    if not re.fullmatch(r"[0-9]{1,9}", value or "") or not LEAST_TTL <= int(value or 0) <= MOST_TTL:
        raise Problem(
            "invalid_request",
            f"expires_after[seconds] is {value!r}; {LEAST_TTL:,} to {MOST_TTL:,} are allowed",
            field="expires_after[seconds]",
        )
    return int(value or 0)


def _too_large() -> Problem:
    return Problem("too_large", f"the file is larger than {MAX_BYTES:,} bytes", field="file")
