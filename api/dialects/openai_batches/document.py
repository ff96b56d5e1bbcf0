"""Files and batches in the OpenAPI document."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from api.dialects.openai.document import errors
from api.dialects.openai_batches.batches import BATCHES_A_PAGE, MOST_BATCHES_A_PAGE
from api.dialects.openai_batches.files import MOST_FILES_A_PAGE
from api.dialects.openai_batches.schemas import (
    Batch,
    BatchList,
    BatchRequest,
    DeletedFile,
    File,
    FileList,
)
from api.openapi_parts import JsonObject, answer, parameter, ref
from worker.store.files import BATCH, BATCH_OUTPUT

REQUESTS: Final[tuple[type[BaseModel], ...]] = (BatchRequest,)
ANSWERS: Final[tuple[type[BaseModel], ...]] = (File, FileList, DeletedFile, Batch, BatchList)


def paths() -> JsonObject:
    """The operations by path and method."""
    return _files() | _batches()


def _files() -> JsonObject:
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "/v1/files": {
            "post": {
                "summary": "Upload a file of requests, one a line",
                "requestBody": {"required": True, "content": {"multipart/form-data": _form()}},
                "responses": _answers("The file.", "File", 400, 413, 415),
            },
            "get": {
                "summary": "The caller's files",
                "parameters": [
                    *_paging(MOST_FILES_A_PAGE, MOST_FILES_A_PAGE),
                    parameter("purpose", "Only files for this.", {"enum": [BATCH, BATCH_OUTPUT]}),
                    parameter("order", "By time.", {"enum": ["asc", "desc"], "default": "desc"}),
                ],
                "responses": _answers("One page.", "FileList", 400),
            },
        },
        "/v1/files/{id}": {
            "get": {
                "summary": "What is known of a file",
                "parameters": [_id("The file's id.")],
                "responses": _answers("The file.", "File", 404),
            },
            "delete": {
                "summary": "Remove a file",
                "parameters": [_id("The file's id.")],
                "responses": _answers("It is gone.", "DeletedFile", 404),
            },
        },
        "/v1/files/{id}/content": {
            "get": {
                "summary": "The bytes of a file",
                "parameters": [_id("The file's id.")],
                "responses": _answers("The bytes.", "File", 404)
                | {"200": {"description": "The bytes.", "content": binary}},
            }
        },
    }


def _batches() -> JsonObject:
    body = {"required": True, "content": {"application/json": ref("BatchRequest")}}
    return {
        "/v1/batches": {
            "post": {
                "summary": "Have the requests of a file answered within a day",
                "requestBody": body,
                "responses": _answers("The batch.", "Batch", 400, 404, 413, 415),
            },
            "get": {
                "summary": "The caller's batches, newest first",
                "parameters": _paging(BATCHES_A_PAGE, MOST_BATCHES_A_PAGE),
                "responses": _answers("One page.", "BatchList", 400),
            },
        },
        "/v1/batches/{id}": {
            "get": {
                "summary": "A batch as it stands",
                "parameters": [_id("The batch's id.")],
                "responses": _answers("The batch.", "Batch", 404),
            }
        },
        "/v1/batches/{id}/cancel": {
            "post": {
                "summary": "Stop a batch and keep the answers it has",
                "parameters": [_id("The batch's id.")],
                "responses": _answers("The batch as it stands now.", "Batch", 404),
            }
        },
    }


def _form() -> JsonObject:
    properties = {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": [BATCH]},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer"},
    }
    return {"schema": {"type": "object", "properties": properties, "required": ["file", "purpose"]}}


def _paging(default: int, most: int) -> list[JsonObject]:
    size = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return [
        parameter("limit", "Entries of one page.", size),
        parameter("after", "An id; the page begins after it.", {"type": "string"}),
    ]


def _id(about: str) -> JsonObject:
    return parameter("id", about, {"type": "string"}, "path")


def _answers(about: str, model: str, *statuses: int) -> JsonObject:
    return {"200": answer(about, model), **errors(*statuses, 503)}
