"""Routes of batches, as OpenAI's clients call them."""

from __future__ import annotations

from typing import Any, Final

from flask import Blueprint, Response, request
from pydantic import ValidationError

from api import auth, quotas, requests
from api.backend import backend
from api.dialects.openai import files, pages
from api.dialects.openai.errors import OPENAI
from api.dialects.openai.schemas import BatchList, BatchRequest, OpenAIBatchDocument
from api.errors import Problem
from api.operations import Answer, Operation, path_parameter
from api.responses import json_response
from worker.contract.jobs import check_names, invalid_job
from worker.store import openai_batch
from worker.store.files import BATCH, DEFAULT_TTL

blueprint = Blueprint("batches", __name__, url_prefix="/batches")

MOST_BATCHES_A_PAGE = 100
BATCHES_A_PAGE = 20
_LONGEST_ID = 64


_ID: Final = path_parameter("The batch's id.")


@blueprint.post("")
@Operation(
    OPENAI,
    {200: Answer("The batch.", OpenAIBatchDocument)},
    errors=(400, 404, 413, 415, 503),
    body=BatchRequest,
    rated=True,
)
def create_batch() -> Response:
    """Have the requests of a file answered within a day.

    An accepted batch ends, also after crashes and restarts.
    """
    quotas.spend(backend(), auth.key(), 0)
    asked = _parse(requests.read_json(request, backend().settings.max_job_bytes))
    source = files.find(asked.input_file_id, field="input_file_id")
    if source.purpose != BATCH:
        raise Problem(
            "invalid_request",
            f"the file's purpose is {source.purpose!r}, not {BATCH!r}",
            field="input_file_id",
        )
    with files.storage_problems():
        # The output will be stored even above the bound, so check the bound now.
        backend().files.room.check(auth.owner())
    now = backend().batches.now()
    kept = asked.output_expires_after
    batch = openai_batch.OpenAIBatch(
        openai_batch.new_id(),
        input_file_id=source.id,
        owner=auth.owner(),
        endpoint=asked.endpoint,
        metadata=asked.metadata or {},
        created_at=now,
        expires_at=now + openai_batch.COMPLETION_SECONDS,
        output_ttl=kept.seconds if kept is not None else DEFAULT_TTL,
    )
    backend().batches.create(batch)
    return json_response(OpenAIBatchDocument.of(batch).model_dump())


@blueprint.get("")
@Operation(
    OPENAI,
    {200: Answer("One page.", BatchList)},
    errors=(400, 503),
    parameters=pages.parameters(BATCHES_A_PAGE, MOST_BATCHES_A_PAGE),
    rated=True,
)
def list_batches() -> Response:
    """The caller's batches, newest first."""
    quotas.spend_listing(backend())
    try:
        found, following = backend().batches.page(
            auth.owner(),
            limit=requests.page_limit(request, BATCHES_A_PAGE, MOST_BATCHES_A_PAGE),
            after=request.args.get("after"),
        )
    except KeyError as error:
        raise pages.unknown_after("batch") from error
    return json_response(pages.document(found, following, OpenAIBatchDocument.of))


@blueprint.get("/<batch_id>")
@Operation(
    OPENAI, {200: Answer("The batch.", OpenAIBatchDocument)}, errors=(404, 503), parameters=[_ID]
)
def read_batch(batch_id: str) -> Response:
    """A batch as it stands."""
    return json_response(OpenAIBatchDocument.of(_find(batch_id)).model_dump())


@blueprint.post("/<batch_id>/cancel")
@Operation(
    OPENAI,
    {200: Answer("The batch as it stands now.", OpenAIBatchDocument)},
    errors=(404, 503),
    parameters=[_ID],
)
def cancel_batch(batch_id: str) -> Response:
    """Stop a batch and keep the answers it has.

    One that has ended stays as it is.
    """
    batch = _find(batch_id)
    if not batch.status.ended:
        backend().batches.cancel(batch.id)
    return json_response(OpenAIBatchDocument.of(_find(batch_id)).model_dump())


def _find(batch_id: str) -> openai_batch.OpenAIBatch:
    batch = backend().batches.read(batch_id) if len(batch_id) <= _LONGEST_ID else None
    if batch is None or batch.owner != auth.owner():
        raise Problem("not_found", "there is no such batch, or its time has passed")
    return batch


def _parse(body: Any) -> BatchRequest:
    if not isinstance(body, dict):
        raise Problem("invalid_request", "the body is not a JSON object")
    check_names(BatchRequest, body)
    try:
        return BatchRequest.model_validate(body)
    except ValidationError as error:
        raise invalid_job(error) from error
