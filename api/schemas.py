"""Responses, as models: they make the OpenAPI document.

Jobs are built as plain objects, which costs a fraction; tests validate answers by the document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from pydantic import BaseModel, Field

from worker.contract.jobs import Status
from worker.store.jobs import JobRecord


class Progress(BaseModel):
    """Texts of a job that are encoded, of all it has; null if that is not known yet."""

    done: int
    total: int | None


class Usage(BaseModel):
    """Tokens that the model read, special tokens and prompts included."""

    prompt_tokens: int
    total_tokens: int


class JobError(BaseModel):
    """Why a job has no vectors."""

    code: str
    message: str


class Links(BaseModel):
    """Addresses of the job, as paths on this server."""

    self: str
    result: str
    cancel: str


class JobDocument(BaseModel, title="Job"):
    """A job; its id is its Celery task id."""

    id: str
    status: Status
    created_at: datetime | None = Field(description="RFC 3339, UTC, as all times here.")
    started_at: datetime | None
    finished_at: datetime | None
    model: str | None
    progress: Progress
    usage: Usage | None
    error: JobError | None
    links: Links


class JobList(BaseModel):
    """One page of jobs, newest first."""

    data: list[JobDocument]
    has_more: bool
    next: str | None = Field(
        description="Path of the next page; a page of one status may be short and still have one."
    )


class TextFailure(BaseModel):
    """Why one text has no vector."""

    index: int
    code: str
    message: str


class Blob(BaseModel):
    """All vectors of a job as one matrix; the rows of failed texts are zero."""

    dtype: str = Field(description="Always `<f4`: float32, little-endian.")
    shape: tuple[int, int] = Field(description="Texts and dimensions.")
    data: str = Field(description="Base64 of the rows, one after the other.")


class Result(BaseModel):
    """The vectors of a job that succeeded."""

    model: str
    dimensions: int
    embeddings: list[list[float] | None] | Blob = Field(
        description="In the order of the input; null for a text that failed."
    )
    usage: Usage
    truncated: list[int] = Field(description="Indices of texts that were cut.")
    errors: list[TextFailure]
    token_counts: list[int] = Field(
        default=[], description="Tokens of each text; only where `token_counts` was asked for."
    )


class FinishedJob(JobDocument, title="FinishedJob"):
    """A job that its caller waited for."""

    result: Result | None = Field(
        default=None, description="Only in the answer of a `POST` that waited until it succeeded."
    )


def job_of(record: JobRecord, root: str) -> dict[str, Any]:
    """Return a `JobDocument`. `root` is the path under which this application is mounted."""
    path = f"{root}/jobs/{quote(record.id, safe='')}"
    tokens = record.prompt_tokens
    return {
        "id": record.id,
        "status": record.status,
        "created_at": _time(record.created_at),
        "started_at": _time(record.started_at),
        "finished_at": _time(record.finished_at),
        "model": record.model,
        "progress": {"done": record.done, "total": record.total},
        "usage": None if tokens is None else {"prompt_tokens": tokens, "total_tokens": tokens},
        "error": _error(record) if record.status is Status.FAILED else None,
        "links": {"self": path, "result": f"{path}/result", "cancel": f"{path}/cancel"},
    }


def job_list_of(
    records: Sequence[JobRecord], after: str | None, query: Mapping[str, str], root: str
) -> dict[str, Any]:
    """Return a `JobList`. `after` is the start of the next page, None if this is the last."""
    path = None
    if after is not None:
        path = f"{root}/jobs?{urlencode({**query, 'after': after})}"
    jobs = [job_of(record, root) for record in records]
    return {"data": jobs, "has_more": path is not None, "next": path}


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _error(record: JobRecord) -> dict[str, str]:
    return {
        "code": record.code or "internal_error",
        "message": record.message or "the job failed",
    }
