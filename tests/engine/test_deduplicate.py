"""Texts that occur more than once in a batch are encoded once, and each job gets its vector."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.stand import Start, assert_vectors, busy, texts, wait_until_tokenised
from tests.fakes import NAN, POISON, FakeEncoder, RecordingSink, job_of, vector_of
from worker.encoder.tokens import TokenBlock
from worker.engine.deduplicate import distinct


def block_of(*rows: list[int], skip: tuple[int, ...] = ()) -> TokenBlock:
    return TokenBlock(
        np.array([token for row in rows for token in row], dtype=np.int32),
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
        np.array(skip or [0] * len(rows), dtype=np.int32),
        np.zeros(len(rows), dtype=np.bool_),
    )


def rows_of(block: TokenBlock) -> list[list[int]]:
    return [block.slice(at, at + 1).ids.tolist() for at in range(len(block))]


def test_each_text_is_kept_where_it_first_occurs() -> None:
    found = distinct(block_of([1, 2], [3], [1, 2], [2, 1], [3]))
    assert rows_of(found.block) == [[1, 2], [3], [2, 1]]
    assert found.rows is not None
    assert found.rows.tolist() == [0, 1, 0, 2, 1]
    assert found.repeats == 2


def test_texts_that_all_differ_are_left_as_they_are() -> None:
    block = block_of([1, 2], [2, 1], [1], [2], [1, 2, 1])
    found = distinct(block)
    assert found.block is block
    assert found.repeats == 0


def test_the_same_tokens_pooled_otherwise_are_another_text() -> None:
    block = block_of([1, 2], [1, 2], [1, 2], skip=(0, 1, 0))
    found = distinct(block)
    assert rows_of(found.block) == [[1, 2], [1, 2]]
    assert found.block.skip.tolist() == [0, 1]


def test_texts_without_tokens_are_one_text() -> None:
    found = distinct(block_of([], [1], [], [1]))
    assert rows_of(found.block) == [[], [1]]


def test_a_text_of_many_jobs_is_encoded_once_and_each_job_gets_its_vector(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    jobs = [job_of(["the same", f"other {n}"], f"{n}", normalize=n % 2 == 0) for n in range(5)]
    with busy(engine, encoder):
        for job in jobs:
            engine.submit(job)
        wait_until_tokenised(*jobs)
    for n, job in enumerate(jobs):
        outcome = sink.outcome(job.id)
        assert_vectors(outcome.vectors, job.texts, normalize=n % 2 == 0)
        assert outcome.prompt_tokens == 4
    assert encoder.seen.count("the same") == 1
    assert engine.totals.repeats == 4
    assert engine.totals.texts == 11


def test_room_that_repeats_leave_goes_to_texts_that_wait(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    many, others = job_of(["again and again"] * 40, "many"), job_of(texts(3), "others")
    with busy(engine, encoder):
        engine.submit(many)
        engine.submit(others)
        wait_until_tokenised(many, others)
    assert_vectors(sink.outcome("many").vectors, many.texts)
    assert_vectors(sink.outcome("others").vectors, others.texts)
    assert len(encoder.batches) == 2
    assert sorted(encoder.batches[1]) == sorted(["again and again", *texts(3)])


def test_a_batch_of_repeats_comes_to_an_end(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    endless = job_of(["again and again"] * 400, "endless")
    with busy(engine, encoder):
        engine.submit(endless)
        wait_until_tokenised(endless)
    assert_vectors(sink.outcome("endless").vectors, endless.texts)
    assert encoder.seen.count("again and again") > 1


@pytest.mark.parametrize(("word", "code"), [(POISON, "encode_failed"), (NAN, "non_finite_vector")])
def test_a_bad_text_fails_wherever_it_occurs_and_nowhere_else(
    word: str, code: str, start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    jobs = [job_of([f"some {word}", "good", f"good {n}"], f"{n}") for n in range(3)]
    with busy(engine, encoder):
        for job in jobs:
            engine.submit(job)
        wait_until_tokenised(*jobs)
    for job in jobs:
        outcome = sink.outcome(job.id)
        assert [(error.index, error.code) for error in outcome.errors] == [(0, code)]
        assert_vectors(outcome.vectors, job.texts, but=(0,))


def test_a_repeat_does_not_join_the_batch_of_a_job_that_must_run_alone(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    suspect, other = job_of(["the same"] * 2, "s", isolated=True), job_of(["the same"] * 2, "o")
    with busy(engine, encoder):
        engine.submit(other)
        wait_until_tokenised(other)
        engine.submit(suspect)
    for job in (suspect, other):
        np.testing.assert_allclose(
            sink.outcome(job.id).vectors[1], vector_of("the same"), rtol=1e-6
        )
    assert encoder.batches[1:] == [["the same"], ["the same"]]


def test_a_job_cancelled_while_its_text_is_shared_costs_the_others_nothing(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    gone, stays = job_of(["the same"], "gone"), job_of(["the same"], "stays")
    with busy(engine, encoder):
        engine.submit(gone)
        engine.submit(stays)
        wait_until_tokenised(gone, stays)
        assert engine.cancel(gone)
    assert_vectors(sink.outcome("stays").vectors, stays.texts)
