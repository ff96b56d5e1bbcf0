"""The output of a batch: lines of answers, and the files that they become.

A line is `{"id", "custom_id", "response", "error"}`, the ids random.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import orjson

from worker.batches.resources import Resources
from worker.contract import keys
from worker.contract.jobs import EncodingFormat
from worker.contract.outcomes import Matrix
from worker.openai import answers
from worker.store.files import BATCH_OUTPUT, FileRecord, object_name
from worker.store.openai_batch import OpenAIBatch, OpenAIBatchStatus
from worker.store.openai_batches import Claim
from worker.store.storage import StorageUnavailable

logger = logging.getLogger(__name__)


def embedded(
    custom_id: str, model: str, vectors: Matrix, tokens: int, encoding_format: EncodingFormat
) -> bytes:
    """The line of a successful request: one vector for each text, float32 (n, d)."""
    body = answers.embeddings(model, vectors, tokens, encoding_format)
    return _line(custom_id, _response(HTTPStatus.OK, body), None)


def failed(custom_id: str, code: str, message: str, param: str | None = None) -> bytes:
    """The line of a request that failed, with the error that a caller would get."""
    status = answers.status_of_failure(code)
    body = answers.error(status, code, message, param)
    return _line(custom_id, _response(status, body), None)


def given_up(custom_id: str, code: str, message: str) -> bytes:
    """The line of a request that was never answered."""
    return _line(custom_id, None, {"code": code, "message": message})


def finish(
    means: Resources, claim: Claim, batch: OpenAIBatch, status: OpenAIBatchStatus
) -> OpenAIBatch:
    """Join the files and end the batch with `status`, unless its status has changed meanwhile.

    May be repeated: the files have the same ids each time. Raises Superseded.
    """
    output = _file(means, batch, "output", batch.output_parts, batch.completed)
    errors = _file(means, batch, "error", batch.error_parts, batch.failed)
    ended = replace(batch, output_file_id=output, error_file_id=errors)
    return means.batches.move(claim, ended, status, come_from=(batch.status,))


def clean_up(means: Resources, batch: OpenAIBatch) -> None:
    """Remove the parts and jobs of a batch that has ended, and expired files."""
    means.store.client.delete(keys.jobs(means.settings.queue, batch.id))
    try:
        means.files.storage.remove(batch.folder)
        means.files.sweep()
    except StorageUnavailable as error:
        logger.warning("The parts of batch %s were not removed: %s", batch.id, error.message)


def _response(status: HTTPStatus, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "status_code": status.value,
        "request_id": f"req_{secrets.token_hex(16)}",
        "body": body,
    }


def _line(custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    line = {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    try:
        return orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # A message quotes a caller's name with a lone surrogate.
        return json.dumps(line).encode("ascii") + b"\n"


def _file(means: Resources, batch: OpenAIBatch, kind: str, parts: Sequence[str], lines: int) -> str:
    """The id of the file made of some parts, or '' without parts."""
    if not parts:
        return ""
    # As hard to guess as the batch's own id.
    digest = hashlib.sha256(f"{batch.id} {kind}".encode()).hexdigest()
    file_id = f"file-{digest[:32]}"
    # Without a bound: the batch was accepted, so its answers must be stored.
    means.files.reserve(file_id, batch.owner, 0, bounded=False)
    size = means.files.storage.join(parts, object_name(file_id))
    now = means.files.now()
    means.files.add(
        FileRecord(
            file_id,
            name=f"{batch.id}_{kind}.jsonl",
            bytes=size,
            lines=lines,
            purpose=BATCH_OUTPUT,
            owner=batch.owner,
            created_at=now,
            expires_at=now + batch.output_ttl,
        )
    )
    return file_id
