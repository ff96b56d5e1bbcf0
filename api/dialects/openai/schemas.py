"""Requests and responses of `/v1`, as models: they make the OpenAPI document.

Shapes: platform.openai.com/docs/api-reference/embeddings, /models, /files and /batch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api.schemas import Usage
from worker.store import openai_batch
from worker.store.files import LEAST_TTL, MOST_TTL, FileRecord
from worker.store.openai_batch import OpenAIBatchStatus


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(
        description="Numbers, or base64 of them as little-endian float32."
    )


class EmbeddingList(BaseModel):
    """The vectors of a request, in the order of its input."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Always 0: unknown.")
    owned_by: str
    dimensions: int = Field(description="Length of a vector; this and the rest are embedq's own.")
    max_tokens: int = Field(description="Longest text in tokens; a longer one is cut.")
    prompt_names: list[str]


class ModelList(BaseModel):
    """The served models, the default first."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="The part of the request at fault.")
    code: str | None = Field(description="Stable, for programs.")


class ErrorDocument(BaseModel):
    """An error."""

    error: ErrorDetail


class File(BaseModel):
    """A file, uploaded or made by a batch. Times in seconds since the epoch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str = Field(description="`batch`, or `batch_output` for a file that a batch wrote.")
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, record: FileRecord) -> File:
        return cls(
            id=record.id,
            bytes=record.bytes,
            created_at=int(record.created_at),
            expires_at=int(record.expires_at),
            filename=record.name,
            purpose=record.purpose,
        )


class FileList(BaseModel):
    """One page of files."""

    object: Literal["list"] = "list"
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class OutputExpiry(BaseModel, title="Expiry"):
    """For how long output files are kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=LEAST_TTL, le=MOST_TTL)]


MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
MOST_METADATA = 16


def _few(value: Any) -> Any:
    """Pydantic would count in the end, and make an error for each of a million wrong values."""
    if isinstance(value, dict) and len(value) > MOST_METADATA:
        raise ValueError(f"{len(value):,} pairs; at most {MOST_METADATA} are allowed")
    return value


Metadata = Annotated[
    dict[MetadataKey, MetadataValue], Field(max_length=MOST_METADATA), BeforeValidator(_few)
]


class BatchRequest(BaseModel):
    """The body of `POST /v1/batches`."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    input_file_id: str = Field(max_length=64, description="An uploaded file of requests.")
    endpoint: Literal["/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None


class BatchError(BaseModel):
    """Why a file of requests cannot be run."""

    code: str
    line: int | None = Field(description="Counted from 1; null for the whole file.")
    message: str
    param: str | None


class BatchErrors(BaseModel):
    """Why a batch has failed; at most a hundred lines are named."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """Requests of a batch: all, answered with vectors, answered with an error."""

    total: int
    completed: int
    failed: int


class BatchUsage(BaseModel):
    """Tokens that the model has read so far."""

    input_tokens: int
    output_tokens: int = 0
    total_tokens: int


class OpenAIBatchDocument(BaseModel, title="Batch"):
    """A batch. Times in seconds since the epoch, null for states that it has not reached."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: OpenAIBatchStatus
    output_file_id: str | None = Field(description="Answers with vectors, in any order.")
    error_file_id: str | None = Field(description="Requests that were answered with an error.")
    created_at: int
    in_progress_at: int | None
    expires_at: int = Field(description="When the completion window closes.")
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, batch: openai_batch.OpenAIBatch) -> OpenAIBatchDocument:
        def at(status: OpenAIBatchStatus) -> int | None:
            return int(batch.reached[status]) if status in batch.reached else None

        faults = [BatchError(**fault._asdict()) for fault in batch.errors]
        tokens = batch.prompt_tokens
        return cls(
            id=batch.id,
            endpoint=batch.endpoint,
            model=batch.model or None,
            errors=BatchErrors(data=faults) if faults else None,
            input_file_id=batch.input_file_id,
            completion_window=openai_batch.COMPLETION_WINDOW,
            status=batch.status,
            output_file_id=batch.output_file_id or None,
            error_file_id=batch.error_file_id or None,
            created_at=int(batch.created_at),
            in_progress_at=at(OpenAIBatchStatus.IN_PROGRESS),
            expires_at=int(batch.expires_at),
            finalizing_at=at(OpenAIBatchStatus.FINALIZING),
            completed_at=at(OpenAIBatchStatus.COMPLETED),
            failed_at=at(OpenAIBatchStatus.FAILED),
            expired_at=at(OpenAIBatchStatus.EXPIRED),
            cancelling_at=at(OpenAIBatchStatus.CANCELLING),
            cancelled_at=at(OpenAIBatchStatus.CANCELLED),
            request_counts=RequestCounts(
                total=batch.total, completed=batch.completed, failed=batch.failed
            ),
            usage=BatchUsage(input_tokens=tokens, total_tokens=tokens),
            metadata=dict(batch.metadata) or None,
        )


class BatchList(BaseModel):
    """One page of batches, newest first."""

    object: Literal["list"] = "list"
    data: list[OpenAIBatchDocument]
    first_id: str | None
    last_id: str | None
    has_more: bool
