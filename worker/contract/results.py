"""The stored form of outcomes: Celery's format, vectors as floats or one base64 blob."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import orjson
from celery import states

from worker.contract.errors import EmbedqError, JobFailed
from worker.contract.jobs import EncodingFormat
from worker.contract.outcomes import Matrix, Outcome

#: Text around the result in a success that `_meta` has written.
_SUCCESS_HEAD = b'{"status":"SUCCESS","result":'
_RESULT_TAIL = b',"traceback":null,"children":[],"date_done":"'
#: Exceptions that Celery raises in a task, or stores for it, at its time limit.
_TIME_LIMITS = ("TimeLimitExceeded", "SoftTimeLimitExceeded")


class NoVectors(EmbedqError):
    """A stored result is not one of `embedq.embed`."""

    code = "not_found"


class Summary(NamedTuple):
    """The facts of a result without its vectors."""

    texts: int
    model: str | None
    prompt_tokens: int | None


def payload(outcome: Outcome, encoding_format: EncodingFormat) -> dict[str, Any]:
    """The result of the task; vectors that are floats are still numpy rows."""
    vectors = outcome.vectors
    embeddings: Any
    if encoding_format == "base64":
        embeddings = blob(vectors)
    elif outcome.errors:
        failed = {error.index for error in outcome.errors}
        embeddings = [None if row in failed else vectors[row] for row in range(len(vectors))]
    else:
        embeddings = vectors
    result = {
        "model": outcome.model,
        "dimensions": int(vectors.shape[1]),
        "embeddings": embeddings,
        "usage": {"prompt_tokens": outcome.prompt_tokens, "total_tokens": outcome.prompt_tokens},
        "truncated": list(outcome.truncated),
        "errors": [asdict(error) for error in outcome.errors],
    }
    if outcome.token_counts:
        result["token_counts"] = list(outcome.token_counts)
    return result


def plain(result: dict[str, Any]) -> dict[str, Any]:
    """The same result with lists in place of numpy rows, as any JSON encoder takes it."""
    embeddings = result["embeddings"]
    if isinstance(embeddings, np.ndarray):
        return result | {"embeddings": embeddings.tolist()}
    if isinstance(embeddings, list):
        rows = [None if row is None else row.tolist() for row in embeddings]
        return result | {"embeddings": rows}
    return result


def blob(vectors: Matrix) -> dict[str, Any]:
    """A matrix as `{"dtype": "<f4", "shape": [n, d], "data": base64 of the rows}`."""
    little = np.ascontiguousarray(vectors, dtype="<f4")
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"dtype": "<f4", "shape": list(little.shape), "data": data}


def summary_of(result: Any) -> Summary | None:
    """The summary of a result, or None for results of other tasks, which users may have."""
    if not isinstance(result, Mapping):
        return None
    embeddings = result.get("embeddings")
    if isinstance(embeddings, Mapping):
        embeddings = embeddings.get("shape")
        texts = embeddings[0] if isinstance(embeddings, list) and len(embeddings) == 2 else None
    else:
        texts = len(embeddings) if isinstance(embeddings, list | np.ndarray) else None
    if not isinstance(texts, int):
        return None
    model, usage = result.get("model"), result.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    return Summary(
        texts,
        model if isinstance(model, str) else None,
        tokens if isinstance(tokens, int) else None,
    )


def matrix(embeddings: Any) -> tuple[Matrix, list[int]]:
    """Either form of `embeddings` as float32 (n, d), and the rows that are null.

    A null row is zeros; base64 names no nulls, its zero rows stay as they are. Raises NoVectors.
    """
    try:
        vectors, missing = _matrix(embeddings)
    except (KeyError, TypeError, ValueError) as error:
        raise NoVectors("the stored result holds no vectors") from error
    if vectors.ndim != 2:
        raise NoVectors("the stored result holds no vectors")
    return vectors, missing


def _matrix(embeddings: Any) -> tuple[Matrix, list[int]]:
    if isinstance(embeddings, Mapping):
        data = np.frombuffer(base64.b64decode(embeddings["data"]), dtype="<f4")
        return data.reshape(embeddings["shape"]).astype(np.float32, copy=False), []
    missing = [index for index, row in enumerate(embeddings) if row is None]
    if missing:
        width = max(len(row) for row in embeddings if row is not None)
        embeddings = [[0.0] * width if row is None else row for row in embeddings]
    return np.asarray(embeddings, dtype=np.float32), missing


def success_meta(
    job_id: str,
    result: dict[str, Any],
    extra: Mapping[str, Any],
    done_at: datetime | None = None,
) -> bytes:
    """A stored success, byte for byte readable by Celery's Redis backend.

    `extra` contains `group_id` and `parent_id` if the message has them; `done_at`, in UTC, is now
    by default.
    """
    return _meta(job_id, states.SUCCESS, result, extra, done_at)


def revoked_meta(job_id: str) -> bytes:
    """A stored cancellation, as Celery stores a revoked task."""
    exception = {
        "exc_type": "TaskRevokedError",
        "exc_message": ["revoked"],
        "exc_module": "celery.exceptions",
    }
    return _meta(job_id, states.REVOKED, exception, {})


def has_expired(meta: bytes) -> bool:
    """Whether a worker stored the outcome because the job's deadline had passed."""
    result = orjson.loads(meta)["result"]
    return (
        isinstance(result, Mapping)
        and result.get("exc_type") == "TaskRevokedError"
        and result.get("exc_message") == ["expired"]
    )


def success_text(meta: bytes) -> bytes | None:
    """The result inside a stored success as JSON text, its vectors unparsed.

    None if the outcome is not a success, or was not written by `success_meta`.
    """
    if not meta.startswith(_SUCCESS_HEAD):
        return None
    # Inside a string its quotes would be escaped, so the last one ends the result.
    end = meta.rfind(_RESULT_TAIL)
    return None if end < 0 else meta[len(_SUCCESS_HEAD) : end]


def failure_of(result: Any) -> JobFailed:
    """The code and message of a stored failure, ours or any other exception's."""
    if not isinstance(result, Mapping):
        return JobFailed("internal_error", "the job failed")
    arguments = result.get("exc_message")
    if result.get("exc_type") == JobFailed.__name__ and isinstance(arguments, list | tuple):
        code, message = (*map(str, arguments), "internal_error", "the job failed")[:2]
        return JobFailed(code, message)
    kind = result.get("exc_type", "an error")
    if kind in _TIME_LIMITS:
        return JobFailed("time_limit", "the job ran longer than its time limit")
    return JobFailed("internal_error", f"the job failed with {kind}")


def _meta(
    job_id: str,
    state: str,
    result: Any,
    extra: Mapping[str, Any],
    done_at: datetime | None = None,
) -> bytes:
    meta = {
        # First, so that a script can read it without parsing the vectors.
        "status": state,
        "result": result,
        "traceback": None,
        "children": [],
        "date_done": done_at or datetime.now(UTC),
        **extra,
        "task_id": job_id,
    }
    return orjson.dumps(meta, option=orjson.OPT_SERIALIZE_NUMPY)
