"""Texts that fail alone, and devices that fail completely."""

from __future__ import annotations

import pytest

from tests.engine.stand import Start, assert_vectors, busy, crashes, texts
from tests.fakes import (
    DEADLINE,
    NAN,
    POISON,
    UNREADABLE,
    FakeEncoder,
    RecordingSink,
    job_of,
)
from tests.processes import eventually
from worker.contract.outcomes import TextError
from worker.engine.encode import DeviceLost

BAD = [
    # the text, the code of its failure, options of its job
    (7, "invalid_text", {}),
    (None, "invalid_text", {}),
    (["list"], "invalid_text", {}),
    (f"some {UNREADABLE} text", "invalid_text", {}),
    ("word " * 65, "text_too_long", {"truncate": False}),
    (f"some {POISON} text", "encode_failed", {}),
    (f"some {NAN} text", "non_finite_vector", {}),
]


@pytest.mark.parametrize(
    ("bad", "code", "options"), BAD, ids=[f"{b[1]}-{n}" for n, b in enumerate(BAD)]
)
def test_a_bad_text_fails_alone(
    start: Start,
    encoder: FakeEncoder,
    sink: RecordingSink,
    bad: object,
    code: str,
    options: dict[str, object],
) -> None:
    engine = start(encoder)
    given: list[object] = [*texts(5)]
    given[3] = bad
    mixed, neighbour = job_of(given, "mixed", **options), job_of(texts(3, first=50), "neighbour")
    with busy(engine, encoder):
        engine.submit(mixed)
        engine.submit(neighbour)
        eventually(lambda: mixed.waiting and neighbour.waiting)
    outcome = sink.outcome("mixed")
    assert [(error.index, error.code) for error in outcome.errors] == [(3, code)]
    assert "some" not in outcome.errors[0].message, "a text is shown"
    assert_vectors(outcome.vectors, texts(5), but=(3,))
    assert_vectors(sink.outcome("neighbour").vectors, texts(3, first=50))
    assert sink.outcome("neighbour").errors == []


def test_bad_texts_of_every_kind_fail_side_by_side(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    given = [item for bad, _, _ in BAD if bad != "word " * 65 for item in (bad, "fine")]
    start(encoder).submit(job_of(given, "a"))
    outcome = sink.outcome("a")
    assert outcome.errors == sorted(outcome.errors)
    assert [error.index for error in outcome.errors] == list(range(0, len(given), 2))
    assert_vectors(outcome.vectors[1::2], ["fine"] * (len(given) // 2))


def test_a_failed_text_has_a_row_of_zeros_whatever_the_job_asks_for(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    engine.submit(job_of(["fine", POISON, 3], "a", dimensions=2))
    engine.submit(job_of(["fine", NAN, 3], "b", normalize=False))
    for job_id in "ab":
        assert not sink.outcome(job_id).vectors[1:].any()


@pytest.mark.parametrize("code", ["invalid_text", "encode_failed", "non_finite_vector"])
def test_a_job_without_any_vector_fails_with_the_first_code(
    start: Start, encoder: FakeEncoder, sink: RecordingSink, code: str
) -> None:
    given = {"invalid_text": [1, POISON], "encode_failed": [POISON, 2], "non_finite_vector": [NAN]}
    start(encoder).submit(job_of(given[code], "a"))
    failure = sink.failure("a")
    assert failure.code == code
    assert failure.message.startswith("input[0]: ")


def test_a_job_that_fails_in_the_tokenizer_ends_without_a_batch(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    start(encoder).submit(job_of([1, UNREADABLE, None], "a"))
    assert sink.failure("a").code == "invalid_text"
    assert encoder.batches == []
    assert sink.of("admit") == []


def test_a_last_text_that_the_tokenizer_refuses_ends_a_job_that_runs(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    job = job_of([*texts(256), 3], "a")
    engine.submit(job)
    outcome = sink.outcome("a")
    assert outcome.errors == [TextError(256, "invalid_text", "a int is not a string")]
    assert_vectors(outcome.vectors[:256], texts(256))


def test_memory_that_runs_out_lowers_the_budget_and_costs_no_vector(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    encoder.memory = 20
    engine = start(encoder)
    engine.submit(job_of(texts(60), "a"))
    assert_vectors(sink.outcome("a").vectors, texts(60))
    assert engine.budgets["fake"] < 32
    assert engine.splits == engine.memory_splits >= 1


def test_a_full_device_costs_no_job(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    encoder.memory = 0
    engine = start(encoder)
    engine.submit(job_of(texts(20), "a"))
    eventually(lambda: encoder.releases > 2)
    assert engine.busy_since is None, "a full device counts as a hang"
    encoder.memory = None
    assert_vectors(sink.outcome("a").vectors, texts(20))
    assert sink.outcome("a").errors == []


def test_an_engine_with_a_full_device_closes_and_returns_its_jobs(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    encoder.memory = 0
    engine = start(encoder)
    engine.submit(job_of(texts(3), "a"))
    eventually(lambda: encoder.releases > 2)
    assert [job.id for job in engine.close(DEADLINE)] == ["a"]
    assert engine.stopped
    assert sink.outcomes == {}


@crashes
def test_a_lost_device_takes_the_engine_down_and_blames_no_text(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    encoder.lost = True
    engine.submit(job_of(texts(3), "a"))
    engine.submit(job_of(texts(3), "b"))
    assert isinstance(sink.wait_for_crash(), DeviceLost)
    assert {job.id for job in engine.close(DEADLINE)} == {"a", "b"}
    assert sink.outcomes == {}
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(job_of(texts(1), "c"))
