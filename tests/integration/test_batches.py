"""The unmodified `openai` client runs whole batches on a real worker, also across kills."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import Batch

from tests.conftest import Service
from tests.processes import (
    Api,
    Processes,
    ValkeyServer,
    eventually,
    start_api,
    start_worker,
)
from worker.contract.models import ModelSpec
from worker.contract.settings import DEFAULT_MODEL_NAME
from worker.encoder.reference import Reference

#: Seconds for a batch of some hundred short texts on a busy machine.
PATIENCE = 90.0
ENDED = {"completed", "failed", "expired", "cancelled"}


def client_of(api: Api) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", timeout=60)


def request_of(custom_id: str, input: Any, **body: Any) -> dict[str, Any]:
    wanted = {"model": DEFAULT_MODEL_NAME, "input": input} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": wanted}


def create(client: openai.OpenAI, lines: Sequence[Any], **options: Any) -> Batch:
    data = "\n".join(json.dumps(one) for one in lines).encode()
    file = client.files.create(file=data, purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h", **options
    )


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    """The batch, at its end."""

    def look() -> Batch | None:
        found = client.batches.retrieve(batch.id)
        return found if found.status in ENDED else None

    found = eventually(look, PATIENCE, interval=0.1)
    assert found is not None
    return found


def completed(client: openai.OpenAI, batch: Batch) -> int:
    """Its requests that are answered with vectors."""
    counts = client.batches.retrieve(batch.id).request_counts
    return counts.completed if counts is not None else 0


def answers(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """The lines of an output file by custom id; each may be there once."""
    if file_id is None:
        return {}
    lines = [json.loads(one) for one in client.files.content(file_id).text.splitlines()]
    found = {one["custom_id"]: one for one in lines}
    assert len(found) == len(lines)
    return found


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with client_of(service.api) as found:
        yield found


def test_a_batch_of_two_windows_with_bad_lines_runs_to_its_end(client: openai.OpenAI) -> None:
    texts = [f"text number {number} of a batch" for number in range(600)]
    lines = [request_of(f"r{number}", text) for number, text in enumerate(texts)]
    lines[7]["body"]["dimensions"] = 7
    lines[8]["body"]["input"] = "\ud800"
    lines[9]["body"]["encoding_format"] = "base64"
    batch = create(client, lines, metadata={"name": "nightly"})
    assert (batch.status, batch.metadata) == ("validating", {"name": "nightly"})
    batch = ended(client, batch)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (600, 598, 2)
    good, bad = answers(client, batch.output_file_id), answers(client, batch.error_file_id)
    assert good.keys() | bad.keys() == {f"r{number}" for number in range(600)}
    codes = {key: one["response"]["body"]["error"]["code"] for key, one in bad.items()}
    assert codes == {"r7": "invalid_dimensions", "r8": "invalid_text"}
    sample = [0, 1, 300, 599]
    expected = Reference(ModelSpec(DEFAULT_MODEL_NAME), device="cpu").encode_alone(
        [texts[number] for number in sample]
    )
    for row, number in zip(expected, sample, strict=True):
        body = good[f"r{number}"]["response"]["body"]
        np.testing.assert_allclose(body["data"][0]["embedding"], row, rtol=0, atol=1e-5)
        alone = client.embeddings.create(model=DEFAULT_MODEL_NAME, input=texts[number])
        assert body["usage"] == alone.usage.to_dict()


def test_a_file_of_the_wrong_form_fails_its_batch_with_the_lines(client: openai.OpenAI) -> None:
    lines = [request_of("a", "x"), request_of("a", "y"), request_of("b", "z", model="other")]
    batch = ended(client, create(client, lines))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(fault.code, fault.line) for fault in batch.errors.data] == [
        ("duplicate_custom_id", 2),
        ("model_mismatch", 3),
    ]


def test_a_batch_is_cancelled_and_its_files_are_paged_and_deleted(client: openai.OpenAI) -> None:
    text = "a long text that keeps the worker busy for a while " * 12
    lines = [request_of(f"r{number}", f"{number} {text}") for number in range(3000)]
    batch = create(client, lines)
    eventually(lambda: client.batches.retrieve(batch.id).status == "in_progress", PATIENCE)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    assert batch.request_counts is not None
    found = answers(client, batch.output_file_id)
    assert len(found) == batch.request_counts.completed < 3000
    # The client requests page after page.
    ids = [one.id for one in client.batches.list(limit=1)]
    assert batch.id in ids
    assert len(ids) == len(set(ids))
    for file in list(client.files.list(limit=2)):
        assert client.files.delete(file.id).deleted
    assert list(client.files.list()) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_batch_outlives_worker_api_and_server_and_answers_each_line_once(
    processes: Processes, valkey_server: Callable[..., ValkeyServer], tmp_path: Path
) -> None:
    valkey = valkey_server("--appendfsync", "always")
    env = {
        "EMBEDQ_FILES": str(tmp_path / "files"),
        "EMBEDQ_LEASE_SECONDS": "3",
        # So slow that the batch is killed before it is done.
        "EMBEDQ_DEVICE": "cpu",
        "EMBEDQ_THREADS": "1",
    }
    worker = start_worker(processes, valkey.url, env=env)
    api = start_api(processes, valkey.url, env=env)
    total = 4000
    lines = [
        request_of(f"r{number}", f"text number {number} of many that take some time")
        for number in range(total)
    ]
    with client_of(api) as client:
        batch = create(client, lines)
        eventually(lambda: completed(client, batch) > 0, PATIENCE)
        worker.kill()
        api.process.kill()
    api = start_api(processes, valkey.url, env=env)
    with client_of(api) as client:
        seen = completed(client, batch)
        assert 0 < seen < total
        worker = start_worker(processes, valkey.url, env=env)
        eventually(lambda: completed(client, batch) > seen, PATIENCE, message=processes.logs)
        valkey.restart()
        # A batch does not delay a worker's stop.
        worker.stop()
        start_worker(processes, valkey.url, env=env)
        batch = ended(client, batch)
        assert batch.status == "completed", batch
        found = answers(client, batch.output_file_id)
        assert found.keys() == {f"r{number}" for number in range(total)}
