"""The Celery task of a batch: it retries if that helps, and every batch ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from tests.bulk.stand import BulkStand, jsonl, line
from worker.batches import task
from worker.batches.coordinator import Coordinator
from worker.contract import keys
from worker.contract.backoff import Backoff
from worker.store.openai_batch import OpenAIBatchStatus
from worker.store.openai_batches import OpenAIBatchStore, Superseded
from worker.store.storage import Storage, StorageUnavailable


@pytest.fixture
def run(bulk: BulkStand, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    monkeypatch.setattr(task, "_means", lambda: bulk.means)
    monkeypatch.setattr(task, "_BACKOFF", Backoff(0.001, 0.001))
    return task.batch  # type: ignore[no-any-return]


def failing(real: Callable[..., Any], error: Exception, times: int) -> Callable[..., Any]:
    """`real`, except that its first calls raise."""
    left = [times]

    def call(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return real(*args, **kwargs)

    return call


def test_it_runs_a_batch_to_its_end(bulk: BulkStand, run: Callable[[str], None]) -> None:
    batch_id = bulk.create(jsonl([line("a")]))
    run(batch_id)
    assert bulk.batch(batch_id).status is OpenAIBatchStatus.COMPLETED
    run(batch_id)
    assert bulk.batch(batch_id).completed == 1


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (OpenAIBatchStore, "claim", redis.ConnectionError()),
        (OpenAIBatchStore, "checkpoint", redis.TimeoutError()),
        (Storage, "join", StorageUnavailable("for now")),
    ],
)
def test_it_waits_for_what_is_away(
    bulk: BulkStand,
    run: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    error: Exception,
) -> None:
    batch_id = bulk.create(jsonl([line("a")]))
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), error, 5))
    run(batch_id)
    batch = bulk.batch(batch_id)
    assert (batch.status, batch.completed) == (OpenAIBatchStatus.COMPLETED, 1)


def test_a_storage_that_stays_away_fails_the_batch_in_the_end(
    bulk: BulkStand, run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = bulk.create(jsonl([line("a")]))
    for name in ("reader", "remove"):
        always = failing(getattr(Storage, name), StorageUnavailable("the disk is gone"), 10**6)
        monkeypatch.setattr(Storage, name, always)
    run(batch_id)
    [fault] = bulk.batch(batch_id).errors
    assert (fault.code, fault.message) == ("storage_unavailable", "the disk is gone")


def test_a_bug_fails_the_batch_and_says_no_more_than_that(
    bulk: BulkStand,
    run: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch_id = bulk.create(jsonl([line("a")]))
    monkeypatch.setattr(Coordinator, "run", failing(Coordinator.run, KeyError("secret"), 1))
    run(batch_id)
    [fault] = bulk.batch(batch_id).errors
    assert fault.code == "internal_error"
    assert "secret" not in fault.message
    assert "KeyError" in caplog.text


def test_a_batch_that_can_be_neither_run_nor_failed_is_failed_as_soon_as_it_can_be(
    bulk: BulkStand, run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = bulk.create(jsonl([line("a")]))
    monkeypatch.setattr(Coordinator, "run", failing(Coordinator.run, KeyError("run"), 1))
    monkeypatch.setattr(
        OpenAIBatchStore, "move", failing(OpenAIBatchStore.move, KeyError("move"), 3)
    )
    run(batch_id)
    batch = bulk.batch(batch_id)
    assert batch.status is OpenAIBatchStatus.FAILED
    assert [fault.code for fault in batch.errors] == ["internal_error"]


def test_a_batch_of_another_run_is_left_to_it(
    bulk: BulkStand, run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = bulk.create(jsonl([line("a")]))
    monkeypatch.setattr(Coordinator, "run", failing(Coordinator.run, Superseded(batch_id), 10))
    run(batch_id)
    run("batch_none")
    assert bulk.batch(batch_id).status is OpenAIBatchStatus.VALIDATING


def test_a_turn_that_is_over_sends_for_the_next_one(
    bulk: BulkStand, run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = bulk.create(jsonl([line("a")]))
    queue = keys.batch_queue("embedq")
    sent = bulk.api.redis.llen(queue)
    monkeypatch.setattr("worker.batches.coordinator._TURN_SECONDS", -1.0)
    run(batch_id)
    assert bulk.api.redis.llen(queue) == sent + 1
    assert bulk.batch(batch_id).status is OpenAIBatchStatus.IN_PROGRESS
