"""A job as its owner sees it: read from its hash, put right by its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from worker.contract.jobs import Status
from worker.contract.results import failure_of, summary_of


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Where a job stands. Times in seconds since the epoch."""

    id: str
    status: Status
    owner: str = ""
    created_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    model: str | None = None
    done: int = 0
    total: int | None = None
    prompt_tokens: int | None = None
    code: str | None = None
    message: str | None = None


def parse(job_id: str, fields: Mapping[bytes, bytes]) -> JobRecord:
    """The record that a hash holds; an empty one is a job of which nothing is known but its id."""
    values = {name.decode(): value.decode() for name, value in fields.items()}

    def seconds(name: str) -> float | None:
        return float(values[name]) if values.get(name) else None

    total = int(values["total"]) if "total" in values else None
    return JobRecord(
        id=job_id,
        status=Status(values.get("status", Status.QUEUED)),
        owner=values.get("owner", ""),
        created_at=seconds("created"),
        started_at=seconds("started"),
        finished_at=seconds("finished"),
        model=values.get("model") or None,
        done=int(values.get("done", 0)),
        total=total,
        prompt_tokens=int(values["prompt_tokens"]) if "prompt_tokens" in values else None,
        code=values.get("code"),
        message=values.get("message"),
    )


def with_outcome(record: JobRecord, outcome: Mapping[str, Any]) -> JobRecord:
    """The same record with what its outcome, in Celery's format, says of it.

    For records that workers of older versions left open.
    """
    status = Status.of_celery(outcome["status"])
    if not status.ended:
        return replace(record, status=status)
    finished = outcome.get("date_done")
    changes: dict[str, Any] = {
        "status": status,
        "finished_at": datetime.fromisoformat(finished).timestamp() if finished else None,
    }
    result = outcome["result"]
    if status is Status.FAILED:
        failure = failure_of(result)
        changes |= {"code": failure.code, "message": failure.message}
    elif status is Status.SUCCEEDED and (summary := summary_of(result)) is not None:
        changes |= {
            "model": summary.model,
            "done": summary.texts,
            "total": summary.texts,
            "prompt_tokens": summary.prompt_tokens,
        }
    return replace(record, **changes)
