"""REST against a real worker: every form of a result, waiting, cancelling, both ways to submit."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import requests
from celery.result import AsyncResult
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Service
from tests.documented import examples, surprise
from tests.processes import eventually
from worker.contract.app import make_app
from worker.contract.models import ModelSpec
from worker.contract.settings import DEFAULT_MODEL_NAME, Settings
from worker.encoder.reference import Reference

TEXTS = ["a photo of a cat", "ein Foto einer Katze", "", "word " * 400, "naïve 🙂 \n\t", "x"]
#: Enough for many batches of the packaged model on any machine that runs tests.
MANY = [f"sentence number {number} about nothing in particular" for number in range(4096)]

Matrix = NDArray[np.float32]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(ModelSpec(DEFAULT_MODEL_NAME), device="cpu")


@pytest.fixture(scope="module")
def expected(reference: Reference) -> Matrix:
    return reference.encode_alone(TEXTS)


@pytest.fixture(scope="module")
def celery_app(service: Service) -> Iterator[Any]:
    """A program that uses Celery on the same server."""
    url = service.broker_url
    app = make_app(Settings(broker_url=url, result_backend=url))
    app.set_default()
    yield app
    app.close()


def post(service: Service, body: Any, **headers: str) -> requests.Response:
    return requests.post(f"{service.url}/jobs", json=body, headers=headers, timeout=70)


def get(service: Service, path: str, **headers: str) -> requests.Response:
    return requests.get(service.url + path, headers=headers, timeout=70)


def finished(service: Service, job_id: str, seconds: int = 60) -> dict[str, Any]:
    job: dict[str, Any] = get(service, f"/jobs/{job_id}?wait={seconds}").json()
    assert job["status"] in ("succeeded", "failed", "cancelled"), job
    return job


def test_a_long_text_is_read_to_its_end_where_that_is_asked_for(service: Service) -> None:
    text = " ".join(MANY[:80])
    cut, whole = (
        post(service, {"input": ["x", text], "long": how}, Prefer="wait=30").json()["result"]
        for how in ("cut", "mean")
    )
    assert (cut["truncated"], whole["truncated"]) == ([1], [])
    assert whole["usage"]["prompt_tokens"] > 2 * cut["usage"]["prompt_tokens"]
    assert_close([whole["embeddings"][0]], np.array([cut["embeddings"][0]]))
    vector = np.array(whole["embeddings"][1])
    assert np.abs(vector - cut["embeddings"][1]).max() > 1e-3
    assert abs(np.linalg.norm(vector) - 1.0) < 1e-5
    body = {"model": DEFAULT_MODEL_NAME, "input": text, "long": "mean"}
    answer = requests.post(f"{service.url}/v1/embeddings", json=body, timeout=70).json()
    assert_close([answer["data"][0]["embedding"]], vector[None])


def test_another_way_with_long_texts_is_named_with_those_there_are(service: Service) -> None:
    answer = post(service, {"input": "x", "long": "median"})
    assert answer.status_code == 422
    assert answer.json()["field"] == "long"
    assert "'cut' or 'mean'" in answer.json()["detail"]
    assert "median" not in answer.text


def test_submit_wait_and_read_the_vectors_the_library_gives(
    service: Service, expected: Matrix
) -> None:
    response = post(service, {"input": TEXTS}, Prefer="wait=30")
    assert response.status_code == 200, response.text
    job = response.json()
    assert job["status"] == "succeeded"
    assert job["model"] == DEFAULT_MODEL_NAME
    assert job["progress"] == {"done": len(TEXTS), "total": len(TEXTS)}
    assert job["result"]["truncated"] == [3]
    assert_close(job["result"]["embeddings"], expected)


def test_submit_poll_and_read_every_form(service: Service, expected: Matrix) -> None:
    accepted = post(service, {"input": TEXTS, "encoding_format": "base64"})
    assert accepted.status_code == 202
    location = accepted.headers["Location"]
    eventually(lambda: get(service, location).json()["status"] == "succeeded", 30)
    job = get(service, location).json()
    assert job["usage"]["prompt_tokens"] > len(TEXTS)
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]

    path = job["links"]["result"]
    assert_close(get(service, path).json()["embeddings"], expected)
    blob = get(service, path + "?encoding_format=base64").json()["embeddings"]
    data = np.frombuffer(base64.b64decode(blob["data"]), blob["dtype"]).reshape(blob["shape"])
    assert_close(data, expected)
    npy = get(service, path, Accept="application/x-npy").content
    assert_close(np.load(io.BytesIO(npy), allow_pickle=False), expected)


def test_one_bad_text_fails_alone(service: Service, reference: Reference) -> None:
    body = b'{"input": ["good", "\\ud800", "also good"]}'
    response = requests.post(
        f"{service.url}/jobs?wait=30",
        data=body,
        headers={"Content-Type": "application/json"},
        timeout=70,
    )
    result = response.json()["result"]
    assert [error["index"] for error in result["errors"]] == [1]
    assert result["embeddings"][1] is None
    vectors = [result["embeddings"][0], result["embeddings"][2]]
    assert_close(vectors, reference.encode_alone(["good", "also good"]))


def test_a_job_whose_every_text_fails_fails_with_the_code(service: Service) -> None:
    response = post(service, {"input": ["word " * 500], "truncate": False}, Prefer="wait=30")
    job = response.json()
    assert job["status"] == "failed"
    assert job["error"]["code"] == "text_too_long"
    result = get(service, job["links"]["result"])
    assert result.status_code == 409
    assert result.json()["code"] == "text_too_long"


def test_options_are_checked_against_the_model_that_is_served(service: Service) -> None:
    for body, code in (
        ({"input": "x", "model": "gpt"}, "model_not_found"),
        ({"input": "x", "dimensions": 7}, "invalid_dimensions"),
        ({"input": "x", "prompt_name": "none such"}, "invalid_prompt"),
    ):
        response = post(service, body)
        assert (response.status_code, response.json()["code"]) == (422, code)


def test_a_job_sent_by_celery_is_read_over_rest(
    service: Service, celery_app: Any, expected: Matrix
) -> None:
    sent = celery_app.send_task("embedq.embed", args=[TEXTS])
    sent.get(timeout=30)
    assert finished(service, sent.id)["status"] == "succeeded"
    assert_close(get(service, f"/jobs/{sent.id}/result").json()["embeddings"], expected)


def test_a_delayed_job_can_be_waited_for_over_rest_at_once(service: Service) -> None:
    # In a process of its own: `worker.app` is made from that process's environment.
    program = (
        "from worker.tasks import embed; import sys; assert 'torch' not in sys.modules; "
        "print(embed.delay(['one', 'two']).id)"
    )
    url = service.broker_url
    process = service.processes.python(
        "-c", program, env={"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
    )
    assert process.wait() == 0, process.log()
    job = finished(service, process.log().split()[-1])
    assert job["status"] == "succeeded"
    assert job["progress"] == {"done": 2, "total": 2}


def test_a_rest_job_is_read_by_celery(service: Service, celery_app: Any, expected: Matrix) -> None:
    job_id = post(service, {"input": TEXTS}).json()["id"]
    result = AsyncResult(job_id, app=celery_app).get(timeout=30)
    assert_close(result["embeddings"], expected)


def test_a_large_job_shows_progress_and_can_be_cancelled(service: Service) -> None:
    job_id = post(service, {"input": MANY}).json()["id"]
    seen: list[tuple[str, int]] = []

    def running() -> bool:
        job = get(service, f"/jobs/{job_id}").json()
        seen.append((job["status"], job["progress"]["done"]))
        return bool(job["progress"]["done"])

    eventually(running, 60)
    assert ("running", seen[-1][1]) == seen[-1]
    assert 0 < seen[-1][1] < len(MANY)
    cancelled = requests.delete(f"{service.url}/jobs/{job_id}", timeout=10)
    assert cancelled.json()["status"] == "cancelled"
    # The device is free long before all those texts could be encoded.
    small = post(service, {"input": "small"}, Prefer="wait=10")
    assert small.status_code == 200
    assert get(service, f"/jobs/{job_id}").json()["status"] == "cancelled"


def test_a_job_that_waits_behind_another_is_cancelled_and_never_runs(service: Service) -> None:
    large = post(service, {"input": MANY}).json()["id"]
    queued = [post(service, {"input": MANY[:64]}).json()["id"] for _ in range(3)]
    for job_id in queued:
        response = requests.post(f"{service.url}/jobs/{job_id}/cancel", timeout=10)
        assert response.json()["status"] == "cancelled"
    requests.delete(f"{service.url}/jobs/{large}", timeout=10)
    for job_id in [large, *queued]:
        assert get(service, f"/jobs/{job_id}").json()["status"] == "cancelled"
        assert get(service, f"/jobs/{job_id}/result").json()["code"] == "cancelled"


def test_events_tell_of_progress_and_then_of_the_end(service: Service) -> None:
    job_id = post(service, {"input": MANY[:1024]}).json()["id"]
    with requests.get(f"{service.url}/jobs/{job_id}/events", stream=True, timeout=70) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        events = list(read_events(stream))
    names = [name for name, _ in events]
    assert names[-1] == "done"
    assert set(names[:-1]) == {"progress"}
    steps = [data["done"] for name, data in events if name == "progress"]
    assert steps == sorted(steps)
    assert len(steps) > 2
    assert steps[-1] == 1024
    assert events[-1][1]["status"] == "succeeded"


def test_the_same_key_and_body_is_one_job(service: Service) -> None:
    key = base64.b64encode(os.urandom(12)).decode()
    first = post(service, {"input": "once"}, **{"Idempotency-Key": key}).json()
    again = post(service, {"input": "once"}, **{"Idempotency-Key": key})
    assert again.json()["id"] == first["id"]
    other = post(service, {"input": "twice"}, **{"Idempotency-Key": key})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


def read_events(stream: requests.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in stream.iter_lines(decode_unicode=True):
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def assert_close(vectors: Sequence[Any] | Matrix, expected: Matrix) -> None:
    np.testing.assert_allclose(np.asarray(vectors, np.float32), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("path", "name", "body"), examples())
def test_the_examples_of_the_document_work_as_they_stand(
    service: Service, path: str, name: str, body: Any
) -> None:
    response = requests.post(
        service.url + path, json=body, headers={"Prefer": "wait=60"}, timeout=70
    )
    assert response.status_code == 200, response.text
    kind = response.headers["Content-Type"].partition(";")[0]
    assert surprise("POST", path, response.status_code, kind, response.content) is None
    assert "error" not in response.json() or response.json()["error"] is None


def test_metrics_show_what_the_worker_did(service: Service) -> None:
    before = worker_samples(service)
    assert post(service, {"input": "metered " * 900}, Prefer="wait=60").status_code == 200
    refused = post(service, {"input": "metered " * 900, "truncate": False}, Prefer="wait=60")
    assert refused.json()["error"]["code"] == "text_too_long"

    def counted(name: str, least: float = 1, **labels: str) -> bool:
        key = (f"embedq_{name}", *sorted(labels.items()))
        return worker_samples(service).get(key, 0) >= before.get(key, 0) + least

    # A worker reports every two seconds.
    eventually(lambda: counted("jobs_ended_total", outcome="failed", code="text_too_long"), 30)
    eventually(lambda: counted("jobs_ended_total", outcome="succeeded", code=""), 30)
    assert counted("texts_truncated_total")
    assert counted("texts_failed_total", code="text_too_long")
    for name in ("queue", "tokenise", "forward", "write"):
        assert counted(f"{name}_seconds_count"), name
    assert counted("job_seconds_count", 2)
    assert counted("batch_fill_count")
    assert counted("leases_total", event="settled")
    assert counted("leases_total", 2, event="fetched")


def test_metrics_tell_apart_how_jobs_end_early(service: Service, celery_app: Any) -> None:
    def ended(outcome: str, code: str = "") -> float:
        key = ("embedq_jobs_ended_total", ("code", code), ("outcome", outcome))
        return worker_samples(service).get(key, 0)

    expired, cancelled, timed_out = (
        ended("expired"),
        ended("cancelled"),
        ended("failed", "time_limit"),
    )
    celery_app.send_task("embedq.embed", args=[TEXTS], expires=-60)
    # Longer than its limit on any machine.
    celery_app.send_task("embedq.embed", args=[MANY], time_limit=0.02)
    job_id = post(service, {"input": MANY}).json()["id"]
    assert requests.delete(f"{service.url}/jobs/{job_id}", timeout=30).status_code == 200
    eventually(lambda: ended("expired") > expired, 30)
    eventually(lambda: ended("cancelled") > cancelled, 30)
    eventually(lambda: ended("failed", "time_limit") > timed_out, 30)


def worker_samples(service: Service) -> dict[tuple[Any, ...], float]:
    """The metrics of the only worker, by name and labels."""
    families = text_string_to_metric_families(get(service, "/metrics").text)
    return {
        (sample.name, *sorted((k, v) for k, v in sample.labels.items() if k != "worker")): (
            sample.value
        )
        for family in families
        for sample in family.samples
        if "worker" in sample.labels
    }
