"""The routes of batches; the coordinator has its own tests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.api_stand import ApiStand, api_stand
from worker.contract import keys
from worker.store.files import FileRecord
from worker.store.openai_batch import FileFault, OpenAIBatch, OpenAIBatchStatus


@pytest.fixture
def stand(redis_url: str, tmp_path: Path) -> Iterator[ApiStand]:
    with api_stand(redis_url, files=str(tmp_path / "files")) as made:
        yield made


@pytest.fixture
def file_id(stand: ApiStand) -> str:
    form = {"purpose": "batch", "file": (io.BytesIO(b"{}\n"), "lines.jsonl")}
    response = stand.client.post("/v1/files", data=form)
    found: str = response.get_json()["id"]
    return found


def create(stand: ApiStand, file_id: str, **changes: Any) -> Any:
    body = {
        "input_file_id": file_id,
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    } | changes
    return stand.client.post("/v1/batches", json=body)


def created(stand: ApiStand, file_id: str, **changes: Any) -> dict[str, Any]:
    response = create(stand, file_id, **changes)
    assert response.status_code == 200, response.data
    body: dict[str, Any] = response.get_json()
    return body


def test_a_new_batch_is_validating_and_its_coordinator_is_sent_for(
    stand: ApiStand, file_id: str
) -> None:
    batch = created(stand, file_id, metadata={"name": "nightly"})
    assert batch["id"].startswith("batch_")
    assert (batch["object"], batch["status"]) == ("batch", "validating")
    assert batch["expires_at"] - batch["created_at"] == 24 * 3600
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch["metadata"] == {"name": "nightly"}
    assert batch["errors"] is batch["output_file_id"] is batch["error_file_id"] is None
    assert stand.client.get(f"/v1/batches/{batch['id']}").get_json() == batch
    [raw] = stand.redis.lrange(keys.batch_queue("embedq"), 0, -1)
    message = orjson.loads(raw)
    assert (message["headers"]["task"], message["headers"]["ignore_result"]) == (
        "embedq.batch",
        True,
    )
    assert orjson.loads(message["body"])[0] == [batch["id"]]


def test_a_batch_is_shown_as_its_coordinator_left_it(stand: ApiStand) -> None:
    batch = OpenAIBatch(
        "batch_x",
        "file-x",
        status=OpenAIBatchStatus.FAILED,
        reached={OpenAIBatchStatus.IN_PROGRESS: 5.0, OpenAIBatchStatus.FAILED: 9.0},
        total=10,
        completed=7,
        failed=2,
        prompt_tokens=99,
        errors=[FileFault("empty_file", "no requests"), FileFault("x", "y", 3, "url")],
        output_file_id="file-out",
    )
    stand.backend.batches.create(batch)
    shown = stand.client.get("/v1/batches/batch_x").get_json()
    assert shown["request_counts"] == {"total": 10, "completed": 7, "failed": 2}
    assert (shown["in_progress_at"], shown["failed_at"], shown["completed_at"]) == (5, 9, None)
    assert shown["errors"]["data"] == [
        {"code": "empty_file", "line": None, "message": "no requests", "param": None},
        {"code": "x", "line": 3, "message": "y", "param": "url"},
    ]
    assert (shown["output_file_id"], shown["error_file_id"]) == ("file-out", None)
    assert shown["usage"]["total_tokens"] == 99


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"endpoint": "/v1/chat/completions"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": None}, "input_file_id"),
        ({"input_file_id": "x" * 100}, "input_file_id"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"name": 3}}, "metadata"),
        ({"metadata": {"x" * 65: "y"}}, "metadata"),
        ({"metadata": {"x": "y" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "x", "seconds": 3600}}, "output_expires_after"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_wrong_batch_is_refused_with_the_member_at_fault(
    stand: ApiStand, file_id: str, changes: dict[str, Any], field: str
) -> None:
    response = create(stand, file_id, **changes)
    assert response.status_code == 400
    assert response.get_json()["error"]["param"].startswith(field)
    assert stand.redis.llen(keys.batch_queue("embedq")) == 0


def test_a_body_that_is_no_object_is_refused(stand: ApiStand) -> None:
    assert stand.client.post("/v1/batches", json=[1]).status_code == 400
    assert stand.client.post("/v1/batches", data=b"{").status_code == 415


def test_the_input_has_to_be_a_file_of_the_callers_for_batches(stand: ApiStand) -> None:
    files = stand.backend.files
    files.add(FileRecord("file-out", "o", 1, "batch_output", expires_at=2e9))
    files.add(FileRecord("file-theirs", "t", 1, "batch", "them", expires_at=2e9))
    for file_id, status in (("file-none", 404), ("file-theirs", 404), ("file-out", 400)):
        response = create(stand, file_id)
        assert response.status_code == status
        assert response.get_json()["error"]["param"] == "input_file_id"


def test_batches_are_listed_newest_first_page_by_page(stand: ApiStand, file_id: str) -> None:
    ids = [created(stand, file_id)["id"] for _ in range(5)][::-1]
    stand.backend.batches.create(OpenAIBatch("batch_theirs", file_id, owner="them"))

    def listed(query: str) -> tuple[list[str], bool]:
        page = stand.client.get(f"/v1/batches?{query}").get_json()
        return [batch["id"] for batch in page["data"]], page["has_more"]

    assert listed("") == (ids, False)
    assert listed("limit=2") == (ids[:2], True)
    assert listed(f"limit=2&after={ids[1]}") == (ids[2:4], True)
    assert listed(f"limit=2&after={ids[3]}") == (ids[4:], False)
    for wrong in ("limit=0", "limit=101", "after=batch_theirs"):
        assert stand.client.get(f"/v1/batches?{wrong}").status_code == 400


def test_a_cancelled_batch_is_cancelling_until_its_coordinator_has_stopped(
    stand: ApiStand, file_id: str
) -> None:
    batch_id = created(stand, file_id)["id"]
    for _ in range(2):
        # Like the client: a JSON content type without a body.
        answer = stand.client.post(
            f"/v1/batches/{batch_id}/cancel", data=b"", content_type="application/json"
        )
        assert answer.get_json()["status"] == "cancelling"
        assert answer.get_json()["cancelling_at"] is not None


def test_an_ended_batch_is_not_cancelled(stand: ApiStand) -> None:
    stand.backend.batches.create(
        OpenAIBatch("batch_x", "file-x", status=OpenAIBatchStatus.COMPLETED)
    )
    answer = stand.client.post("/v1/batches/batch_x/cancel")
    assert (answer.status_code, answer.get_json()["status"]) == (200, "completed")


def test_another_owners_batch_does_not_exist(stand: ApiStand) -> None:
    stand.backend.batches.create(OpenAIBatch("batch_theirs", "file-x", owner="them"))
    assert stand.client.get("/v1/batches/batch_theirs").status_code == 404
    assert stand.client.post("/v1/batches/batch_theirs/cancel").status_code == 404
    assert stand.client.get("/v1/batches/batch_none").status_code == 404
