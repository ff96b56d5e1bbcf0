"""Server-sent events of a job."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from api import events
from tests.api_stand import ApiStand, api_stand
from tests.processes import eventually

VECTORS = np.zeros((2, 4), dtype=np.float32)


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as stand:
        yield stand


def parse(stream: str) -> list[tuple[str, Any]]:
    """Events of a stream, comments and other fields left out."""
    found = []
    for block in stream.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_a_job_that_has_ended_is_done_at_once(api: ApiStand) -> None:
    job_id = api.submitted(["a", "b"])
    api.succeed(job_id, VECTORS)
    response = api.client.get(f"/jobs/{job_id}/events")
    assert response.content_type.startswith("text/event-stream")
    assert response.headers["Cache-Control"] == "no-store"
    (progress, step), (done, job) = parse(response.text)
    assert (progress, done) == ("progress", "done")
    assert step == {"status": "succeeded", "done": 2, "total": 2}
    assert job == api.client.get(f"/jobs/{job_id}").get_json()


def test_every_step_is_told_as_it_happens(api: ApiStand) -> None:
    job_id = api.submitted(["a", "b"])
    response = api.app.test_client().get(f"/jobs/{job_id}/events", buffered=False)
    stream = (bytes(chunk).decode() for chunk in response.iter_encoded())
    with ThreadPoolExecutor(1) as reader:

        def step() -> tuple[str, Any]:
            def read() -> tuple[str, Any]:
                return next(event for chunk in stream for event in parse(chunk))

            return reader.submit(read).result(10)

        assert step() == ("progress", {"status": "queued", "done": 0, "total": 2})
        api.store.progress([(job_id, time.time(), 1, 2, 0)])
        assert step() == ("progress", {"status": "running", "done": 1, "total": 2})
        api.succeed(job_id, VECTORS)
        assert step() == ("progress", {"status": "succeeded", "done": 2, "total": 2})
        name, job = step()
        assert (name, job["status"]) == ("done", "succeeded")
    response.close()
    eventually(lambda: api.backend.waiting.count() == 0)


def test_a_quiet_stream_shows_that_it_lives_and_ends_in_time(
    api: ApiStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_HEARTBEAT", 0.05)
    monkeypatch.setattr(events, "LONGEST_BLOCKING_WAIT", 0.5)
    job_id = api.submitted()
    stream = api.client.get(f"/jobs/{job_id}/events").text
    assert stream.count(": waiting") >= 3
    assert [name for name, _ in parse(stream)] == ["progress"]
    assert stream.startswith("retry: ")


def test_a_client_that_goes_away_leaves_nothing_behind(api: ApiStand) -> None:
    job_id = api.submitted()
    response = api.app.test_client().get(f"/jobs/{job_id}/events", buffered=False)
    stream = response.iter_encoded()
    next(stream)
    next(stream)
    assert api.backend.waiting.count() == 1
    response.close()
    del stream
    assert api.backend.waiting.count() == 0
