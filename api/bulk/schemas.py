"""Files and batches in OpenAI's shapes: they make the answers and the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from worker.contract.files import FileRecord


class File(BaseModel):
    """A file, uploaded or made by a batch. Times in seconds since the epoch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str = Field(description="`batch`, or `batch_output` for what a batch wrote.")
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
