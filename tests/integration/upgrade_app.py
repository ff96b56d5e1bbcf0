"""A user's application on top of embedq: the same file for the previous version and this one.

`celery -A upgrade_app worker` with this folder on the path. The model costs nothing
(`bench.costless`), and the device stands still while a file exists.
`python -m upgrade_app PHASE` submits one job of every kind like a producer with embedq, and
prints their ids as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis
from celery import chord, group

from bench import costless
from worker.tasks import embed

app = costless.app

#: List of the tasks' notes, JSON, on the broker's server.
NOTES = "notes"
#: Environment variables: the file that stops the device; one more task for the worker.
GATE, LATER = "UPGRADE_GATE", "UPGRADE_LATER"
#: Successful jobs, by name, with vectors that REST and `AsyncResult` show.
VECTORS = (
    *("plain", "bulk", "third", "linked", "countdown", "eta", "base64", "group.0", "group.1"),
    *("rest", "waited", "stock"),
)
#: Notes of tasks behind jobs, once each: the vectors of the job, or the jobs of the chord.
NOTED = {"linked": 2, "refused": 0, "quiet": 2, "chain": 2, "chord": 3, "written": 2, "stock": 2}


def texts(phase: str, name: str) -> list[str]:
    return [f"{phase} {name} {number}" for number in range(2)]


def note(*what: Any) -> None:
    with redis.Redis.from_url(os.environ["CELERY_BROKER_URL"]) as client:
        client.rpush(NOTES, json.dumps(what))


@app.task(name="upgrade.note_result")
def note_result(result: dict[str, Any], phase: str, name: str) -> None:
    note(phase, name, len(result["embeddings"]))


@app.task(name="upgrade.note_results")
def note_results(results: list[dict[str, Any]], phase: str, name: str) -> int:
    note(phase, name, len(results))
    return len(results)


@app.task(name="upgrade.note_failure")
def note_failure(phase: str, name: str) -> None:
    note(phase, name, 0)


@app.task(name="upgrade.write")
def write(phase: str, name: str) -> list[str]:
    return texts(phase, name)


if LATER in os.environ:

    @app.task(name="upgrade.later")
    def later(phase: str) -> None:
        note(phase, "later", 0)


class GatedEncoder(costless.CostlessEncoder):
    def forward(self, batch: Any, **options: Any) -> Any:
        while Path(os.environ[GATE]).exists():
            time.sleep(0.01)
        return super().forward(batch, **options)


if GATE in os.environ:
    costless.CostlessEncoder = GatedEncoder  # type: ignore[misc]


def submit(phase: str) -> dict[str, str]:
    """One job of each kind; ids by name."""
    now = datetime.now(UTC)

    def send(name: str, values: dict[str, Any] | None = None, **options: Any) -> str:
        return str(embed.apply_async((texts(phase, name),), values, **options).id)

    def noted(name: str) -> Any:
        return note_result.s(phase, name)

    ids = {
        "plain": send("plain"),
        "bulk": send("bulk", priority=9),
        "third": send("third", priority=3),
        "linked": send("linked", link=noted("linked")),
        "countdown": send("countdown", countdown=1),
        "eta": send("eta", eta=now + timedelta(seconds=1.5)),
        "base64": send("base64", {"encoding_format": "base64"}),
        "refused": send("refused", {"model": "x"}, link_error=note_failure.si(phase, "refused")),
        "quiet": send("quiet", link=noted("quiet"), ignore_result=True),
        "expired": send("expired", link=noted("expired"), expires=now - timedelta(seconds=5)),
        "partly": embed.delay([*texts(phase, "partly"), "x" * 100], truncate=False).id,
        "cancelled": send("cancelled", link=noted("cancelled"), countdown=5),
    }
    several = group(embed.s(texts(phase, f"group.{number}")) for number in range(2))()
    ids |= {f"group.{number}": one.id for number, one in enumerate(several)}
    ids["chain"] = (embed.s(texts(phase, "chain")) | noted("chain")).delay().id
    written = write.s(phase, "written") | embed.s() | noted("written")
    ids["written"] = written.delay().id
    header = [embed.s(texts(phase, f"chord.{number}")) for number in range(3)]
    ids["chord"] = chord(header)(note_results.s(phase, "chord")).id
    return ids


if __name__ == "__main__":
    print(json.dumps(submit(sys.argv[1])))  # noqa: T201
