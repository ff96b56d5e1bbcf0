"""Runs over a batch: each line is answered once, even if runs are cut off at any step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from tests.api_stand import MODEL
from tests.bulk.stand import BulkStand, bulk_stand, jsonl, line, vectors_of
from tests.processes import eventually
from worker.batches import processing
from worker.contract import keys, messages
from worker.contract.errors import JobFailed
from worker.contract.lanes import Lane
from worker.store.openai_batch import OpenAIBatch, OpenAIBatchStatus
from worker.store.openai_batches import OpenAIBatchStore, Superseded
from worker.store.storage import Storage, StorageUnavailable


class Cut(BaseException):
    """Cuts a run off, like a kill."""


def assert_each_once(bulk: BulkStand, batch: OpenAIBatch, ids: list[str]) -> None:
    """Assert that every line is in one of the files, once."""
    found = [
        answer["custom_id"]
        for file_id in (batch.output_file_id, batch.error_file_id)
        if file_id
        for answer in bulk.answers(file_id)
    ]
    assert sorted(found) == sorted(ids)


def test_every_line_is_answered_with_its_own_vectors(bulk: BulkStand) -> None:
    lines = [line(f"r{number}") for number in range(150)]
    lines.append(line("several", input=["one", "two", ""]))
    lines.append(line("base64", input="b", encoding_format="base64"))
    batch = bulk.ended(jsonl(lines))
    assert (batch.status, batch.error_file_id) == (OpenAIBatchStatus.COMPLETED, "")
    assert (batch.total, batch.completed, batch.failed) == (152, 152, 0)
    answers = {answer["custom_id"]: answer for answer in bulk.answers(batch.output_file_id)}
    assert len(answers) == 152
    for number in range(150):
        body = answers[f"r{number}"]["response"]["body"]
        text = f"text of r{number}"
        assert body["data"][0]["embedding"] == vectors_of([text])[0].tolist()
        assert body["usage"] == {"prompt_tokens": len(text), "total_tokens": len(text)}
        assert body["model"] == MODEL.name
    several = answers["several"]["response"]["body"]["data"]
    assert [one["embedding"] for one in several] == vectors_of(["one", "two", ""]).tolist()
    assert isinstance(answers["base64"]["response"]["body"]["data"][0]["embedding"], str)
    first = answers["r0"]
    assert (first["response"]["status_code"], first["error"]) == (200, None)
    assert batch.prompt_tokens == sum(map(len, bulk.worker.encoded))


def test_a_bad_line_is_answered_as_a_request_would_be(bulk: BulkStand) -> None:
    lines = [
        line("good"),
        line("empty", input=[]),
        line("size", dimensions=3),
        line("member", truncate="maybe"),
    ]
    batch = bulk.ended(jsonl(lines))
    assert (batch.status, batch.completed, batch.failed) == (OpenAIBatchStatus.COMPLETED, 1, 3)
    found = {answer["custom_id"]: answer for answer in bulk.answers(batch.error_file_id)}
    for custom_id, param in (("empty", "input"), ("size", "dimensions"), ("member", "truncate")):
        answer = found[custom_id]
        assert (answer["response"]["status_code"], answer["error"]) == (400, None)
        error = answer["response"]["body"]["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_a_model_nobody_serves_fails_every_line_and_no_file_is_made_for_output(
    bulk: BulkStand,
) -> None:
    batch = bulk.ended(jsonl([line("a", model="none"), line("b", model="none")]))
    assert (batch.status, batch.failed, batch.output_file_id) == (
        OpenAIBatchStatus.COMPLETED,
        2,
        "",
    )
    statuses = {a["response"]["status_code"] for a in bulk.answers(batch.error_file_id)}
    assert statuses == {404}


def test_a_text_that_fails_fails_its_line_alone(bulk: BulkStand) -> None:
    bulk.worker.judge = lambda texts: {
        at: "non_finite_vector" for at, text in enumerate(texts) if "bad" in text
    }
    lines = [line("a"), line("b", input=["fine", "bad"]), line("c", input="bad"), line("d")]
    batch = bulk.ended(jsonl(lines))
    assert [a["custom_id"] for a in bulk.answers(batch.output_file_id)] == ["a", "d"]
    errors = [a["response"]["body"]["error"] for a in bulk.answers(batch.error_file_id)]
    assert [error["param"] for error in errors] == ["input[1]", "input[0]"]
    assert {error["code"] for error in errors} == {"non_finite_vector"}


def test_a_job_that_fails_whole_does_not_fail_the_lines_beside_the_one_to_blame(
    bulk: BulkStand,
) -> None:
    def judge(texts: list[str]) -> Mapping[int, str]:
        if "poison" in texts:
            raise JobFailed("poisoned", "its worker died")
        return {}

    bulk.worker.judge = judge
    lines = [line(f"r{number}") for number in range(30)]
    lines[17]["body"]["input"] = "poison"
    batch = bulk.ended(jsonl(lines))
    assert (batch.completed, batch.failed) == (29, 1)
    [answer] = bulk.answers(batch.error_file_id)
    assert answer["custom_id"] == "r17"
    assert answer["response"]["body"]["error"]["code"] == "poisoned"


def test_a_file_of_the_wrong_form_fails_before_anything_is_run(bulk: BulkStand) -> None:
    batch = bulk.ended(jsonl([line("a"), line("a")]) + b"{\n")
    assert batch.status is OpenAIBatchStatus.FAILED
    assert [(fault.code, fault.line) for fault in batch.errors] == [
        ("duplicate_custom_id", 2),
        ("invalid_json_line", 3),
    ]
    assert bulk.worker.encoded == []
    assert not batch.output_file_id


def test_a_batch_whose_file_is_gone_fails(bulk: BulkStand) -> None:
    batch_id = bulk.create(jsonl([line("a")]))
    bulk.means.files.delete(bulk.batch(batch_id).input_file_id, "")
    assert bulk.coordinator(batch_id).run()
    assert [fault.code for fault in bulk.batch(batch_id).errors] == ["file_not_found"]


def test_nothing_is_left_of_a_batch_but_itself_and_its_files(bulk: BulkStand) -> None:
    batch = bulk.ended(jsonl([line("a"), line("b", input=[])]))
    left = {key.decode() for key in bulk.api.redis.scan_iter("*")}
    known = {
        keys.file(one) for one in (batch.input_file_id, batch.output_file_id, batch.error_file_id)
    }
    service = {keys.workers("embedq"), keys.ledger("embedq"), keys.batch_queue("embedq")}
    owners = {
        keys.files("embedq", ""),
        keys.files_expiry("embedq"),
        keys.files_held("embedq"),
        keys.files_used("embedq"),
        keys.batches("embedq", ""),
        keys.batch(batch.id),
    }
    assert left - service <= known | owners
    assert bulk.api.ledger().get("tokens", 0) == 0
    held = sum(value for name, value in bulk.api.ledger().items() if name.startswith("stored:"))
    assert held == 0
    folder = Path(bulk.means.files.storage.url)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 3


STEPS: list[tuple[type, str, int]] = [
    # The call before which a run is cut off, and the number of earlier calls.
    (OpenAIBatchStore, "move", 0),
    (OpenAIBatchStore, "checkpoint", 0),
    (OpenAIBatchStore, "checkpoint", 2),
    (OpenAIBatchStore, "move", 1),
    (Storage, "join", 0),
    (Storage, "join", 1),
    (OpenAIBatchStore, "move", 2),
    (Storage, "remove", 0),
]


@pytest.mark.parametrize(("owner", "name", "passes"), STEPS, ids=[f"{s[1]}-{s[2]}" for s in STEPS])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_cut_off_anywhere_loses_and_repeats_no_line(
    bulk: BulkStand,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    passes: int,
    *,
    after: bool,
) -> None:
    monkeypatch.setattr(processing, "WINDOW_TEXTS", 10)
    ids = [f"r{number}" for number in range(45)]
    lines = [line(custom_id) for custom_id in ids]
    lines[13]["body"]["input"] = []
    lines[31]["body"]["input"] = []
    batch_id = bulk.create(jsonl(lines))
    real: Callable[..., Any] = getattr(owner, name)
    left = [passes]

    def cut(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            if after:
                real(*args, **kwargs)
            raise Cut
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, cut)
        with pytest.raises(Cut):
            bulk.coordinator(batch_id).run()
    assert bulk.coordinator(batch_id).run()
    batch = bulk.batch(batch_id)
    assert (batch.status, batch.completed, batch.failed) == (OpenAIBatchStatus.COMPLETED, 43, 2)
    assert_each_once(bulk, batch, ids)
    # The jobs of the run that was cut off are found again, not submitted again.
    assert sorted(bulk.worker.encoded) == sorted(
        f"text of {custom_id}" for custom_id in ids if custom_id not in ("r13", "r31")
    )


def test_a_run_that_was_taken_for_dead_writes_nothing_more(
    bulk: BulkStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "WINDOW_TEXTS", 10)
    ids = [f"r{number}" for number in range(45)]
    batch_id = bulk.create(jsonl([line(custom_id) for custom_id in ids]))
    real = OpenAIBatchStore.checkpoint
    ended = []

    def overtaken(*args: Any) -> Any:
        if not ended:
            ended.append(True)
            assert bulk.coordinator(batch_id).run()
        return real(*args)

    monkeypatch.setattr(OpenAIBatchStore, "checkpoint", overtaken)
    with pytest.raises(Superseded):
        bulk.coordinator(batch_id).run()
    batch = bulk.batch(batch_id)
    assert batch.status is OpenAIBatchStatus.COMPLETED
    assert_each_once(bulk, batch, ids)


def test_a_cancelled_batch_keeps_the_answers_it_has(
    bulk: BulkStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "WINDOW_TEXTS", 10)
    held = threading.Event()
    begun = threading.Event()

    def judge(texts: list[str]) -> Mapping[int, str]:
        if "text of r15" in texts:
            begun.set()
            assert held.wait(30)
        return {}

    bulk.worker.judge = judge
    batch_id = bulk.create(jsonl([line(f"r{number}") for number in range(100)]))
    run = threading.Thread(target=bulk.coordinator(batch_id).run)
    run.start()
    try:
        assert begun.wait(30)
        eventually(lambda: bulk.batch(batch_id).completed == 10)
        bulk.means.batches.cancel(batch_id)
        run.join(30)
        batch = bulk.batch(batch_id)
        assert not run.is_alive()
    finally:
        held.set()
        run.join()
    assert batch.status is OpenAIBatchStatus.CANCELLED
    assert {OpenAIBatchStatus.CANCELLING, OpenAIBatchStatus.CANCELLED} <= batch.reached.keys()
    assert_each_once(bulk, batch, [f"r{number}" for number in range(10)])


@pytest.mark.parametrize("status", [OpenAIBatchStatus.VALIDATING, OpenAIBatchStatus.FINALIZING])
def test_a_batch_is_cancelled_wherever_it_stands(
    bulk: BulkStand, status: OpenAIBatchStatus
) -> None:
    batch_id = bulk.create(jsonl([line("a")]), status=status)
    bulk.means.batches.cancel(batch_id)
    assert bulk.batch(batch_id).status is OpenAIBatchStatus.CANCELLING
    assert bulk.coordinator(batch_id).run()
    assert bulk.batch(batch_id).status is OpenAIBatchStatus.CANCELLED


def test_an_ended_batch_is_not_cancelled_any_more(bulk: BulkStand) -> None:
    batch = bulk.ended(jsonl([line("a")]))
    bulk.means.batches.cancel(batch.id)
    assert bulk.batch(batch.id).status is OpenAIBatchStatus.COMPLETED


def test_lines_left_when_the_window_closes_are_answered_with_that(
    bulk: BulkStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "WINDOW_TEXTS", 10)
    ids = [f"r{number}" for number in range(25)]
    batch = bulk.ended(jsonl([line(custom_id) for custom_id in ids]), expires_at=1.0)
    assert (batch.status, batch.completed, batch.failed) == (OpenAIBatchStatus.EXPIRED, 0, 25)
    assert_each_once(bulk, batch, ids)
    [answer, *_] = bulk.answers(batch.error_file_id)
    assert (answer["response"], answer["error"]["code"]) == (None, "batch_expired")


def test_a_turn_that_is_over_is_gone_on_with_later(
    bulk: BulkStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.batches.coordinator._TURN_SECONDS", -1.0)
    batch_id = bulk.create(jsonl([line("a")]))
    assert not bulk.coordinator(batch_id).run()
    assert bulk.batch(batch_id).status is OpenAIBatchStatus.IN_PROGRESS
    monkeypatch.undo()
    assert bulk.coordinator(batch_id).run()
    assert bulk.batch(batch_id).status is OpenAIBatchStatus.COMPLETED


@pytest.fixture
def narrow(redis_url: str, tmp_path: Path) -> Iterator[BulkStand]:
    with bulk_stand(redis_url, tmp_path / "files", max_queued_tokens=200) as stand:
        yield stand


def test_a_full_queue_is_waited_for(narrow: BulkStand) -> None:
    ledger = keys.ledger("embedq")
    narrow.api.redis.hset(ledger, "tokens", 1000)
    batch_id = narrow.create(jsonl([line(f"r{number}") for number in range(200)]))
    run = threading.Thread(target=narrow.coordinator(batch_id).run)
    run.start()
    try:
        eventually(lambda: narrow.batch(batch_id).status is OpenAIBatchStatus.IN_PROGRESS)
        assert narrow.worker.encoded == []
    finally:
        narrow.api.redis.hset(ledger, "tokens", 0)
        run.join(30)
    assert narrow.batch(batch_id).completed == 200


@pytest.mark.parametrize("gone", [keys.job, keys.result])
def test_a_job_whose_outcome_is_gone_is_run_again(
    bulk: BulkStand, monkeypatch: pytest.MonkeyPatch, gone: Callable[[str], str]
) -> None:
    lost: list[str] = []
    real = bulk.api.succeed

    def succeed(job_id: str, *args: Any, **kwargs: Any) -> None:
        if not lost:
            lost.append(job_id)
            bulk.api.redis.hset(keys.job(job_id), "status", "succeeded")
            bulk.api.redis.delete(gone(job_id))
            bulk.api.redis.publish(keys.EVENTS, b'{"ended": ["%s"]}' % job_id.encode())
            return
        real(job_id, *args, **kwargs)

    monkeypatch.setattr(bulk.api, "succeed", succeed)
    batch = bulk.ended(jsonl([line("a"), line("b")]))
    assert (batch.status, batch.completed, len(lost)) == (OpenAIBatchStatus.COMPLETED, 2, 1)


def test_a_storage_that_fails_leaves_the_batch_as_it_was(
    bulk: BulkStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = bulk.create(jsonl([line("a")]))
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "writer", _broken)
        with pytest.raises(StorageUnavailable):
            bulk.coordinator(batch_id).run()
    assert bulk.batch(batch_id).status is OpenAIBatchStatus.IN_PROGRESS
    assert bulk.coordinator(batch_id).run()
    assert bulk.batch(batch_id).completed == 1


def _broken(*_: Any) -> Any:
    raise StorageUnavailable("the disk is full")


def test_a_batch_that_is_gone_is_nobodys(bulk: BulkStand) -> None:
    with pytest.raises(Superseded):
        bulk.coordinator("batch_none")
    assert not bulk.api.redis.exists(keys.batch("batch_none"))


def test_redis_falling_away_is_told_to_the_caller(
    bulk: BulkStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = bulk.create(jsonl([line("a")]))

    def away(*_: Any) -> Any:
        raise redis.ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(OpenAIBatchStore, "checkpoint", away)
        with pytest.raises(redis.ConnectionError):
            bulk.coordinator(batch_id).run()
    assert bulk.coordinator(batch_id).run()


def test_a_batchs_jobs_share_the_device_as_its_owners_and_are_in_nobodys_list(
    bulk: BulkStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    real = messages.envelope

    def envelope(*args: Any, **kwargs: Any) -> bytes:
        message = real(*args, **kwargs)
        sent.append(orjson.loads(message))
        return message

    monkeypatch.setattr(messages, "envelope", envelope)
    batch = bulk.ended(jsonl([line("a")]), owner="them")
    assert batch.completed == 1
    [message] = sent
    assert messages.owner_of(message["headers"]) == "them"
    assert message["properties"]["priority"] == Lane.BULK.step
    for owner in ("", "them", batch.id):
        assert bulk.api.store.page(owner, limit=10) == ([], None)
