"""Routes of files, as OpenAI's clients call them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Final

from flask import Blueprint, Response, request

from api import auth, quotas, requests
from api.backend import backend
from api.dialects.openai import pages, uploads
from api.dialects.openai.errors import OPENAI
from api.dialects.openai.schemas import DeletedFile, File, FileList
from api.errors import Problem
from api.operations import Answer, Operation, parameter, path_parameter
from api.responses import json_response
from worker.store.file_limits import FilesFull
from worker.store.files import BATCH, BATCH_OUTPUT, FileRecord, object_name
from worker.store.storage import ObjectMissing, StorageUnavailable

blueprint = Blueprint("files", __name__, url_prefix="/files")

MOST_FILES_A_PAGE = 10_000
#: Seconds for `Retry-After` if the storage does not answer.
_STORAGE_RETRY = 5
_LONGEST_ID = 64


_ID: Final = path_parameter("The file's id.")
_BYTES: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@blueprint.post("")
@Operation(
    OPENAI,
    {200: Answer("The file.", File)},
    errors=(400, 413, 415, 503),
    body=uploads.FORM,
    rated=True,
)
def upload_file() -> Response:
    """Upload a file of requests, one a line."""
    quotas.spend(backend(), auth.key(), 0)
    with storage_problems():
        files = backend().files
        files.sweep()
        record = uploads.receive(request, files, auth.owner())
    return json_response(File.of(record).model_dump())


@blueprint.get("")
@Operation(
    OPENAI,
    {200: Answer("One page.", FileList)},
    errors=(400, 503),
    parameters=[
        *pages.parameters(MOST_FILES_A_PAGE, MOST_FILES_A_PAGE),
        parameter("purpose", "Only files for this.", {"enum": [BATCH, BATCH_OUTPUT]}),
        parameter("order", "By time.", {"enum": ["asc", "desc"], "default": "desc"}),
    ],
    rated=True,
)
def list_files() -> Response:
    """The caller's files."""
    quotas.spend_listing(backend())
    purpose = request.args.get("purpose")
    if purpose not in (None, BATCH, BATCH_OUTPUT):
        raise Problem(
            "invalid_request",
            f"purpose is {purpose!r}; {BATCH} and {BATCH_OUTPUT} are allowed",
            field="purpose",
        )
    try:
        found, following = backend().files.page(
            auth.owner(),
            limit=requests.page_limit(request, MOST_FILES_A_PAGE, MOST_FILES_A_PAGE),
            after=request.args.get("after"),
            purpose=purpose,
            newest_first=pages.newest_first(request),
        )
    except KeyError as error:
        raise pages.unknown_after("file") from error
    return json_response(pages.document(found, following, File.of))


@blueprint.get("/<file_id>")
@Operation(OPENAI, {200: Answer("The file.", File)}, errors=(404, 503), parameters=[_ID])
def read_file(file_id: str) -> Response:
    """What is known of a file."""
    return json_response(File.of(find(file_id)).model_dump())


@blueprint.get("/<file_id>/content")
@Operation(OPENAI, {200: Answer("The bytes.", content=_BYTES)}, errors=(404, 503), parameters=[_ID])
def read_content(file_id: str) -> Response:
    """The bytes of a file."""
    record = find(file_id)
    chunks = backend().files.storage.chunks(object_name(record.id))
    with storage_problems():
        # Opened now, while the answer can still be another.
        first = next(chunks, b"")
    response = Response(chain((first,), chunks), content_type="application/octet-stream")
    response.headers["Content-Length"] = str(record.bytes)
    response.headers.set("Content-Disposition", "attachment", filename=record.name)
    response.call_on_close(chunks.close)
    return response


@blueprint.delete("/<file_id>")
@Operation(OPENAI, {200: Answer("It is gone.", DeletedFile)}, errors=(404, 503), parameters=[_ID])
def delete_file(file_id: str) -> Response:
    """Remove a file.

    The request's body, if there is one, is ignored.
    """
    record = find(file_id)
    with storage_problems():
        backend().files.delete(record.id, record.owner)
    return json_response(DeletedFile(id=record.id).model_dump())


def find(file_id: str, field: str | None = None) -> FileRecord:
    """A file that the caller may see. Raises Problem with `not_found`."""
    record = backend().files.read(file_id) if len(file_id) <= _LONGEST_ID else None
    if record is None or record.owner != auth.owner():
        raise Problem("not_found", "there is no such file, or its time has passed", field=field)
    return record


@contextmanager
def storage_problems() -> Iterator[None]:
    """Raise errors of the storage as Problems."""
    try:
        yield
    except ObjectMissing as error:
        raise Problem("not_found", error.message) from error
    except FilesFull as error:
        raise Problem(error.code, error.message, field="file") from error
    except StorageUnavailable as error:
        raise Problem(error.code, error.message, retry_after=_STORAGE_RETRY) from error
