"""Routes of files, as OpenAI's clients call them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from flask import Blueprint, Response, request

from api import auth, quotas
from api.backend import backend
from api.dialects.openai_batches import pages, uploads
from api.dialects.openai_batches.schemas import DeletedFile, File
from api.errors import Problem
from api.responses import json_response
from worker.store.file_limits import FilesFull
from worker.store.files import BATCH, BATCH_OUTPUT, FileRecord, object_name
from worker.store.storage import ObjectMissing, StorageUnavailable

blueprint = Blueprint("files", __name__, url_prefix="/files")

MOST_FILES_A_PAGE = 10_000
#: Seconds after which a storage that did not answer is worth another try.
_STORAGE_RETRY = 5
_LONGEST_ID = 64


@blueprint.post("")
def upload_file() -> Response:
    """Store a file of requests."""
    quotas.spend(backend(), 0)
    with storage_problems():
        files = backend().files
        files.sweep()
        record = uploads.receive(request, files, auth.owner())
    return json_response(File.of(record).model_dump())


@blueprint.get("")
def list_files() -> Response:
    """The caller's files, newest first unless asked otherwise."""
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
            limit=pages.limit(request, MOST_FILES_A_PAGE, MOST_FILES_A_PAGE),
            after=request.args.get("after"),
            purpose=purpose,
            newest_first=pages.newest_first(request),
        )
    except KeyError as error:
        raise pages.unknown_after("file") from error
    return json_response(pages.document(found, following, File.of))


@blueprint.get("/<file_id>")
def read_file(file_id: str) -> Response:
    """What is known of a file."""
    return json_response(File.of(find(file_id)).model_dump())


@blueprint.get("/<file_id>/content")
def read_content(file_id: str) -> Response:
    """The bytes of a file, streamed."""
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
def delete_file(file_id: str) -> Response:
    """Remove a file; the body, if there is one, is ignored."""
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
    """Answer what goes wrong in the storage."""
    try:
        yield
    except ObjectMissing as error:
        raise Problem("not_found", error.message) from error
    except FilesFull as error:
        raise Problem(error.code, error.message, field="file") from error
    except StorageUnavailable as error:
        raise Problem(error.code, error.message, retry_after=_STORAGE_RETRY) from error
