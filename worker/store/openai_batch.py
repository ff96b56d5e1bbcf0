"""A batch of requests in OpenAI's API: its settings and its progress."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson

from worker.metrics.redaction import redact

ENDPOINT: Final = "/v1/embeddings"
#: Seconds that a batch may take: OpenAI's only completion window, `24h`.
COMPLETION_WINDOW: Final = "24h"
COMPLETION_SECONDS: Final = 24 * 3600


class OpenAIBatchStatus(StrEnum):
    """Status of a batch; the last four are its possible outcomes."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in _ENDED


_ENDED = frozenset(
    {
        OpenAIBatchStatus.COMPLETED,
        OpenAIBatchStatus.FAILED,
        OpenAIBatchStatus.EXPIRED,
        OpenAIBatchStatus.CANCELLED,
    }
)
#: Statuses in which a batch can be cancelled.
CANCELLABLE: Final = (
    OpenAIBatchStatus.VALIDATING,
    OpenAIBatchStatus.IN_PROGRESS,
    OpenAIBatchStatus.FINALIZING,
)


class FileFault(NamedTuple):
    """Reason why a whole file of requests cannot be run; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class OpenAIBatch:
    """A batch and its current state."""

    id: str
    input_file_id: str
    owner: str = ""
    status: OpenAIBatchStatus = OpenAIBatchStatus.VALIDATING
    endpoint: str = ENDPOINT
    model: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_at: float = field(default_factory=time.time)
    #: End of the completion window.
    expires_at: float = 0.0
    #: Time of each status except the first.
    reached: Mapping[str, float] = field(default_factory=dict)
    #: Seconds that its output is kept.
    output_ttl: int = 0
    #: Requests: all, answered with vectors, answered with an error.
    total: int = 0
    completed: int = 0
    failed: int = 0
    #: Tokens that the model read for these requests.
    prompt_tokens: int = 0
    errors: Sequence[FileFault] = ()
    output_file_id: str = ""
    error_file_id: str = ""
    #: Checkpoint of the coordinator: bytes and lines of the input that are done, and the objects
    #: with their answers, in order.
    offset: int = 0
    line: int = 0
    output_parts: Sequence[str] = ()
    error_parts: Sequence[str] = ()

    @property
    def folder(self) -> str:
        """Folder of the output's parts in the storage."""
        return f"batches/{self.id}"


def new_id() -> str:
    """An id of 128 random bits from the system's generator, so that ids cannot be guessed."""
    return f"batch_{secrets.token_hex(16)}"


#: Fields of a hash: texts, numbers and JSON.
_TEXTS = ("input_file_id", "owner", "endpoint", "model", "output_file_id", "error_file_id")
_FLOATS = ("created_at", "expires_at")
_COUNTS = ("output_ttl", "total", "completed", "failed", "prompt_tokens", "offset", "line")
_PARTS = ("output_parts", "error_parts")
#: Prefix of the field with the time of a status.
_AT = "at:"


def fields_of(batch: OpenAIBatch) -> dict[str, Any]:
    """A batch as the fields of a hash; lists and mappings as JSON."""
    return {
        "status": batch.status,
        "metadata": orjson.dumps(dict(batch.metadata)),
        "errors": orjson.dumps([tuple(fault) for fault in batch.errors]),
        **{name: getattr(batch, name) for name in (*_TEXTS, *_FLOATS)},
        **progress_of(batch),
        "total": batch.total,
        "output_ttl": batch.output_ttl,
        **{_AT + status: at for status, at in batch.reached.items()},
    }


def progress_of(batch: OpenAIBatch) -> dict[str, Any]:
    """The fields that change while a batch runs."""
    counts = ("completed", "failed", "prompt_tokens", "offset", "line")
    return {
        **{name: getattr(batch, name) for name in counts},
        **{name: orjson.dumps(list(getattr(batch, name))) for name in _PARTS},
    }


def parse(batch_id: str, fields: Mapping[bytes, bytes]) -> OpenAIBatch:
    """The batch that a hash holds."""
    values = {name.decode(): value.decode() for name, value in fields.items()}
    known: dict[str, Any] = {name: values[name] for name in _TEXTS}
    known |= {name: float(values[name]) for name in _FLOATS}
    known |= {name: int(values[name]) for name in _COUNTS}
    known |= {name: orjson.loads(values[name]) for name in _PARTS}
    return OpenAIBatch(
        id=batch_id,
        status=OpenAIBatchStatus(values["status"]),
        reached={
            name.removeprefix(_AT): float(value)
            for name, value in values.items()
            if name.startswith(_AT)
        },
        metadata=orjson.loads(values["metadata"]),
        errors=[_fault(*fault) for fault in orjson.loads(values["errors"])],
        **known,
    )


def _fault(code: str, message: str, line: int | None, param: str | None) -> FileFault:
    """Redact a stored fault: in earlier versions, storage faults quoted the URL's password."""
    shown = redact(message) if "EMBEDQ_FILES=" in message else message
    return FileFault(code, shown, line, param)
